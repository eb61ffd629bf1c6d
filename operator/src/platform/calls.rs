//! Calls to the API server end within a bound, and what is not answered is asked less and less
//! often.
//!
//! A call that hangs (a webhook, a kind that cannot be read) costs its own thing: whoever made it is
//! told that there was no answer. Until a pause is over the same call is answered so at once; it
//! grows with each attempt, so that what hangs for long takes little time from everything else. Any
//! answer, also a refusal, ends that.
//!
//! An answer has [`ANSWER_MAX`] bytes at most: whoever may make objects that a list finds makes the
//! operator no larger.
//!
//! Watches, and lists in pages, with which watches begin, are bounded by the runtime.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{Method, Request, Response};
use futures::TryStreamExt as _;
use kube::Client;
use kube::client::Body;
use tokio::time::Instant;

/// How long the API server may take to answer what is read.
pub(crate) const READ_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take for a change. It waits ten seconds for a webhook, and says then which.
const WRITE_WITHIN: Duration = Duration::from_secs(15);
/// How large an answer may be. An object has 1.5 MB at most.
const ANSWER_MAX: usize = 2 << 20;
/// The first pause after a call without an answer; it doubles with each one that follows, up to
/// [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// What nobody has asked again for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// The calls that were not answered. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Silences(Arc<Mutex<BTreeMap<String, Silence>>>);

/// A call that was not answered.
#[derive(Clone, Copy, Debug)]
struct Silence {
    /// When it is made again.
    until: Instant,
    pause: Duration,
}

impl Silences {
    /// `client` with bounded calls.
    pub(crate) fn client(&self, client: Client) -> Client {
        let (silences, namespace) = (self.clone(), client.default_namespace().to_owned());
        let send = move |request: Request<Body>| {
            let (silences, client) = (silences.clone(), client.clone());
            async move { silences.send(&client, request).await }
        };
        Client::new(tower::service_fn(send), namespace)
    }

    /// Forgets all of them: the API server is back.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn send(
        &self,
        client: &Client,
        request: Request<Body>,
    ) -> kube::Result<Response<axum::body::Body>> {
        let query = request.uri().query().unwrap_or_default();
        let begins = |name: &str| query.split('&').any(|pair| pair.starts_with(name));
        if begins("watch=") || begins("limit=") {
            let (head, body) = client.send(request).await?.into_parts();
            let mut shallow = Shallow::default();
            let chunks = axum::body::Body::new(body).into_data_stream();
            let chunks = chunks.map_ok(move |chunk| shallow.cut(&chunk));
            return Ok(Response::from_parts(head, axum::body::Body::from_stream(chunks)));
        }
        let call = format!("{} {}", request.method(), request.uri());
        let within = match *request.method() {
            Method::GET => READ_WITHIN,
            _ => WRITE_WITHIN,
        };
        if self.is_silent(&call) {
            return Err(no_answer(within));
        }
        let answer = async {
            let (head, body) = client.send(request).await?.into_parts();
            Ok(Response::from_parts(head, axum::body::Body::from(whole(body).await?)))
        };
        let answer = tokio::time::timeout(within, answer).await;
        self.note(call, answer.is_ok());
        answer.unwrap_or_else(|_| Err(no_answer(within)))
    }

    fn is_silent(&self, call: &str) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(call).is_some_and(|silence| Instant::now() < silence.until)
    }

    fn note(&self, call: String, is_answered: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = all.remove(&call).map(|silence| silence.pause);
        if is_answered {
            return;
        }
        let now = Instant::now();
        all.retain(|_, silence| now.saturating_duration_since(silence.until) < FORGOTTEN_AFTER);
        let pause = last.map_or(PAUSE_MIN, |last| last.saturating_mul(2).min(PAUSE_MAX));
        all.insert(call, Silence { until: now + pause, pause });
    }
}

/// All of an answer.
async fn whole(body: Body) -> kube::Result<Vec<u8>> {
    let mut chunks = axum::body::Body::new(body).into_data_stream();
    let (mut shallow, mut whole, mut left) = (Shallow::default(), Vec::new(), ANSWER_MAX);
    let failed = |error: axum::Error| kube::Error::Service(error.into());
    while let Some(chunk) = chunks.try_next().await.map_err(failed)? {
        left = left.checked_sub(chunk.len()).ok_or_else(too_large)?;
        whole.append(&mut shallow.cut(&chunk));
    }
    Ok(whole)
}

fn too_large() -> kube::Error {
    let max = ANSWER_MAX >> 20;
    kube::Error::Service(format!("the API server's answer is larger than {max} MiB").into())
}

/// So deeply a value may be nested in what the API server says.
const DEPTH_MAX: u32 = 100;

/// Takes away what is nested more deeply than [`DEPTH_MAX`], for which it puts `null`, from JSON
/// that comes in pieces. Objects may hold such values, and a list with one of them could not be
/// read at all: the parser stops at 128.
#[derive(Default)]
struct Shallow {
    depth: u32,
    in_text: bool,
    is_escaped: bool,
}

