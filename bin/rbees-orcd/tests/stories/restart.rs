//! The orchestrator dies without a goodbye; the workers go on.

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
