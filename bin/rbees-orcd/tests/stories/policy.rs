//! Policies over HTTP: checked, set, shadowed, promoted, rolled back, kept.

use serde_json::{Value, json};

use crate::daemon::{Daemon, answer, until};
use crate::worker::Worker;

const FULLEST: &str = "fn score(job, worker) { 100 - worker.slots_free }";

fn put(name: &str, source: &str) -> Value {
    json!({ "name": name, "source": source })
}

async fn put_to(daemon: &Daemon, path: &str, body: Value) -> (u16, Value) {
    answer(daemon.http.put(daemon.url(path)).body(body.to_string())).await
}

#[tokio::test]
async fn a_script_becomes_live_and_is_there_after_a_restart() {
    let daemon = Daemon::start().await;
    let (status, set) = put_to(&daemon, "/v2/policy", put("fullest", FULLEST)).await;
    assert_eq!(status, 200, "{set}");
    assert_eq!(set["live"]["name"], "fullest");
    assert_eq!(set["last_good"]["name"], "default");
    let daemon = daemon.crash_and_restart().await;
    let (_, shown) = daemon.get("/v2/policy").await;
    assert_eq!(shown["live"], set["live"]);
    let (status, back) = daemon.post("/v2/policy/rollback", "").await;
    assert_eq!((status, &back["live"]["name"]), (200, &json!("default")));
}

#[tokio::test]
async fn a_script_that_does_not_compile_changes_nothing_and_says_where() {
    let daemon = Daemon::start().await;
    put_to(&daemon, "/v2/policy", put("fullest", FULLEST)).await;
    let (status, refused) =
        put_to(&daemon, "/v2/policy", put("broken", "fn score(job, worker) {\n  1 +\n}")).await;
    assert_eq!((status, &refused["error"]["code"]), (422, &json!("SCRIPT_ERROR")), "{refused}");
    assert_eq!(refused["error"]["details"]["line"], 3, "{refused}");
    let (_, shown) = daemon.get("/v2/policy").await;
    assert_eq!(shown["live"]["name"], "fullest");
}

#[tokio::test]
async fn a_script_that_fails_when_it_is_tried_is_not_set() {
    let daemon = Daemon::start().await;
    let endless = put("endless", "fn score(job, worker) { loop { } }");
    for (path, body) in [("/v2/policy", endless.clone()), ("/v2/policy/shadow", json!({ "policy": endless }))]
    {
        let (status, refused) = put_to(&daemon, path, body).await;
        assert_eq!((status, &refused["error"]["code"]), (422, &json!("SCRIPT_ERROR")), "{path}: {refused}");
        assert_eq!(refused["error"]["details"]["limit"], "operations", "{refused}");
    }
    let (_, shown) = daemon.get("/v2/policy").await;
    assert_eq!((&shown["live"]["name"], shown.get("shadow")), (&json!("default"), None), "{shown}");
}

/// Passes its check, where prompts are long, and fails at every job of the test.
const FAILS_LATER: &str = "fn score(job, worker) { if job.prompt_bytes < 100 { throw \"no\"; } 1 }";

#[tokio::test]
async fn a_policy_that_keeps_failing_is_taken_out_of_force_and_shown() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let (status, set) = put_to(&daemon, "/v2/policy", put("later", FAILS_LATER)).await;
    assert_eq!(status, 200, "{set}");
    for n in 0..10 {
        daemon.submit(json!({ "prompt": format!("job {n}"), "max_tokens": 1 })).await;
    }
    let shown = until("the policy is demoted", || async {
        let (_, shown) = daemon.get("/v2/policy").await;
        shown.get("demoted").is_some().then_some(shown)
    })
    .await;
    assert_eq!(
        (&shown["live"]["name"], &shown["demoted"]["policy"]["name"]),
        (&json!("default"), &json!("later"))
    );
    assert_eq!(shown["demoted"]["last_failure"]["hook"], "score", "{shown}");
    let metrics = daemon.get("/metrics").await.1;
    let metrics = metrics.as_str().expect("text");
    assert!(metrics.contains("rbees_orcd_policy_demotions_total 1"), "{metrics}");
}

#[tokio::test]
async fn a_check_tells_what_would_be_said_and_changes_nothing() {
    let daemon = Daemon::start().await;
    let (status, good) = daemon.post("/v2/policy/check", put("fullest", FULLEST).to_string()).await;
    assert_eq!((status, &good["ok"]), (200, &json!(true)), "{good}");
    let endless = "fn admit(job, queue) { loop { } }";
    let (_, bad) = daemon.post("/v2/policy/check", put("endless", endless).to_string()).await;
    assert_eq!((&bad["ok"], &bad["errors"][0]["limit"]), (&json!(false), &json!("operations")), "{bad}");
    let (_, shown) = daemon.get("/v2/policy").await;
    assert_eq!(shown["live"]["name"], "default");
}

#[tokio::test]
async fn a_shadow_is_promoted_in_one_step_and_without_one_there_is_nothing_to_promote() {
    let daemon = Daemon::start().await;
    let (status, none) = daemon.post("/v2/policy/promote", "").await;
    assert_eq!((status, &none["error"]["code"]), (404, &json!("POLICY_NOT_FOUND")), "{none}");
    let shadow = json!({ "policy": put("fullest", FULLEST) });
    let (_, set) = put_to(&daemon, "/v2/policy/shadow", shadow).await;
    assert_eq!(
        (&set["live"]["name"], &set["shadow"]["policy"]["name"]),
        (&json!("default"), &json!("fullest"))
    );
    let (_, promoted) = daemon.post("/v2/policy/promote", "").await;
    assert_eq!(promoted["live"]["name"], "fullest");
    assert_eq!(promoted.get("shadow"), None);
}
