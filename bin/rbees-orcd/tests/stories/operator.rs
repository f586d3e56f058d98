//! What operators watch and scrape.

use serde_json::json;

use crate::daemon::{Daemon, Follower, until};
use crate::worker::Worker;

#[tokio::test]
async fn news_of_jobs_and_workers_come_live() {
    let daemon = Daemon::start().await;
    let answer = daemon.http.get(daemon.url("/v2/events")).send().await.expect("a stream");
    let mut news = Follower::new(answer);
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    let mut seen = Vec::new();
    loop {
        let frame = news.next().await.expect("news");
        let data: serde_json::Value = serde_json::from_slice(&frame.data).expect("JSON");
        assert_eq!(data["type"], *frame.event);
        seen.push(frame.event);
        if data["job_id"] == job && data["status"] == "completed" {
            break;
        }
    }
    assert!(seen.iter().any(|name| name == "worker"), "{seen:?}");
}

/// News are gathered, and each is there once and in order for everybody who watches.
#[tokio::test]
async fn every_watcher_sees_every_job_end_once() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let mut watchers = Vec::new();
    for _ in 0..3 {
        let answer = daemon.http.get(daemon.url("/v2/events")).send().await.expect("a stream");
        watchers.push(Follower::new(answer));
    }
    let mut jobs = Vec::new();
    for _ in 0..30 {
        jobs.push(daemon.submit(json!({ "prompt": "x" })).await);
    }
    for mut news in watchers {
        let mut ended = Vec::new();
        while ended.len() < jobs.len() {
            let frame = news.next().await.expect("news");
            let data: serde_json::Value = serde_json::from_slice(&frame.data).expect("JSON");
            assert_ne!(data["type"], "lagged", "{data}");
            if data["status"] == "completed" {
                ended.push(data["job_id"].as_str().expect("an id").to_owned());
            }
        }
        let mut ended_and_sorted = ended.clone();
        ended_and_sorted.sort();
        let mut expected = jobs.clone();
        expected.sort();
        assert_eq!(ended_and_sorted, expected);
    }
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    daemon.until_status(&job, "completed").await;
    let lines = [
        "rbees_orcd_submissions_total{kind=\"accepted\"} 1",
        "rbees_orcd_jobs_ended_total{kind=\"completed\"} 1",
        "rbees_orcd_tokens_relayed_total 2",
        "rbees_orcd_workers 1",
        "rbees_orcd_queue_depth 0",
        "rbees_orcd_queue_wait_seconds_count 1",
    ];
    until("all is counted", || async {
        let (_, text) = daemon.get("/metrics").await;
        let text = text.as_str().expect("text").to_owned();
        lines.iter().all(|line| text.lines().any(|found| found == *line)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn workers_are_found_by_the_beginning_of_their_id() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let (status, worker) = daemon.get("/v2/workers/worker-fake").await;
    assert_eq!((status, worker["state"].as_str()), (200, Some("ready")));
    let (status, body) = daemon.get("/v2/workers/worker-cuda").await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("WORKER_NOT_FOUND")));
    let (status, body) = daemon.get("/v2/pools/nowhere").await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("POOL_NOT_FOUND")));
}

#[tokio::test]
async fn health_is_counts() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let (status, health) = daemon.get("/health").await;
    assert_eq!(status, 200);
    assert_eq!((health["status"].as_str(), health["workers"].as_u64()), (Some("healthy"), Some(1)));
    assert_eq!((health["pools"].as_u64(), health["queue_depth"].as_u64()), (Some(0), Some(0)));
}
