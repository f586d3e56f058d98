//! The orchestrator dies without a goodbye; the workers go on.

use futures_util::StreamExt as _;
use serde_json::json;

use crate::daemon::{Daemon, files_with, ids, names, text, until};
use crate::worker::Worker;

#[tokio::test]
async fn a_running_stream_goes_on_from_the_workers_log() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c", "d"]).await;
    worker.allow(4);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    let mut reader = daemon.follow(&job, None).await;
    let mut seen = Vec::new();
    while ids(&seen).last() != Some(&3) {
        seen.push(reader.next().await.expect("another event"));
    }
    daemon.until_status(&job, "running").await;

    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    worker.allow(usize::MAX);
    let rest = daemon.events(&job, Some(3)).await;
    assert_eq!(ids(&rest), [4, 5, 6]);
    assert_eq!(text(&seen) + text(&rest).as_str(), "abcd");
    let view = daemon.until_status(&job, "completed").await;
    assert_eq!((view["attempt"].as_u64(), view["result"].as_str()), (Some(1), Some("abcd")));
    assert_eq!(worker.executed().len(), 1, "the run went on; it was not run again");
    assert_eq!(names(&daemon.events(&job, None).await).first(), Some(&"queued"));
}

#[tokio::test]
async fn queued_jobs_run_after_a_restart() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    worker.allow(0);
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(daemon.submit(json!({ "prompt": "x" })).await);
    }
    until("all slots are taken", || async { (worker.executed().len() == 4).then_some(()) }).await;
    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    worker.allow(usize::MAX);
    for job in &jobs {
        let view = daemon.until_status(job, "completed").await;
        assert_eq!(view["result"], "a");
    }
    assert_eq!(worker.executed().len(), 6, "each job ran once");
}

#[tokio::test]
async fn an_ended_job_is_there_after_a_restart_without_its_prompt() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let secret = "a prompt that nobody may find later";
    let job = daemon.submit(json!({ "prompt": secret })).await;
    daemon.until_status(&job, "completed").await;
    let folder = daemon.folder().to_owned();
    let (_, before) = daemon.get(&format!("/v2/tasks/{job}")).await;
    let daemon = daemon.crash_and_restart().await;
    let (_, after) = daemon.get(&format!("/v2/tasks/{job}")).await;
    assert_eq!(before, after);
    assert_eq!(files_with(&folder, secret), [""; 0]);
}

#[tokio::test]
async fn a_reader_learns_of_the_end_when_all_events_were_lost() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c", "d"]).await;
    worker.allow(4);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    daemon.until_status(&job, "running").await;
    let daemon = daemon.crash_and_restart().await;
    // The worker was replaced meanwhile: the run and its log are gone.
    worker.forget_runs();
    worker.register(&daemon.url("")).await;
    let frames = daemon.events(&job, Some(3)).await;
    assert_eq!(names(&frames), ["error"]);
    assert_eq!(daemon.until_status(&job, "failed").await["error"]["code"], "WORKER_LOST");
}

#[tokio::test]
async fn numbers_go_on_after_the_jobs_that_are_there() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    let Daemon { home, server, http } = daemon;
    server.crash().await;
    let file = rusqlite::Connection::open(home.path().join("orchestrator.db")).expect("opened");
    file.execute("DELETE FROM meta WHERE key = 'last_number'", []).expect("forgotten");
    drop(file);
    let daemon = Daemon::open(home, http).await;
    worker.register(&daemon.url("")).await;
    worker.allow(usize::MAX);
    let next = daemon.submit(json!({ "prompt": "x" })).await;
    assert_ne!(job, next);
    daemon.until_status(&next, "completed").await;
}

const MANY: usize = 10_000;

#[tokio::test]
async fn b11_ten_thousand_queued_jobs_are_there_after_a_restart_in_their_order() {
    let daemon = Daemon::start_with(|config| config.settings.queue_capacity = None).await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    worker.allow(0);
    let submitted = futures_util::stream::iter(0..MANY).for_each_concurrent(64, |number| {
        let daemon = &daemon;
        async move {
            // Those in the slots are none of the batch jobs.
            let priority = if number > 100 && number % 4 == 0 { "batch" } else { "interactive" };
            let task = json!({ "prompt": "x", "on_disconnect": "continue", "priority": priority });
            let (status, answer) = daemon.post("/v2/tasks", task.to_string()).await;
            assert_eq!(status, 202, "{answer}");
        }
    });
    submitted.await;
    until("all slots are taken", || async { (worker.executed().len() == 4).then_some(()) }).await;
    let folder = daemon.folder().to_owned();
    let queue = || queued(&folder);
    let Daemon { home, server, http } = daemon;
    server.crash().await;
    let before = queue();
    assert_eq!(before.len(), MANY - 4);

    let started = std::time::Instant::now();
    let daemon = Daemon::open(home, http).await;
    let (status, _) = daemon.get("/readyz").await;
    println!("{MANY} jobs: ready after {} ms", started.elapsed().as_millis());
    assert_eq!((status, queue()), (200, before.clone()));
    // Every tenth of the queue knows how many go before it.
    for at in (0..before.len()).step_by(MANY / 10) {
        let (_, view) = daemon.get(&format!("/v2/tasks/{}", before[at])).await;
        assert_eq!(
            (view["status"].as_str(), view["queue_position"].as_u64()),
            (Some("queued"), Some(at as u64))
        );
    }
    worker.register(&daemon.url("")).await;
    worker.allow(usize::MAX);
    until("dispatches go on", || async { (worker.executed().len() >= 104).then_some(()) }).await;
    // Up to four are on their way to the worker at once.
    for (at, run) in worker.executed().iter().skip(4).take(100).enumerate() {
        let place = before.iter().position(|job| *job == run.job_id).expect("it was queued");
        assert!(place.abs_diff(at) <= 8, "number {place} of the queue was handed out as number {at}");
    }
}

/// The jobs that wait, as they stand in the database: by class, then in the order in which they came.
fn queued(folder: &std::path::Path) -> Vec<String> {
    let database = rusqlite::Connection::open(folder.join("orchestrator.db")).expect("opened");
    let mut statement = database
        .prepare("SELECT job_id FROM jobs WHERE status = 'queued' ORDER BY detail ->> '$.priority' = 'batch', number")
        .expect("a statement");
    let ids = statement.query_map([], |row| row.get(0)).expect("rows");
    ids.map(|id| api_types::JobId::from_uuid(uuid::Uuid::from_bytes(id.expect("an id"))).to_string())
        .collect()
}
