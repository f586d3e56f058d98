//! Rarer misfortunes, on the fake engine: readers that leave, workers that freeze, jobs that kill.

use api_types::task::TaskStatus;
use api_types::{ErrorCode, TaskEvent};
use e2e::{Cluster, Engine, Received, WorkerOptions, until};
use rustix::process::Signal;
use serde_json::json;

#[tokio::test]
async fn a_job_whose_last_reader_left_is_cancelled() {
    let cluster = Cluster::start(Engine::Fake, 1).await;
    let task = json!({"prompt": "A long tale", "max_tokens": 1500, "temperature": 0});
    let job = cluster.submit(task).await;
    let mut stream = cluster.events(job, None).await;
    let mut received = Received::default();
    stream.read_until(&mut received, |received| !received.tokens().is_empty()).await;
    drop(stream);
    cluster.wait_for_status(job, TaskStatus::Cancelled).await;
    until("the slot is free", || async { (cluster.worker_health(0).await.slots_busy == 0).then_some(()) })
        .await;
}

#[tokio::test]
async fn a_reader_that_comes_back_misses_nothing() {
    let cluster = Cluster::start(Engine::Fake, 1).await;
    let task = json!({"prompt": "A tale in pieces", "max_tokens": 120, "temperature": 0});
    let (_, whole) = cluster.run(task.clone()).await;
    let job = cluster.submit(task).await;
    let mut received = Received::default();
    for pieces in 1..=4 {
        let mut stream = cluster.events(job, received.last_id()).await;
        stream.read_until(&mut received, |received| received.tokens().len() >= pieces * 20).await;
        // Leaves again at once, before any event, with the same place in hand.
        drop(cluster.events(job, received.last_id()).await);
    }
    let mut stream = cluster.events(job, received.last_id()).await;
    stream.read_until(&mut received, |_| false).await;
    received.assert_whole();
    assert_eq!(received.tokens(), whole.tokens());
}

#[tokio::test]
async fn the_same_key_is_the_same_job_also_after_a_crash() {
    let mut cluster = Cluster::start(Engine::Fake, 1).await;
    let task = json!({"model": "fake-bee", "prompt": "Once", "max_tokens": 8, "temperature": 0, "idempotency_key": "order-7"});
    let first = cluster.post("/v2/tasks", &task).await.expect("accepted");
    let again = cluster.post("/v2/tasks", &task).await.expect("accepted");
    assert_eq!(first["job_id"], again["job_id"]);
    cluster.kill_orchestrator();
    cluster.restart_orchestrator().await;
    let later = cluster.post("/v2/tasks", &task).await.expect("accepted");
    assert_eq!(first["job_id"], later["job_id"]);
    let mut other = task.clone();
    other["prompt"] = json!("Twice");
    let (status, body) = cluster.post("/v2/tasks", &other).await.expect_err("another task");
    assert_eq!((status, &body["error"]["code"]), (409, &json!("IDEMPOTENCY_CONFLICT")));
}

#[tokio::test]
async fn a_frozen_worker_is_noticed_and_its_late_words_are_dropped() {
    let mut cluster = Cluster::without_workers(Engine::Fake).await;
    // The first worker prefills so slowly that it freezes before its first token.
    let slow = "fake:fake-bee?seed=7&pace_ms=400&context=2048".to_owned();
    cluster.add_worker(WorkerOptions { model: Some(slow), ..WorkerOptions::default() }).await;
    let prompt = "honey and heather ".repeat(60);
    let job = cluster.submit(json!({"prompt": prompt, "max_tokens": 12, "temperature": 0})).await;
    until("it is handed out", || async {
        (cluster.task(job).await.status == TaskStatus::Dispatched).then_some(())
    })
    .await;
    cluster.workers[0].daemon.signal(Signal::STOP);
    cluster.add_worker(WorkerOptions::default()).await;
    let received = cluster.events(job, None).await.read_to_end().await;
    received.assert_whole();
    assert!(matches!(received.last(), Some(TaskEvent::End(_))), "{:?}", received.last());
    let view = cluster.task(job).await;
    assert_eq!(view.worker_id.expect("a worker").as_str(), cluster.workers[1].id);
    assert!(view.attempt > 1);

    cluster.workers[0].daemon.signal(Signal::CONT);
    cluster.wait_for_worker_state(&cluster.workers[0].id.clone(), "ready").await;
    until("the woken worker drops the run", || async {
        (cluster.worker_health(0).await.slots_busy == 0).then_some(())
    })
    .await;
    assert_eq!(
        cluster.events(job, None).await.read_to_end().await.events,
        received.events,
        "the record did not change"
    );
}

