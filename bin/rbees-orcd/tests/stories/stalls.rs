//! Workers that are there and say nothing, and jobs that run for longer than they may.

use std::time::Duration;

use api_types::TaskEvent;
use rbees_orcd::config::Config;
use serde_json::{Value, json};

use crate::daemon::{Daemon, names};
use crate::worker::Worker;

const SHORT: Duration = Duration::from_millis(300);
/// Far more than a test waits for anything.
const LONG: Duration = Duration::from_secs(3_600);

fn limits(config: &mut Config, first_token: Duration, between_events: Duration) {
    (config.stalls.first_token, config.stalls.between_events) = (first_token, between_events);
}

/// The error that the job ends with, which its stream tells too.
async fn failure(daemon: &Daemon, job: &str) -> Value {
    let view = daemon.until_status(job, "failed").await;
    let frames = daemon.events(job, None).await;
    let Ok(TaskEvent::Error { code, message, .. }) = frames.last().expect("a last event").task_event() else {
        panic!("{:?}", names(&frames));
    };
    let error = view["error"].clone();
    assert_eq!((error["code"].as_str(), error["message"].as_str()), (Some(code.as_str()), Some(&*message)));
    error
}

fn has_hint(error: &Value, text: &str) -> bool {
    error["hint"].as_str().is_some_and(|hint| hint.contains(text))
}

#[tokio::test]
async fn a_worker_that_shows_nothing_is_given_up_before_its_first_token() {
    let daemon = Daemon::start_with(|config| limits(config, SHORT, LONG)).await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    // `started` and one sign of progress.
    worker.allow(2);
    let job = daemon.submit(json!({ "prompt": "x", "retry": "never" })).await;
    let error = failure(&daemon, &job).await;
    assert_eq!(error["code"], "STREAM_STALLED");
    assert!(has_hint(&error, "first_token_timeout_ms"), "{error}");
}

#[tokio::test]
async fn a_worker_that_falls_silent_between_tokens_is_given_up() {
    let daemon = Daemon::start_with(|config| limits(config, LONG, SHORT)).await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    worker.allow(3);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    let error = failure(&daemon, &job).await;
    assert_eq!(error["code"], "STREAM_STALLED");
    assert!(has_hint(&error, "stall_timeout_ms"), "{error}");
    let result = daemon.until_status(&job, "failed").await;
    assert_eq!(result["result"], "a", "what it said stays");
}

#[tokio::test]
async fn a_stream_that_is_taken_up_after_a_token_may_be_silent_for_as_long_as_between_tokens() {
    let short = 10 * SHORT;
    let daemon = Daemon::start_with(|config| limits(config, LONG, short)).await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    worker.allow(3);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    daemon.until_status(&job, "running").await;
    // All tokens there are lie in the job's log, so the worker's log gives no further one.
    worker.break_streams();
    let error = failure(&daemon, &job).await;
    assert_eq!(error["code"], "STREAM_STALLED");
    assert!(has_hint(&error, "stall_timeout_ms"), "{error}");
    assert!(worker.resumed() > 0, "the stream was taken up again");
}

#[tokio::test]
async fn a_stream_that_is_taken_over_after_a_crash_may_be_silent_for_as_long_as_between_tokens() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    worker.allow(3);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    daemon.until_status(&job, "running").await;
    // It answers, and sends nothing of what it had sent.
    worker.allow(0);
    let daemon = daemon.crash_and_restart_with(|config| limits(config, LONG, SHORT)).await;
    worker.register(&daemon.url("")).await;
    let error = failure(&daemon, &job).await;
    assert_eq!(error["code"], "STREAM_STALLED");
    assert!(has_hint(&error, "stall_timeout_ms"), "{error}");
    assert!(worker.resumed() > 0);
}

#[tokio::test]
async fn a_stream_that_is_taken_over_before_a_token_may_be_silent_for_as_long_as_before_the_first() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    worker.allow(1);
    let job = daemon.submit(json!({ "prompt": "x", "retry": "never" })).await;
    daemon.until_status(&job, "dispatched").await;
    let daemon = daemon.crash_and_restart_with(|config| limits(config, SHORT, LONG)).await;
    worker.register(&daemon.url("")).await;
    let error = failure(&daemon, &job).await;
    assert_eq!(error["code"], "STREAM_STALLED");
    assert!(has_hint(&error, "first_token_timeout_ms"), "{error}");
}

#[tokio::test]
async fn a_job_that_runs_for_too_long_fails_and_its_run_is_stopped() {
    let daemon = Daemon::start_with(|config| config.settings.job_time_limit_ms = 300).await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    for frames in [1, 3] {
        worker.allow(frames);
        let stopped = worker.cancelled();
        let job = daemon.submit(json!({ "prompt": "x", "retry": "never" })).await;
        let error = failure(&daemon, &job).await;
        assert_eq!(
            (error["code"].as_str(), &error["details"]["limit_ms"]),
            (Some("EXECUTION_TIMEOUT"), &json!(300))
        );
        assert!(has_hint(&error, "time limit"), "{error}");
        crate::daemon::until("the worker is told to stop", || async {
            (worker.cancelled() > stopped).then_some(())
        })
        .await;
    }
}
