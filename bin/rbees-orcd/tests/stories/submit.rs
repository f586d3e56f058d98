//! Hand in, follow, look up, list, explain.

use serde_json::json;

use crate::daemon::{Daemon, Follower, ids, names, text, until};
use crate::worker::{MODEL, Worker};

#[tokio::test]
async fn a_submitted_task_is_answered_and_kept() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["The", " answer", " \u{1f41d}"]).await;
    let request = json!({ "prompt": "Question", "temperature": 0 }).to_string();
    let (status, accepted) = daemon.post("/v2/tasks", request).await;
    assert_eq!(status, 202);
    assert_eq!(accepted["durability"], "durable");
    let job = accepted["job_id"].as_str().expect("an id");
    assert_eq!(accepted["events_url"], format!("/v2/tasks/{job}/events"));

    let view = daemon.until_status(job, "completed").await;
    assert_eq!(view["result"], "The answer \u{1f41d}");
    assert_eq!((view["end"]["tokens_in"].as_u64(), view["end"]["tokens_out"].as_u64()), (Some(7), Some(3)));
    assert_eq!(view["attempt"], 1);
    assert_eq!(view["model"], MODEL);

    let executed = worker.executed();
    assert_eq!(executed.len(), 1);
    assert_eq!(executed[0].prompt.as_deref(), Some("Question"));
    assert_eq!((executed[0].max_tokens, executed[0].first_event_id), (Some(512), Some(1)));
    assert!(executed[0].seed.is_some(), "a seed is drawn where none is given");
    until("the worker may forget its log", || async { (worker.acknowledged() == [job]).then_some(()) }).await;
}

#[tokio::test]
async fn a_stream_holds_every_event_once_and_in_order() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    let request = daemon.http.post(daemon.url("/v2/tasks?stream=true"));
    let answer = request.body(json!({ "prompt": "x" }).to_string()).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let job = answer.headers()["x-rbees-job-id"].to_str().expect("text").to_owned();
    let frames = Follower::new(answer).rest().await;
    let numbered: Vec<_> = frames.into_iter().filter(|frame| frame.id.is_some()).collect();
    assert_eq!(names(&numbered), ["queued", "started", "token", "token", "token", "end"]);
    assert_eq!(ids(&numbered), [0, 1, 2, 3, 4, 5]);
    assert_eq!(text(&numbered), "abc");
    let raw =
        |frames: &[api_types::sse::Frame]| frames.iter().map(|frame| frame.raw.clone()).collect::<Vec<_>>();
    assert_eq!(raw(&daemon.events(&job, None).await), raw(&numbered), "read again, the same bytes");
}

#[tokio::test]
async fn progress_before_the_first_token_reaches_live_readers_only() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    worker.allow(1);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    until("the run began", || async { (worker.executed().len() == 1).then_some(()) }).await;
    let mut live = daemon.follow(&job, None).await;
    assert_eq!(live.next().await.expect("queued").event, "queued");
    worker.allow(2);
    let progress = live.next().await.expect("progress");
    assert_eq!((&*progress.event, progress.id), ("metrics", None));
    worker.allow(usize::MAX);
    assert_eq!(names(&live.rest().await), ["started", "token", "end"]);
    assert_eq!(names(&daemon.events(&job, None).await), ["queued", "started", "token", "end"]);
}

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        let job = daemon.submit(json!({ "prompt": "x" })).await;
        daemon.until_status(&job, "completed").await;
        jobs.push(job);
    }
    let (_, page) = daemon.get("/v2/tasks?limit=2&status=completed").await;
    let listed: Vec<_> =
        page["tasks"].as_array().expect("tasks").iter().map(|task| &task["job_id"]).collect();
    assert_eq!(listed, [&json!(jobs[2]), &json!(jobs[1])]);
    let cursor = page["cursor"].as_str().expect("there are more");
    let (_, rest) = daemon.get(&format!("/v2/tasks?limit=2&status=completed&cursor={cursor}")).await;
    assert_eq!(rest["tasks"][0]["job_id"], jobs[0]);
    assert!(rest.get("cursor").is_none());
    assert_eq!(daemon.get("/v2/tasks?status=failed").await.1["tasks"], json!([]));
}

#[tokio::test]
async fn a_placement_is_explained() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    daemon.until_status(&job, "completed").await;
    let (status, why) = daemon.get(&format!("/v2/tasks/{job}/why")).await;
    assert_eq!(status, 200);
    assert_eq!(why["decisions"][0]["picked"], "worker-fake-0123456789ab");
    assert!(why["summary"].as_str().is_some_and(|text| !text.is_empty()));
}

#[tokio::test]
async fn a_job_kept_in_memory_is_answered_too() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    let job = daemon.submit(json!({ "prompt": "x", "durability": "memory" })).await;
    let view = daemon.until_status(&job, "completed").await;
    assert_eq!(view["result"], "ab");
    assert_eq!(names(&daemon.events(&job, None).await), ["queued", "started", "token", "token", "end"]);
    let bytes = std::fs::read(daemon.folder().join("orchestrator.db")).expect("the database");
    assert!(!bytes.windows(job.len()).any(|window| window == job.as_bytes()));
}
