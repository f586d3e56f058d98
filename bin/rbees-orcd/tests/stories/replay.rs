//! Recorded jobs given to another policy, over HTTP.

use serde_json::json;

use crate::daemon::Daemon;
use crate::worker::Worker;

const DEFAULT: &str = include_str!("../../../../policies/default.rhai");
const HOLD_BATCH: &str = "fn admit(job, queue) { if job.priority == \"batch\" { 60000 } else { true } }";

#[tokio::test]
async fn what_was_decided_is_had_again_and_another_policy_is_compared() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    for n in 0..12 {
        let priority = if n % 2 == 0 { "batch" } else { "interactive" };
        let job = daemon.submit(json!({ "prompt": "x", "priority": priority })).await;
        daemon.until_status(&job, "completed").await;
    }
    let (status, live) = daemon.post("/v2/policy/replay", "{}").await;
    assert_eq!((status, &live["identical"]), (200, &json!(true)), "{live}");
    assert!(live["placements"].as_u64() >= Some(12), "{live}");
    assert!(live.get("what_if").is_none(), "{live}");

    let request = json!({ "name": "hold-batch", "source": HOLD_BATCH, "since_ms": 3_600_000 });
    let (status, other) = daemon.post("/v2/policy/replay", request.to_string()).await;
    assert_eq!((status, &other["identical"]), (200, &json!(true)), "{other}");
    let groups = other["what_if"]["groups"].as_array().expect("groups");
    let group = |name: &str| groups.iter().find(|group| group["group"] == name).expect("the group").clone();
    assert_eq!(group("batch")["before"]["completed"], 6, "{other}");
    assert!(group("batch")["after"]["p50_ms"].as_u64() >= Some(60_000), "{other}");
    assert!(group("interactive")["after"]["p50_ms"].as_u64() < Some(60_000), "{other}");
    let (_, shown) = daemon.get("/v2/policy").await;
    assert_eq!(shown["live"]["name"], "default", "a replay changes nothing");
}

/// Jobs that ran and waited when the orchestrator died live in two chapters of the journal.
#[tokio::test]
async fn jobs_that_outlived_an_orchestrator_are_compared_as_whole_ones() {
    let daemon = Daemon::start().await;
    let worker = Worker::start_with(&daemon.url(""), &["a", "b"], |facts| facts.slots = 1).await;
    worker.allow(0);
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(daemon.submit(json!({ "prompt": "x", "on_disconnect": "continue" })).await);
    }
    daemon.until_status(&jobs[0], "dispatched").await;
    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    worker.allow(usize::MAX);
    for job in &jobs {
        daemon.until_status(job, "completed").await;
    }
    let request = json!({ "name": "default", "source": DEFAULT });
    let (status, found) = daemon.post("/v2/policy/replay", request.to_string()).await;
    assert_eq!((status, &found["what_if"]["left_out"]), (200, &json!(0)), "{found}");
    let all = &found["what_if"]["groups"][0];
    for world in ["before", "after"] {
        assert_eq!((&all[world]["jobs"], &all[world]["completed"]), (&json!(4), &json!(4)), "{found}");
    }
    assert_eq!(all["before"], all["after"], "{found}");
}

#[tokio::test]
async fn a_script_that_does_not_compile_is_not_replayed() {
    let daemon = Daemon::start().await;
    let (status, refused) =
        daemon.post("/v2/policy/replay", json!({ "source": "fn score(" }).to_string()).await;
    assert_eq!((status, &refused["error"]["code"]), (422, &json!("SCRIPT_ERROR")), "{refused}");
}
