//! A clock that was wrong at one start.

use rbees_orcd::clock::Wall;
use serde_json::{Value, json};

use crate::daemon::{Daemon, until};
use crate::worker::Worker;

const TEN_YEARS_MS: i64 = 10 * 365 * 24 * 3_600_000;

fn year(view: &Value, field: &str) -> u32 {
    let time = view[field].as_str().unwrap_or_else(|| panic!("no {field} in {view}"));
    time.split('-').next().and_then(|year| year.parse().ok()).expect("a year")
}

#[tokio::test]
async fn a_wrong_future_clock_at_one_start_is_gone_at_the_next() {
    let daemon = Daemon::start_with(|config| config.wall = Wall::ahead_by(TEN_YEARS_MS)).await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    let ended = daemon.submit(json!({ "prompt": "x" })).await;
    let wrong = year(&daemon.until_status(&ended, "completed").await, "submitted_at");
    worker.allow(0);
    // The last of them wait, one of them with a deadline that is to be met or missed in an hour.
    let mut waiting = Vec::new();
    for _ in 0..6 {
        waiting.push(daemon.submit(json!({ "prompt": "x", "deadline_ms": 3_600_000 })).await);
    }
    until("all slots are taken", || async { (worker.executed().len() == 5).then_some(()) }).await;

    let daemon = daemon.crash_and_restart().await;
    for job in waiting.iter().chain([&ended]) {
        let (_, view) = daemon.get(&format!("/v2/tasks/{job}")).await;
        assert!(year(&view, "submitted_at") < wrong - 8, "{view}");
    }
    let database = rusqlite::Connection::open(daemon.folder().join("orchestrator.db")).expect("opened");
    let latest: i64 = database
        .query_row("SELECT max(detail ->> '$.deadline_ms') FROM jobs", [], |row| row.get(0))
        .expect("a time");
    let in_an_hour = Wall::ahead_by(3_600_000).now();
    assert!(u64::try_from(latest).is_ok_and(|latest| latest <= in_an_hour.0), "{latest}");
    worker.register(&daemon.url("")).await;
    worker.allow(usize::MAX);
    for job in &waiting {
        daemon.until_status(job, "completed").await;
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_a_little_does_not_run_backward() {
    let daemon = Daemon::start_with(|config| config.wall = Wall::ahead_by(3_600_000)).await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    let first = daemon.submit(json!({ "prompt": "x" })).await;
    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    let second = daemon.submit(json!({ "prompt": "x" })).await;
    let (_, first) = daemon.get(&format!("/v2/tasks/{first}")).await;
    let (_, second) = daemon.get(&format!("/v2/tasks/{second}")).await;
    assert!(first["submitted_at"].as_str() < second["submitted_at"].as_str(), "{first} {second}");
}