impl Shallow {
    fn cut(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(piece.len());
        for &byte in piece {
            let before = self.depth;
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_text => self.is_escaped = true,
                b'"' => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            match before.max(self.depth) {
                depth if depth <= DEPTH_MAX => kept.push(byte),
                _ if before == DEPTH_MAX => kept.extend_from_slice(b"null"),
                _ => {}
            }
        }
        kept
    }
}

pub(crate) fn no_answer(within: Duration) -> kube::Error {
    kube::Error::Service(
        format!("the API server did not answer within {} s", within.as_secs()).into(),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use k8s_openapi::api::core::v1::Pod;
    use kube::api::{Api, ListParams};

    use super::*;

    /// An API server that answers lists of pods, if it does, and how often it was asked.
    fn server(hangs: &Arc<AtomicBool>, asked: &Arc<AtomicU32>) -> Client {
        let (hangs, asked) = (hangs.clone(), asked.clone());
        let answer = move |_: Request<Body>| {
            asked.fetch_add(1, Ordering::SeqCst);
            let hangs = hangs.load(Ordering::SeqCst);
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                let none = br#"{"apiVersion":"v1","kind":"PodList","metadata":{},"items":[]}"#;
                Ok::<_, std::convert::Infallible>(Response::new(Body::from(none.to_vec())))
            }
        };
        Client::new(tower::service_fn(answer), "ns")
    }

    #[tokio::test]
    async fn an_answer_that_is_too_large_is_not_read_to_its_end() {
        let read = Arc::new(AtomicU32::new(0));
        let counted = read.clone();
        let answer = move |_: Request<Body>| {
            let counted = counted.clone();
            let chunks = futures::stream::repeat_with(move || {
                counted.fetch_add(1, Ordering::SeqCst);
                Ok::<_, std::convert::Infallible>(vec![b' '; 1 << 16])
            });
            let body = axum::body::Body::from_stream(chunks);
            async move { Ok::<_, std::convert::Infallible>(Response::new(body)) }
        };
        let client = Client::new(tower::service_fn(answer), "ns");
        let pods: Api<Pod> = Api::default_namespaced(Silences::default().client(client));
        let error = pods.list(&ListParams::default()).await.unwrap_err();
        assert!(read.load(Ordering::SeqCst) <= 33);
        let said = super::super::kubernetes::said(&error);
        assert_eq!(said, "the API server's answer is larger than 2 MiB");
    }

    #[test]
    fn what_is_nested_too_deeply_is_left_out_wherever_the_pieces_end() {
        let nested = |depth: usize, inner: &str| {
            format!("{}{inner}{}", r#"{"a":["#.repeat(depth), "]}".repeat(depth))
        };
        let text = r#""]}{[\"\\""#;
        let (good, deep) = (nested(50, text), nested(90, text));
        let all = format!(r#"[{good},"x\"{{"]{deep}"#);
        let expected =
            format!(r#"[{},"x\"{{"]{}"#, nested(49, r#"{"a":null}"#), nested(50, "null"));
        for size in [1, 2, 7, all.len()] {
            let mut shallow = Shallow::default();
            let kept: Vec<u8> =
                all.as_bytes().chunks(size).flat_map(|piece| shallow.cut(piece)).collect();
            assert_eq!(String::from_utf8(kept).unwrap(), expected, "pieces of {size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_answered_is_asked_less_and_less_often_and_holds_up_nothing_else() {
        let (hangs, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
        let silences = Silences::default();
        let pods: Api<Pod> = Api::default_namespaced(silences.client(server(&hangs, &asked)));
        let list = async || pods.list(&ListParams::default()).await;
        let began = Instant::now();
        let mut waited = Duration::ZERO;
        while began.elapsed() < Duration::from_secs(600) {
            let asks = Instant::now();
            let error = list().await.unwrap_err();
            waited += asks.elapsed();
            assert!(super::super::kubernetes::said(&error).contains("within 10 s"), "{error}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(waited < Duration::from_secs(200), "a quarter of the time in the end, {waited:?}");
        assert!((10..=20).contains(&asked.load(Ordering::SeqCst)));
        // Another call is not the same, and an answer ends it.
        hangs.store(false, Ordering::SeqCst);
        assert!(pods.list(&ListParams::default().labels("a=b")).await.is_ok());
        tokio::time::sleep(PAUSE_MAX).await;
        assert!(list().await.is_ok() && list().await.is_ok());
        // So does word of somebody else that the API server is back.
        hangs.store(true, Ordering::SeqCst);
        assert!(list().await.is_err());
        hangs.store(false, Ordering::SeqCst);
        assert!(list().await.is_err());
        silences.forget();
        assert!(list().await.is_ok());
    }
}
