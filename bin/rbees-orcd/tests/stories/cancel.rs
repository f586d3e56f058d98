//! Cancel, and leaving.

use std::time::Duration;

use serde_json::json;

use crate::daemon::{Daemon, names, until};
use crate::worker::Worker;

#[tokio::test]
async fn a_running_job_is_cancelled_once() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    worker.allow(3);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    daemon.until_status(&job, "running").await;
    let reader = daemon.follow(&job, None).await;
    let (status, answer) = daemon.post(&format!("/v2/tasks/{job}/cancel"), "").await;
    assert_eq!(status, 202, "{answer}");
    let frames = reader.rest().await;
    assert_eq!(names(&frames).last(), Some(&"end"));
    let view = daemon.until_status(&job, "cancelled").await;
    assert_eq!(view["end"]["stop_reason"], "CANCELLED");
    let (status, answer) = daemon.post(&format!("/v2/tasks/{job}/cancel"), "").await;
    assert_eq!((status, answer["status"].as_str()), (200, Some("cancelled")));
}

#[tokio::test]
async fn what_was_shown_of_a_cancelled_job_counts_although_its_worker_never_says_a_word() {
    let daemon = Daemon::start_with(|config| config.settings.cancel_final_ms = 50).await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    worker.turn_deaf();
    // `started`, `metrics` and two tokens.
    worker.allow(4);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    let mut reader = daemon.follow(&job, None).await;
    let mut tokens = 0;
    while tokens < 2 {
        let frame = reader.next().await.expect("the stream goes on");
        tokens += u64::from(&*frame.event == "token");
    }
    let (status, answer) = daemon.post(&format!("/v2/tasks/{job}/cancel"), "").await;
    assert_eq!(status, 202, "{answer}");
    let view = daemon.until_status(&job, "cancelled").await;
    assert_eq!((&view["end"]["tokens_out"], &view["end"]["stop_reason"]), (&json!(2), &json!("CANCELLED")));
}

#[tokio::test]
async fn nobody_cancels_what_does_not_exist() {
    let daemon = Daemon::start().await;
    for job in ["job_01901234-5678-7abc-8def-0123456789ab", "nonsense"] {
        let (status, answer) = daemon.post(&format!("/v2/tasks/{job}/cancel"), "").await;
        assert_eq!((status, answer["error"]["code"].as_str()), (404, Some("JOB_NOT_FOUND")));
    }
}

#[tokio::test]
async fn an_interactive_job_whose_readers_left_is_cancelled() {
    let daemon = Daemon::start_with(|config| config.settings.disconnect_grace_ms = 50).await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    worker.allow(3);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    let mut reader = daemon.follow(&job, None).await;
    reader.next().await.expect("queued");
    drop(reader);
    daemon.until_status(&job, "cancelled").await;
}

#[tokio::test]
async fn a_closed_openai_connection_cancels_at_once() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    worker.allow(3);
    let body =
        json!({ "model": "scripted", "stream": true, "messages": [{ "role": "user", "content": "x" }] });
    let mut answer = daemon
        .http
        .post(daemon.url("/v1/chat/completions"))
        .body(body.to_string())
        .send()
        .await
        .expect("headers");
    let job = answer.headers()["x-rbees-job-id"].to_str().expect("text").to_owned();
    answer.chunk().await.expect("a chunk");
    drop(answer);
    // Far less than the ten seconds that other readers may be away.
    let cancelled = async {
        until("cancelled", || async {
            let (_, view) = daemon.get(&format!("/v2/tasks/{job}")).await;
            (view["status"] == "cancelled").then_some(())
        })
        .await
    };
    tokio::time::timeout(Duration::from_secs(9), cancelled).await.expect("cancelled at once");
}

#[tokio::test]
async fn a_closed_connection_that_waits_for_the_whole_answer_cancels_too() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    worker.allow(3);
    let body = json!({ "model": "scripted", "messages": [{ "role": "user", "content": "x" }] });
    let request = daemon.http.post(daemon.url("/v1/chat/completions")).body(body.to_string());
    let waiting = tokio::spawn(request.send());
    let job = until("the run began", || async { Some(worker.executed().first()?.job_id.clone()) }).await;
    daemon.until_status(&job, "running").await;
    waiting.abort();
    let cancelled = daemon.until_status(&job, "cancelled");
    tokio::time::timeout(Duration::from_secs(9), cancelled).await.expect("cancelled at once");
}
