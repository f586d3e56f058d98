//! What is left on the disk of a prompt: everything while its job lives, nothing afterwards.

use serde_json::{Value, json};

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
    for job in [small, large] {
        assert_eq!(daemon.get(&format!("/v2/tasks/{job}")).await.1["prompt"], Value::Null);
    }
}

#[tokio::test]
async fn prompts_that_are_kept_outlive_their_jobs_and_the_daemon_until_they_are_erased() {
    let daemon = Daemon::start_with(|config| config.keeping.prompts = true).await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    let large = CANARY.repeat(2_000);
    let turns = json!([{ "role": "user", "content": CANARY }]);
    let one = daemon.submit(json!({ "prompt": large, "on_disconnect": "continue" })).await;
    let two = daemon.submit(json!({ "messages": turns, "on_disconnect": "continue" })).await;
    for job in [&one, &two] {
        daemon.until_status(job, "completed").await;
    }
    assert_eq!(prompts(&daemon), 1);
    // Who keeps no more prompts still has those that were kept.
    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    let three = daemon.submit(json!({ "prompt": CANARY, "on_disconnect": "continue" })).await;
    daemon.until_status(&three, "completed").await;
    let view = async |job: &str| daemon.get(&format!("/v2/tasks/{job}")).await.1;
    assert_eq!(view(&one).await["prompt"], large);
    assert_eq!(view(&two).await["messages"], turns);
    assert_eq!((&view(&two).await["prompt"], &view(&three).await["prompt"]), (&Value::Null, &Value::Null));
    let list = daemon.get("/v2/tasks").await.1;
    assert!(!list.to_string().contains(CANARY), "a list shows no prompts");

    for job in [&one, &two] {
        assert!(!files_with(daemon.folder(), CANARY).is_empty());
        assert_eq!(daemon.post(&format!("/v2/tasks/{job}/erase"), "").await.0, 200);
    }
    until("nothing holds the prompts", || async {
        files_with(daemon.folder(), CANARY).is_empty().then_some(())
    })
    .await;
    assert_eq!(prompts(&daemon), 0);
}

#[tokio::test]
async fn kept_prompts_go_with_their_jobs_once_the_time_is_over() {
    let daemon = Daemon::start_with(|config| {
        config.keeping.prompts = true;
        config.keeping.retention = std::time::Duration::ZERO;
    })
    .await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    for prompt in [CANARY.repeat(2_000), CANARY.to_owned()] {
        let job = daemon.submit(json!({ "prompt": prompt, "on_disconnect": "continue" })).await;
        daemon.until_status(&job, "completed").await;
        assert!(!files_with(daemon.folder(), CANARY).is_empty());
    }
    until("nothing holds the prompts", || async {
        // The millisecond of the end has to pass first.
        daemon.server.driver.prune();
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

#[tokio::test]
async fn an_ended_job_is_erased_on_demand_and_a_living_one_stays() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &[CANARY]).await;
    let task = json!({ "prompt": "x", "on_disconnect": "continue" });
    let one = daemon.submit(task.clone()).await;
    let two = daemon.submit(task.clone()).await;
    let mut in_memory = task.clone();
    in_memory["durability"] = "memory".into();
    let in_memory = daemon.submit(in_memory).await;
    for job in [&one, &two, &in_memory] {
        daemon.until_status(job, "completed").await;
    }
    worker.allow(0);
    let living = daemon.submit(task).await;
    let erase = async |job: &str| daemon.post(&format!("/v2/tasks/{job}/erase"), "").await;
    let status = async |job: &str| daemon.get(&format!("/v2/tasks/{job}")).await.0;

    let (code, answer) = erase(&living).await;
    assert_eq!((code, answer["error"]["code"].as_str()), (409, Some("JOB_NOT_ENDED")));
    assert_eq!(erase(&one).await, (200, json!({ "erased": 1 })));
    assert_eq!((status(&one).await, status(&two).await), (404, 200));
    assert_eq!(erase(&one).await.0, 404);
    assert_eq!(daemon.post("/v2/tasks/erase", "").await, (200, json!({ "erased": 2 })));
    assert_eq!((status(&two).await, status(&in_memory).await, status(&living).await), (404, 404, 200));
    until("nothing holds a result", || async {
        files_with(daemon.folder(), CANARY).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_erased_job_frees_its_key() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let submit = async || {
        let request = daemon.http.post(daemon.url("/v2/tasks")).header("idempotency-key", "k");
        let (status, answer) =
            crate::daemon::answer(request.body(json!({ "prompt": "x" }).to_string())).await;
        assert_eq!(status, 202, "{answer}");
        answer["job_id"].as_str().expect("an id").to_owned()
    };
    let first = submit().await;
    daemon.until_status(&first, "completed").await;
    assert_eq!(submit().await, first);
    daemon.post(&format!("/v2/tasks/{first}/erase"), "").await;
    assert_ne!(submit().await, first);
}

#[tokio::test]
async fn ended_jobs_are_deleted_once_their_time_is_over_and_not_before() {
    for (retention, kept) in [(0, 0), (3_600, 1)] {
        let daemon =
            Daemon::start_with(|config| config.keeping.retention = std::time::Duration::from_secs(retention))
                .await;
        let worker = Worker::start(&daemon.url(""), &["a"]).await;
        let ended = daemon.submit(json!({ "prompt": "x" })).await;
        daemon.until_status(&ended, "completed").await;
        worker.allow(0);
        daemon.submit(json!({ "prompt": "x" })).await;
        let listed = async || {
            let (_, list) = daemon.get("/v2/tasks").await;
            list["tasks"].as_array().expect("jobs").len()
        };
        daemon.server.driver.prune();
        // What is asked for later is done later: the journal is flushed after the pruning.
        until("the old ones are gone", || async { (listed().await == 1 + kept).then_some(()) }).await;
        daemon.server.driver.prune();
        daemon.server.driver.flush_journal().await.expect("flushed");
        assert_eq!(listed().await, 1 + kept, "a job that lives was deleted");
    }
}
