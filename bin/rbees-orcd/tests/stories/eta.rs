//! When a job may end, as clients hear of it.

use serde_json::{Value, json};

use crate::daemon::{Daemon, ids, names, until};
use crate::worker::Worker;

async fn learn(daemon: &Daemon, jobs: usize) {
    for _ in 0..jobs {
        let job = daemon.submit(json!({ "prompt": "x", "max_tokens": 8 })).await;
        daemon.until_status(&job, "completed").await;
    }
}

async fn hand_in(daemon: &Daemon, body: Value) -> (u16, Value) {
    daemon.post("/v2/tasks", body.to_string()).await
}

fn is_range(eta: &Value) -> bool {
    let part = |name: &str| eta[name].as_u64();
    part("p50").zip(part("p90")).is_some_and(|(p50, p90)| p50 <= p90)
}

#[tokio::test]
async fn an_estimate_is_told_once_something_was_learnt_and_outlives_a_restart_with_its_job() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    let (_, first) = hand_in(&daemon, json!({ "prompt": "x", "max_tokens": 8 })).await;
    assert!(first.get("eta_ms").is_none(), "nothing is made up: {first}");
    learn(&daemon, 3).await;
    worker.allow(0);
    let (status, running) = hand_in(&daemon, json!({ "prompt": "x", "max_tokens": 8 })).await;
    assert!(status == 202 && is_range(&running["eta_ms"]), "{running}");
    let id = running["job_id"].as_str().expect("an id").to_owned();
    let (_, view) = daemon.get(&format!("/v2/tasks/{id}")).await;
    assert!(is_range(&view["eta_ms"]), "{view}");
    let (_, list) = daemon.get("/v2/tasks").await;
    assert!(is_range(&list["tasks"][0]["eta_ms"]) && list["tasks"][1].get("eta_ms").is_none(), "{list}");
    let metrics = daemon.get("/metrics").await.1.as_str().expect("text").to_owned();
    assert!(metrics.contains("rbees_orcd_eta_jobs_total{kind=\"interactive\"} "), "{metrics}");
    assert!(metrics.contains("rbees_orcd_eta_inside_p90_total{kind=\"interactive\"} "), "{metrics}");
    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    worker.allow(usize::MAX);
    daemon.until_status(&id, "completed").await;
    let (_, why) = daemon.get(&format!("/v2/tasks/{id}/why")).await;
    assert!(is_range(&why["estimate"]["eta_ms"]) && why["estimate"]["actual_ms"].is_u64(), "{why}");
}

#[tokio::test]
async fn what_few_jobs_taught_is_known_after_a_stop() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    learn(&daemon, 2).await;
    let Daemon { home, server, http } = daemon;
    server.stop().await.expect("everything is on disk");
    let daemon = Daemon::open(home, http).await;
    worker.register(&daemon.url("")).await;
    let (_, job) = hand_in(&daemon, json!({ "prompt": "x", "max_tokens": 8 })).await;
    assert!(is_range(&job["eta_ms"]), "{job}");
}

#[tokio::test]
async fn a_deadline_that_cannot_be_kept_is_refused_with_the_estimate() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    learn(&daemon, 8).await;
    worker.allow(0);
    // Long answers were seen to take long: 2 of 8 tokens in 2 ms make seconds of many.
    let body = json!({ "prompt": "x".repeat(40), "max_tokens": 8, "deadline_ms": 1 });
    let (status, refusal) = hand_in(&daemon, body).await;
    assert_eq!((status, &refusal["error"]["code"]), (422, &json!("DEADLINE_UNMET")), "{refusal}");
    let details = &refusal["error"]["details"];
    assert!(is_range(&details["eta_ms"]) && details["deadline_ms"] == 1, "{refusal}");
    assert!(refusal["error"]["hint"].is_string());
}

#[tokio::test]
async fn readers_of_a_waiting_job_hear_that_the_queue_moves_and_no_record_is_kept_of_it() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    learn(&daemon, 2).await;
    worker.allow(0);
    let mut last = String::new();
    let began = worker.executed().len();
    until("all slots are taken and a job waits", || async {
        daemon.submit(json!({ "prompt": "x", "max_tokens": 8 })).await;
        let (_, health) = daemon.get("/health").await;
        (health["queue_depth"].as_u64() >= Some(2)).then_some(())
    })
    .await;
    last.push_str(&daemon.submit(json!({ "prompt": "x", "max_tokens": 8 })).await);
    assert!(worker.executed().len() > began);
    let mut live = daemon.follow(&last, None).await;
    let first = live.next().await.expect("queued");
    assert_eq!((&*first.event, first.id), ("queued", Some(0)));
    let news = live.next().await.expect("news");
    assert_eq!((&*news.event, news.id), ("queued", None));
    worker.allow(usize::MAX);
    let rest = live.rest().await;
    assert_eq!(names(&rest).last(), Some(&"end"));
    let again = daemon.events(&last, None).await;
    assert_eq!(names(&again), ["queued", "started", "token", "end"]);
    assert_eq!(ids(&again), [0, 1, 2, 3]);
}
