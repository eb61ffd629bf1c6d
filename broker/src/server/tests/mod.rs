//! Requests to a broker in this process, from their bytes to the bytes of their answers, without a
//! connection.

/// The body of the answer to a request.
macro_rules! answer {
    ($broker:expr, $rule:expr, $version:expr, $request:expr, $name:ident) => {
        match $broker.ask(&$rule, $version, $request).await {
            Response::$name(response) => response,
            other => panic!("{other:?}"),
        }
    };
}

mod gate;
mod handlers;
mod held_up;
mod sessions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use letterbox_env::Env;
use letterbox_protocol::frame::FrameLimit;
use letterbox_protocol::{Request, Response, decode_response, encode_request};

use super::budget::Share;
use super::context::Connection;
use super::dispatch::{check, dispatch};
use crate::config::Config;
use crate::metadata::MetadataRecord;
use crate::metadata::features::FEATURE;
use crate::metadata::record::FeatureRecord;
use crate::node::Node;
use crate::security::Authorizer;

/// A broker on an empty directory.
struct Broker {
    node: Node,
    _dir: tempfile::TempDir,
}

impl Broker {
    async fn start() -> Self {
        Self::start_in(Env::real(), "none").await
    }

    async fn start_in(env: Env, admin: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "process.roles=broker,controller\nnode.id=1\n\
             controller.quorum.voters=1@localhost:9093\ncontroller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://127.0.0.1:0,CONTROLLER://127.0.0.1:9093\nlog.dirs={}\n\
             admin.listener={admin}\noffsets.topic.num.partitions=1\n\
             group.initial.rebalance.delay.ms=0\n",
            dir.path().display()
        );
        let config = Config::parse(&text).unwrap();
        let started = Node::start(env, config, std::future::pending()).await;
        Self { node: started.unwrap().unwrap(), _dir: dir }
    }

    async fn has_topic(&self, name: &str) {
        self.node.ensure_topic(name, 1, 1, BTreeMap::new()).await.unwrap();
    }

    /// As one whose cluster was founded before there were levels of features.
    async fn is_at_the_first_level(&self) {
        let services = self.node.services();
        let term = services.quorum.begin_leading().await.unwrap();
        let first = FeatureRecord { name: FEATURE.to_owned(), level: 1 };
        let done = services.quorum.propose(term, &[MetadataRecord::Feature(first)]).await.unwrap();
        assert!(services.shown.reaches(done.index, Duration::from_secs(30)).await);
    }

    /// The answer to a client that may do what `authorizer` allows.
    async fn ask(
        &self,
        authorizer: &Arc<impl Authorizer + 'static>,
        version: i16,
        request: impl Into<Request>,
    ) -> Response {
        let request = request.into();
        let frame = encode_request(7, Some("c"), version, &request).unwrap();
        let services = self.node.services();
        let peer = ([127, 0, 0, 1], 1).into();
        let mut connection =
            Connection::new(0, 0, peer, authorizer.clone(), FrameLimit::new(1 << 20));
        let Ok(checked) = check(services, &mut connection, BytesMut::from(&frame[4..])) else {
            panic!("{request:?} is refused")
        };
        let share = Share::new(&services.memory);
        let answer = dispatch(services, &mut connection, checked, share);
        let answer = answer.outcome().await.unwrap().expect("an answer");
        let bytes: Vec<u8> =
            answer.in_memory_parts().unwrap().flat_map(|part| part.to_vec()).collect();
        let frame = Bytes::from(bytes).slice(4..);
        decode_response(request.api_key(), version, frame).unwrap().1
    }
}
