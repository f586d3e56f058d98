//! An ordered end: new work is refused, open streams are told to come back, runs go on.

use serde_json::json;

use crate::daemon::{Daemon, ids, names};
use crate::worker::Worker;

#[tokio::test]
async fn open_streams_end_with_a_comment_and_go_on_after_the_restart() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    worker.allow(3);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    daemon.until_status(&job, "running").await;
    let url = daemon.url(&format!("/v2/tasks/{job}/events"));
    let mut open = daemon.http.get(url).send().await.expect("a stream");
    let Daemon { home, server, http } = daemon;
    server.stop().await.expect("everything is on disk");
    let mut text = String::new();
    while let Some(chunk) = open.chunk().await.expect("an orderly end") {
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(text.contains("event: queued"), "{text}");
    assert!(text.trim_end().ends_with("reconnect with Last-Event-ID"), "{text}");

    let daemon = Daemon::open(home, http).await;
    worker.register(&daemon.url("")).await;
    worker.allow(usize::MAX);
    let frames = daemon.events(&job, Some(1)).await;
    assert_eq!((names(&frames), ids(&frames)), (vec!["token", "token", "end"], vec![2, 3, 4]));
    assert_eq!(worker.executed().len(), 1);
}

#[tokio::test]
async fn a_stopped_daemon_listens_no_more() {
    let daemon = Daemon::start().await;
    let address = daemon.server.address;
    daemon.server.stop().await.expect("stopped");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
