//! Sessions and quotas as clients meet them.

use orchestrator_core::{Quota, Quotas};
use serde_json::json;

use crate::daemon::Daemon;
use crate::worker::Worker;

#[tokio::test]
async fn a_session_is_named_looked_at_and_forgotten() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    let (status, body) = daemon.get("/v2/sessions/chat:1").await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("SESSION_NOT_FOUND")));
    let job = daemon.submit(json!({ "prompt": "x", "session_id": "chat:1", "max_tokens": 8 })).await;
    daemon.until_status(&job, "completed").await;
    let (status, view) = daemon.get("/v2/sessions/chat:1").await;
    assert_eq!((status, view["turns"].as_u64(), view["jobs_open"].as_u64()), (200, Some(1), Some(0)));
    assert!(view["tokens_used"].as_u64() > Some(0) && view["worker"].is_string(), "{view}");

    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    let (status, after) = daemon.get("/v2/sessions/chat:1").await;
    assert_eq!((status, &after["tokens_used"]), (200, &view["tokens_used"]));

    let forget = || daemon.http.delete(daemon.url("/v2/sessions/chat:1")).send();
    assert_eq!(forget().await.expect("an answer").status(), 204);
    assert_eq!(forget().await.expect("an answer").status(), 404);
    let daemon = daemon.crash_and_restart().await;
    assert_eq!(daemon.get("/v2/sessions/chat:1").await.0, 404);
}

#[tokio::test]
async fn a_budget_and_a_quota_refuse_with_the_numbers_and_a_pause() {
    let daemon = Daemon::start_with(|config| {
        config.settings.sessions.token_budget = Some(100);
        let default = Quota { queued: Some(2), ..Quota::default() };
        config.settings.quotas = Quotas { default, ..Quotas::default() };
    })
    .await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    // No worker can do what they ask for, so they wait.
    let task = |session: &str| {
        let placement = json!({ "require": ["gold"] });
        json!({ "prompt": "x", "session_id": session, "max_tokens": 60, "placement": placement }).to_string()
    };
    assert_eq!(daemon.post("/v2/tasks", task("a")).await.0, 202);
    let answer = daemon.http.post(daemon.url("/v2/tasks")).body(task("a")).send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (429, true));
    let body: serde_json::Value = answer.json().await.expect("JSON");
    assert_eq!(body["error"]["code"], "QUOTA_EXCEEDED");
    assert_eq!(body["error"]["details"]["session_id"], "a");
    assert_eq!(body["error"]["details"]["budget"], 100);
    assert_eq!(daemon.post("/v2/tasks", task("b")).await.0, 202);
    let (status, body) = daemon.post("/v2/tasks", task("c")).await;
    assert_eq!((status, body["error"]["details"]["quota"].as_str()), (429, Some("queued")));
}

#[tokio::test]
async fn a_name_that_is_none_is_refused_by_field() {
    let daemon = Daemon::start().await;
    let (status, body) =
        daemon.post("/v2/tasks", json!({ "prompt": "x", "session_id": "a b" }).to_string()).await;
    assert_eq!((status, body["error"]["field"].as_str()), (422, Some("session_id")));
}
