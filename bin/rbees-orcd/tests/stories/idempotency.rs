//! The same key with the same request is the same job.

use serde_json::json;

use crate::daemon::{Daemon, answer};
use crate::worker::Worker;

#[tokio::test]
async fn a_key_stands_for_one_request() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    let body = json!({ "prompt": "x", "idempotency_key": "k" });
    let first = daemon.submit(body.clone()).await;
    assert_eq!(daemon.submit(body).await, first);
    let by_header = daemon.http.post(daemon.url("/v2/tasks")).header("idempotency-key", "k");
    let (status, same) = answer(by_header.body(json!({ "prompt": "x" }).to_string())).await;
    assert_eq!((status, same["job_id"].as_str()), (202, Some(first.as_str())));
    let (status, other) =
        daemon.post("/v2/tasks", json!({ "prompt": "y", "idempotency_key": "k" }).to_string()).await;
    assert_eq!((status, other["error"]["code"].as_str()), (409, Some("IDEMPOTENCY_CONFLICT")));
    daemon.until_status(&first, "completed").await;
    assert_eq!(worker.executed().len(), 1);
}

#[tokio::test]
async fn a_key_outlives_a_crash() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    let body = json!({ "prompt": "x", "idempotency_key": "k" });
    let first = daemon.submit(body.clone()).await;
    daemon.until_status(&first, "completed").await;
    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    assert_eq!(daemon.submit(body).await, first);
}
