//! What users are promised, on the fake engine and on the real model.

use api_types::task::TaskStatus;
use api_types::{ErrorCode, StopReason, TaskEvent};
use e2e::{Cluster, Engine, Received, WorkerOptions, until};
use serde_json::{Value, json};

/// Runs each story once per engine.
macro_rules! stories {
    ($($story:ident),* $(,)?) => {
        mod on_the_fake_engine {
            $(#[tokio::test] async fn $story() { super::$story(e2e::Engine::Fake).await; })*
        }
        mod on_the_real_model {
            $(#[tokio::test] async fn $story() { super::$story(e2e::Engine::Real).await; })*
        }
    };
}

stories! {
    an_answer_streams_and_is_kept,
    messages_go_through_the_chat_template,
    the_whole_stack_says_what_the_worker_says_directly,
    a_killed_orchestrator_takes_a_greedy_stream_up_again,
    a_killed_orchestrator_takes_a_drawn_stream_up_again,
    queued_jobs_outlive_a_killed_orchestrator,
    a_worker_killed_before_the_first_token_costs_nothing,
    a_worker_killed_after_the_first_token_is_told,
    a_cancelled_job_stops_and_frees_its_slot,
    a_prompt_longer_than_the_context_is_refused_with_both_counts,
    four_jobs_share_each_step,
    a_stopped_orchestrator_leaves_its_runs_to_the_next,
}

/// A story long enough to interfere with.
fn long_task(temperature: f64) -> Value {
    json!({"prompt": "Once upon a time there was a bee that", "max_tokens": 160, "temperature": temperature, "seed": 42})
}

/// A prompt whose prefill takes long enough to interfere with.
fn slow_to_start(engine: Engine) -> Value {
    let times = if engine == Engine::Real { 100 } else { 25 };
    let prompt = "The bees of the northern hills gather heather honey late in the year. ".repeat(times);
    json!({"prompt": prompt, "max_tokens": 8, "temperature": 0})
}

fn tokens_at_least(count: usize) -> impl FnMut(&Received) -> bool {
    move |received| received.tokens().len() >= count
}

async fn an_answer_streams_and_is_kept(engine: Engine) {
    let cluster = Cluster::start(engine, 1).await;
    let (job, received) =
        cluster.run(json!({"prompt": "The capital of France is", "max_tokens": 16, "temperature": 0})).await;
    let names: Vec<&str> = received.events.iter().map(|(_, event)| event.name()).collect();
    assert_eq!(names.first(), Some(&"queued"));
    assert_eq!(names.get(1), Some(&"started"));
    assert_eq!(names.last(), Some(&"end"));
    let view = cluster.task(job).await;
    assert_eq!(view.status, TaskStatus::Completed);
    assert_eq!(view.result, Some(received.text()));
    let end = view.end.expect("figures");
    assert_eq!(end.tokens_out as usize, received.tokens().len());
    assert!(end.tokens_in > 0);
    assert_eq!(
        cluster.events(job, None).await.read_to_end().await.events,
        received.events,
        "a second reading is the same"
    );
    let why = cluster.why(job).await;
    assert_eq!(why.decisions.len(), 1);
    assert_eq!(why.decisions[0].picked.as_ref().map(|id| id.as_str()), Some(cluster.workers[0].id.as_str()));
}

async fn messages_go_through_the_chat_template(engine: Engine) {
    let cluster = Cluster::start(engine, 1).await;
    let messages = json!([{"role": "user", "content": "Say hello."}]);
    let tokenize = format!("{}/tokenize", cluster.workers[0].uri);
    let counted =
        cluster.send(cluster.http.post(tokenize).json(&json!({"messages": messages}))).await.expect("counts");
    let (job, _) = cluster.run(json!({"messages": messages, "max_tokens": 8, "temperature": 0})).await;
    let end = cluster.task(job).await.end.expect("figures");
    assert_eq!(json!(end.tokens_in), counted["count"], "the template's tokens are counted");
}

/// That the worker says what its engine says is the worker's own test.
async fn the_whole_stack_says_what_the_worker_says_directly(engine: Engine) {
    let cluster = Cluster::start(engine, 1).await;
    let inputs = [
        json!({"prompt": "The three colours of the flag of France are"}),
        json!({"messages": [{"role": "user", "content": "Name three fruits."}]}),
    ];
    for mut task in inputs {
        task["max_tokens"] = json!(32);
        task["temperature"] = json!(0);
        let (job, relayed) = cluster.run(task.clone()).await;
        task["job_id"] = json!("by-hand");
        let execute = format!("{}/execute", cluster.workers[0].uri);
        let answer = cluster.http.post(execute).json(&task).send().await.expect("the worker answers");
        let direct = e2e::Stream::new(answer).read_to_end().await;
        assert_eq!(relayed.tokens(), direct.tokens());
        let Some(TaskEvent::End(end)) = direct.last() else { panic!("it ends: {direct:?}") };
        let through = cluster.task(job).await.end.expect("figures");
        assert_eq!((through.tokens_in, through.stop_reason), (end.tokens_in, end.stop_reason));
    }
}

async fn a_killed_orchestrator_takes_a_greedy_stream_up_again(engine: Engine) {
    killed_while_streaming(engine, 0.0).await;
}

async fn a_killed_orchestrator_takes_a_drawn_stream_up_again(engine: Engine) {
    killed_while_streaming(engine, 1.0).await;
}

async fn killed_while_streaming(engine: Engine, temperature: f64) {
    let mut cluster = Cluster::start(engine, 1).await;
    let (_, undisturbed) = cluster.run(long_task(temperature)).await;
    let prefills = cluster.worker_metric(0, "rbees_worker_prefills_total").await;
    assert!(prefills >= 1.0, "the worker counts its prefills");

    let job = cluster.submit(long_task(temperature)).await;
    let mut received = Received::default();
    let mut stream = cluster.events(job, None).await;
    stream.read_until(&mut received, tokens_at_least(10)).await;
    cluster.kill_orchestrator();
    stream.read_until(&mut received, |_| false).await;
    assert!(!received.last().expect("events").is_last(), "the stream was cut while it ran");

    cluster.restart_orchestrator().await;
    let mut stream = cluster.events(job, received.last_id()).await;
    stream.read_until(&mut received, |_| false).await;

    received.assert_whole();
    assert_eq!(received.tokens(), undisturbed.tokens(), "the joined tokens equal the undisturbed run");
    assert_eq!(cluster.task(job).await.attempt, 1);
    let after = cluster.worker_metric(0, "rbees_worker_prefills_total").await;
    assert_eq!(after, prefills + 1.0, "the run went on and was not run again");
    assert_eq!(cluster.task(job).await.result, Some(undisturbed.text()));
}

async fn queued_jobs_outlive_a_killed_orchestrator(engine: Engine) {
    let mut cluster = Cluster::without_workers(engine).await;
    cluster.add_worker(WorkerOptions { slots: Some(1), ..WorkerOptions::default() }).await;
    let mut jobs = Vec::new();
    for n in 0..6 {
        jobs.push(cluster.submit(json!({"prompt": format!("Bee number {n} flew to"), "max_tokens": 12, "temperature": 0, "on_disconnect": "continue"})).await);
    }
    cluster.kill_orchestrator();
    cluster.restart_orchestrator().await;
    for job in jobs {
        let received = cluster.events(job, None).await.read_to_end().await;
        received.assert_whole();
        assert_eq!(cluster.task(job).await.status, TaskStatus::Completed);
    }
}

/// Index of the worker that runs the job, once it is dispatched.
async fn worker_of(cluster: &Cluster, job: api_types::JobId) -> usize {
    let id = until("the job is handed out", || async { cluster.task(job).await.worker_id }).await;
    cluster.workers.iter().position(|worker| worker.id == id.as_str()).expect("one of ours")
}

async fn a_worker_killed_before_the_first_token_costs_nothing(engine: Engine) {
    let mut cluster = Cluster::without_workers(engine).await;
    for _ in 0..2 {
        let slow = "fake:fake-bee?seed=7&pace_ms=100&context=2048".to_owned();
        let model = (engine == Engine::Fake).then_some(slow);
        cluster.add_worker(WorkerOptions { model, ..WorkerOptions::default() }).await;
    }
    let job = cluster.submit(slow_to_start(engine)).await;
    let victim = worker_of(&cluster, job).await;
    assert_eq!(cluster.task(job).await.status, TaskStatus::Dispatched, "no token has been sent");
    cluster.workers[victim].daemon.kill();

    let received = cluster.events(job, None).await.read_to_end().await;
    received.assert_whole();
    assert!(matches!(received.last(), Some(TaskEvent::End(_))), "{:?}", received.last());
    let view = cluster.task(job).await;
    assert_eq!(view.attempt, 2);
    assert_ne!(view.worker_id.expect("a worker").as_str(), cluster.workers[victim].id);
    let undisturbed = cluster.run(slow_to_start(engine)).await.1;
    assert_eq!(received.tokens(), undisturbed.tokens());
}

async fn a_worker_killed_after_the_first_token_is_told(engine: Engine) {
    let mut cluster = Cluster::start(engine, 1).await;
    let job = cluster.submit(long_task(0.0)).await;
    let mut received = Received::default();
    let mut stream = cluster.events(job, None).await;
    stream.read_until(&mut received, tokens_at_least(5)).await;
    cluster.workers[0].daemon.kill();
    stream.read_until(&mut received, |_| false).await;
    received.assert_whole();
    match received.last() {
        Some(TaskEvent::Error { code, .. }) => assert_eq!(*code, ErrorCode::WorkerLost),
        other => panic!("the loss is told, not {other:?}"),
    }
    let view = cluster.task(job).await;
    assert_eq!((view.status, view.attempt), (TaskStatus::Failed, 1));
    cluster.wait_for_worker_state(&cluster.workers[0].id.clone(), "lost").await;
}

async fn a_cancelled_job_stops_and_frees_its_slot(engine: Engine) {
    let mut cluster = Cluster::without_workers(engine).await;
    cluster.add_worker(WorkerOptions { slots: Some(1), ..WorkerOptions::default() }).await;
    let job = cluster.submit(long_task(0.0)).await;
    let mut received = Received::default();
    let mut stream = cluster.events(job, None).await;
    stream.read_until(&mut received, tokens_at_least(5)).await;
    let answer =
        cluster.http.post(cluster.url(&format!("/v2/tasks/{job}/cancel"))).send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 202);
    stream.read_until(&mut received, |_| false).await;
    received.assert_whole();
    match received.last() {
        Some(TaskEvent::End(end)) => assert_eq!(end.stop_reason, StopReason::Cancelled),
        other => panic!("a cancelled stream ends, not {other:?}"),
    }
    assert!(received.tokens().len() < 160, "it stopped before its end");
    assert_eq!(cluster.task(job).await.status, TaskStatus::Cancelled);
    let again =
        cluster.http.delete(cluster.url(&format!("/v2/tasks/{job}"))).send().await.expect("an answer");
    assert_eq!(again.status().as_u16(), 200, "cancelling again changes nothing");
    cluster.run(json!({"prompt": "Next", "max_tokens": 2, "temperature": 0})).await;
    until("the slot is free", || async { (cluster.worker_health(0).await.slots_busy == 0).then_some(()) })
        .await;
}

async fn a_prompt_longer_than_the_context_is_refused_with_both_counts(engine: Engine) {
    let cluster = Cluster::start(engine, 1).await;
    let task = json!({"model": engine.model(), "prompt": "honey ".repeat(4000), "max_tokens": 8});
    let (code, details) = match cluster.post("/v2/tasks", &task).await {
        Err((status, body)) => {
            assert_eq!(status, 422);
            (body["error"]["code"].clone(), body["error"]["details"].clone())
        }
        Ok(accepted) => {
            let job = accepted["job_id"].as_str().expect("an id").parse().expect("a job id");
            let received = cluster.events(job, None).await.read_to_end().await;
            received.assert_whole();
            assert!(received.tokens().is_empty(), "no token came");
            let last = serde_json::to_value(received.last()).expect("JSON");
            (last["code"].clone(), last["details"].clone())
        }
    };
    assert_eq!(code, "CONTEXT_OVERFLOW");
    assert!(details["prompt_tokens"].as_u64().is_some_and(|count| count > 2048), "{details}");
    assert_eq!(details["context_length"], 2048);
}

async fn four_jobs_share_each_step(engine: Engine) {
    let cluster = Cluster::start(engine, 1).await;
    let mut jobs = Vec::new();
    for n in 0..4 {
        jobs.push(cluster.submit(json!({"prompt": format!("Story {n}: once upon a time"), "max_tokens": 96, "temperature": 0, "on_disconnect": "continue"})).await);
    }
    for job in jobs {
        cluster.events(job, None).await.read_to_end().await.assert_whole();
    }
    assert_eq!(cluster.worker_metric(0, "rbees_worker_step_rows_max").await, 4.0);
}

async fn a_stopped_orchestrator_leaves_its_runs_to_the_next(engine: Engine) {
    let mut cluster = Cluster::start(engine, 1).await;
    let (_, undisturbed) = cluster.run(long_task(0.0)).await;
    let job = cluster.submit(long_task(0.0)).await;
    let mut received = Received::default();
    let mut stream = cluster.events(job, None).await;
    stream.read_until(&mut received, tokens_at_least(5)).await;
    cluster.orchestrator.signal(rustix::process::Signal::TERM);
    stream.read_until(&mut received, |_| false).await;
    assert!(cluster.orchestrator.ended().await.success(), "an ordered end");
    cluster.restart_orchestrator().await;
    let mut stream = cluster.events(job, received.last_id()).await;
    stream.read_until(&mut received, |_| false).await;
    received.assert_whole();
    assert_eq!(received.tokens(), undisturbed.tokens());
}