#[tokio::test]
async fn a_job_that_kills_workers_is_stopped_after_the_second() {
    let cluster = Cluster::start(Engine::Fake, 3).await;
    let job = cluster.submit(json!({"prompt": "[[crash]]", "max_tokens": 8, "temperature": 0})).await;
    let received = cluster.events(job, None).await.read_to_end().await;
    match received.last() {
        Some(TaskEvent::Error { code, .. }) => assert_eq!(*code, ErrorCode::Poison),
        other => panic!("poison is told, not {other:?}"),
    }
    let workers = cluster.get("/v2/workers").await.expect("a list");
    let lost = workers["workers"]
        .as_array()
        .expect("workers")
        .iter()
        .filter(|worker| worker["state"] == "lost")
        .count();
    assert_eq!(lost, 2, "the third worker was spared: {workers}");
}

#[tokio::test]
async fn interactive_jobs_go_before_batch() {
    let mut cluster = Cluster::without_workers(Engine::Fake).await;
    cluster.add_worker(WorkerOptions { slots: Some(1), ..WorkerOptions::default() }).await;
    let busy = cluster
        .submit(json!({"prompt": "First", "max_tokens": 60, "temperature": 0, "on_disconnect": "continue"}))
        .await;
    let batch = cluster
        .submit(json!({"prompt": "Later", "max_tokens": 4, "temperature": 0, "priority": "batch"}))
        .await;
    let urgent = cluster.submit(json!({"prompt": "Soon", "max_tokens": 4, "temperature": 0})).await;
    for job in [busy, batch, urgent] {
        cluster.wait_for_status(job, TaskStatus::Completed).await;
    }
    let dispatched = |view: api_types::task::TaskView| view.dispatched_at.expect("it ran");
    assert!(dispatched(cluster.task(urgent).await) <= dispatched(cluster.task(batch).await));
}

#[tokio::test]
async fn a_drained_worker_finishes_and_leaves() {
    let mut cluster = Cluster::start(Engine::Fake, 1).await;
    let job = cluster.submit(json!({"prompt": "Last", "max_tokens": 60, "temperature": 0})).await;
    let mut stream = cluster.events(job, None).await;
    let mut received = Received::default();
    stream.read_until(&mut received, |received| !received.tokens().is_empty()).await;
    let id = cluster.workers[0].id.clone();
    let answer =
        cluster.http.delete(cluster.url(&format!("/v2/workers/{id}"))).send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 202);
    stream.read_until(&mut received, |_| false).await;
    received.assert_whole();
    assert!(matches!(received.last(), Some(TaskEvent::End(_))));
    assert!(cluster.workers[0].daemon.ended().await.success());
}

#[tokio::test]
async fn one_correlation_id_runs_through_answers_and_every_programs_log() {
    let cluster = Cluster::start(Engine::Fake, 1).await;
    let task = json!({"model": "fake-bee", "prompt": "a prompt that no log may hold", "max_tokens": 4, "temperature": 0});
    let request =
        cluster.http.post(cluster.url("/v2/tasks")).header("X-Correlation-Id", "honey-42").json(&task);
    let accepted = cluster.send(request).await.expect("accepted");
    assert_eq!(accepted["correlation_id"], "honey-42");
    let job = accepted["job_id"].as_str().expect("an id").parse().expect("a job id");
    cluster.events(job, None).await.read_to_end().await.assert_whole();
    let logs = || [cluster.orchestrator.log(), cluster.workers[0].daemon.log()];
    until("both programs logged it", || async {
        logs().iter().all(|log| log.lines().any(|line| line.contains("honey-42"))).then_some(())
    })
    .await;
    assert!(logs().iter().all(|log| !log.contains("no log may hold")), "prompts stay out of logs");
}

#[tokio::test]
async fn a_pool_that_was_asked_is_news() {
    let cluster = Cluster::without_workers(Engine::Fake).await;
    let answer = cluster.http.get(cluster.url("/v2/events")).send().await.expect("a stream");
    let mut news = e2e::Stream::new(answer);
    cluster.post("/v2/pools", &json!({"pool_id": "here"})).await.expect("this machine can be asked");
    loop {
        let frame = news.next_frame().await.expect("news");
        let data: serde_json::Value = serde_json::from_slice(&frame.data).expect("JSON");
        if frame.event == "pool" && data["pool_id"] == "here" {
            assert_eq!(data["reachable"], true);
            assert!(data["ram_available_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{data}");
            return;
        }
    }
}
