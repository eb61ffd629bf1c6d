//! What a probe is told while the device holds up a write.
#![allow(clippy::disallowed_methods, reason = "the probe must not stand still with the broker")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use letterbox_env::Env;
use letterbox_protocol::Response;
use letterbox_sim::disk::SimDisk;

use super::Broker;
use super::gate::produce;
use crate::security::AllowAll;

/// The first line of what `/readyz` answers, and its body.
fn readyz(admin: SocketAddr) -> (String, String) {
    let mut probe = TcpStream::connect(admin).unwrap();
    probe.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    probe.write_all(b"GET /readyz HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    probe.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn until_it_begins_with(admin: SocketAddr, status: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (head, body) = readyz(admin);
        if head.starts_with(status) {
            return body;
        }
        assert!(Instant::now() < deadline, "{head}: {body}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_not_ready_while_the_device_holds_up_a_write() {
    let disk = SimDisk::new(1);
    let env = Env { disk: Arc::new(disk.clone()), ..Env::real() };
    let broker = Arc::new(Broker::start_in(env, "127.0.0.1:0").await);
    let admin = broker.node.admin_address().unwrap();
    broker.has_topic("t").await;
    assert!(readyz(admin).0.ends_with("200 OK"));
    let ((goes_on, holds), (begins, begun)) = (mpsc::channel::<()>(), mpsc::channel());
    let holds = Mutex::new(holds);
    // Of the first segment, which the first append makes.
    disk.on_make(move |path| {
        if path.to_string_lossy().ends_with("/t-0/00000000000000000000.log") {
            begins.send(()).unwrap();
            holds.lock().unwrap().recv().unwrap_err();
        }
    });
    let asks = broker.clone();
    let asked = tokio::spawn(async move {
        let any = Arc::new(AllowAll);
        answer!(asks, any, 9, produce(&["t"]), Produce)
    });
    begun.recv_timeout(Duration::from_secs(30)).unwrap();
    let why = until_it_begins_with(admin, "HTTP/1.1 503");
    assert!(why.starts_with("log directory ") && why.contains("no write to it has ended"), "{why}");
    drop(goes_on);
    let answer = asked.await.unwrap();
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
    assert_eq!(until_it_begins_with(admin, "HTTP/1.1 200"), "ok\n");
}
