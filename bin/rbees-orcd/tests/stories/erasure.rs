//! What is left on the disk of a prompt: everything while its job lives, nothing afterwards.

use serde_json::json;

use crate::daemon::{Daemon, files_with, until};
use crate::worker::Worker;

const CANARY: &str = "canary-7391";

fn prompts(daemon: &Daemon) -> usize {
    std::fs::read_dir(daemon.folder().join("prompts")).expect("the folder").count()
}

#[tokio::test]
async fn a_prompt_is_on_disk_while_its_job_lives_and_nowhere_after_its_end() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    worker.allow(0);
    let small = daemon.submit(json!({ "prompt": CANARY })).await;
    let large = daemon.submit(json!({ "prompt": CANARY.repeat(2_000) })).await;
    assert_eq!(prompts(&daemon), 1, "the large one has a file of its own, the small one has not");
    assert!(files_with(daemon.folder(), CANARY).len() >= 2);
    worker.allow(usize::MAX);
    daemon.until_status(&small, "completed").await;
    daemon.until_status(&large, "completed").await;
    daemon.server.driver.prune();
    until("nothing holds the prompt", || async {
        files_with(daemon.folder(), CANARY).is_empty().then_some(())
    })
    .await;
    assert_eq!(prompts(&daemon), 0);
}

#[tokio::test]
async fn a_large_prompt_is_handed_out_after_a_crash() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    worker.allow(0);
    let prompt = CANARY.repeat(4_000);
    for _ in 0..6 {
        daemon.submit(json!({ "prompt": prompt })).await;
    }
    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    worker.allow(usize::MAX);
    until("all ran", || async { (worker.executed().len() == 6).then_some(()) }).await;
    assert!(worker.executed().iter().all(|run| run.prompt.as_deref() == Some(prompt.as_str())));
}

#[tokio::test]
async fn the_file_of_a_refused_task_is_erased() {
    let daemon = Daemon::start_with(|config| config.settings.queue_capacity = Some(1)).await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let task = json!({ "prompt": CANARY.repeat(2_000), "model": "nobody-has-it" }).to_string();
    let (status, answer) = daemon.post("/v2/tasks", task).await;
    assert!(status >= 400, "{answer}");
    until("the file is gone", || async { (prompts(&daemon) == 0).then_some(()) }).await;
}

#[tokio::test]
async fn files_that_a_crash_left_are_swept_at_the_start() {
    let daemon = Daemon::start().await;
    let stray = daemon.folder().join("prompts").join("0191b2c3-0000-7000-8000-000000000000.json");
    std::fs::write(&stray, CANARY).expect("written");
    let daemon = daemon.crash_and_restart().await;
    assert_eq!(prompts(&daemon), 0);
}
