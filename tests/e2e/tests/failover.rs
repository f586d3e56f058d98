//! Workers are killed while they speak; jobs with `retry: continue` go on on another worker, and what
//! is joined is what one worker would have said.

use api_types::TaskEvent;
use api_types::event::RunEnd;
use e2e::{Cluster, Engine, Received, WorkerOptions};
use serde_json::{Value, json};

/// Tokens of the job that is disturbed.
const TOKENS: usize = 96;
/// Of the places where a worker can be killed, every so many are tried by the quick tests.
const TENTH: usize = 10;

fn end(received: &Received) -> &RunEnd {
    match received.last() {
        Some(TaskEvent::End(end)) => end,
        other => panic!("the job ends well, not with {other:?}"),
    }
}

/// Runs the task and kills its worker once `index` tokens were read.
async fn killed_at(cluster: &mut Cluster, task: &Value, index: usize) -> Received {
    let job = cluster.submit(task.clone()).await;
    let mut stream = cluster.events(job, None).await;
    let mut received = Received::default();
    stream.read_until(&mut received, |received| received.tokens().len() >= index).await;
    let runs_on = cluster.task(job).await.worker_id.expect("it runs");
    let place = cluster.workers.iter().position(|worker| worker.id == runs_on.as_str()).expect("one of ours");
    cluster.workers[place].daemon.kill();
    stream.read_until(&mut received, |_| false).await;
    received.assert_whole();
    cluster.add_worker(WorkerOptions::default()).await;
    received
}

/// The joined answer is that of an undisturbed run, wherever its worker is killed. Gives that answer.
async fn assert_joins(engine: Engine, task: &Value, step: usize) -> String {
    let mut cluster = Cluster::start(engine, 2).await;
    let (_, whole) = cluster.run(task.clone()).await;
    let mut seams = 0;
    for index in (1..=TOKENS).step_by(step) {
        let received = killed_at(&mut cluster, task, index).await;
        let seam = received.events.iter().find_map(|(_, event)| match event {
            TaskEvent::Seam { from_worker, to_worker, exact, .. } => {
                assert_ne!(from_worker, to_worker);
                Some(*exact)
            }
            _ => None,
        });
        assert_ne!(seam, Some(false), "killed at {index}: both workers are alike");
        seams += usize::from(seam.is_some());
        assert_eq!(received.text(), whole.text(), "killed at {index}");
        assert_eq!(received.tokens(), whole.tokens(), "killed at {index}");
        let (joined, one) = (end(&received), end(&whole));
        assert_eq!(
            (joined.tokens_in, joined.tokens_out, joined.stop_reason),
            (one.tokens_in, one.tokens_out, one.stop_reason),
            "killed at {index}"
        );
    }
    assert!(seams > 0, "at least one worker was killed before it had said all");
    whole.text()
}

fn greedy() -> Value {
    json!({"prompt": "Once upon a time", "max_tokens": TOKENS, "temperature": 0, "retry": "continue"})
}

fn drawn() -> Value {
    json!({"prompt": "Once upon a time", "max_tokens": TOKENS, "temperature": 1, "seed": 41, "retry": "continue"})
}

/// A job whose text must follow a schema.
fn formed() -> Value {
    let moods = json!({ "type": "array", "minItems": 2, "maxItems": 4, "items": { "enum": ["calm", "busy", "caf\u{e9}"] } });
    let place = json!({
        "type": "object",
        "properties": { "name": { "type": "string", "minLength": 4, "maxLength": 30 }, "known": { "type": "boolean" } },
        "required": ["name", "known"],
        "additionalProperties": false
    });
    let schema = json!({
        "type": "object",
        "properties": {
            "title": { "type": "string", "minLength": 8, "maxLength": 60 },
            "moods": moods,
            "year": { "type": "integer", "minimum": 1900, "maximum": 2100 },
            "place": place
        },
        "required": ["title", "moods", "year", "place"],
        "additionalProperties": false
    });
    json!({
        "messages": [{ "role": "user", "content": "Describe a day at the hive as JSON." }],
        "max_tokens": 400, "temperature": 0, "retry": "continue",
        "response_format": { "type": "json_schema", "json_schema": { "name": "day", "strict": true, "schema": schema } }
    })
}

/// What the schema of [`formed`] asks for.
fn assert_formed(text: &str) {
    let day: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let letters = |text: &Value| text.as_str().map_or(0, |text| text.chars().count());
    let (moods, place) = (day["moods"].as_array().expect("a list"), &day["place"]);
    assert!((8..=60).contains(&letters(&day["title"])), "{text}");
    assert!((2..=4).contains(&moods.len()), "{text}");
    assert!(
        moods.iter().all(|mood| ["calm", "busy", "caf\u{e9}"].iter().any(|known| mood == known)),
        "{text}"
    );
    assert!(day["year"].as_i64().is_some_and(|year| (1900..=2100).contains(&year)), "{text}");
    assert!((4..=30).contains(&letters(&place["name"])) && place["known"].is_boolean(), "{text}");
    let fields = |value: &Value| value.as_object().map(serde_json::Map::len);
    assert_eq!((fields(&day), fields(place)), (Some(4), Some(2)), "{text}");
}

#[tokio::test]
async fn a_form_is_kept_by_the_worker_that_goes_on() {
    assert_formed(&assert_joins(Engine::Fake, &formed(), 3 * TENTH).await);
}

#[tokio::test]
async fn real_model_a_form_is_kept_by_the_worker_that_goes_on() {
    assert_formed(&assert_joins(Engine::Real, &formed(), TENTH).await);
}

#[tokio::test]
async fn long_real_model_a_form_is_kept_wherever_a_worker_is_killed() {
    assert_formed(&assert_joins(Engine::Real, &formed(), 1).await);
}

#[tokio::test]
async fn a_killed_workers_job_goes_on_elsewhere() {
    assert_joins(Engine::Fake, &greedy(), TENTH).await;
}

#[tokio::test]
async fn a_seeded_job_goes_on_with_the_same_draws() {
    assert_joins(Engine::Fake, &drawn(), 3 * TENTH).await;
}

#[tokio::test]
async fn real_model_a_killed_workers_job_goes_on_elsewhere() {
    assert_joins(Engine::Real, &greedy(), TENTH).await;
}

#[tokio::test]
async fn real_model_a_seeded_job_goes_on_with_the_same_draws() {
    assert_joins(Engine::Real, &drawn(), 3 * TENTH).await;
}

#[tokio::test]
async fn long_real_model_a_worker_may_be_killed_at_any_token() {
    assert_joins(Engine::Real, &greedy(), 1).await;
}

#[tokio::test]
async fn orchestrator_and_worker_lost_together_repeat_and_skip_nothing() {
    let mut cluster = Cluster::start(Engine::Fake, 2).await;
    let task = json!({"prompt": "A long tale", "max_tokens": 300, "temperature": 0, "retry": "continue"});
    let (_, whole) = cluster.run(task.clone()).await;
    let job = cluster.submit(task).await;
    let mut stream = cluster.events(job, None).await;
    let mut received = Received::default();
    stream.read_until(&mut received, |received| received.tokens().len() >= 120).await;
    let runs_on = cluster.task(job).await.worker_id.expect("it runs");
    let place = cluster.workers.iter().position(|worker| worker.id == runs_on.as_str()).expect("one of ours");
    cluster.kill_orchestrator();
    cluster.workers[place].daemon.kill();
    cluster.restart_orchestrator().await;
    let mut stream = cluster.events(job, received.last_id()).await;
    stream.read_until(&mut received, |_| false).await;
    received.assert_whole();
    assert_eq!(received.tokens(), whole.tokens());
    let seams = received.events.iter().filter(|(_, event)| matches!(event, TaskEvent::Seam { .. })).count();
    assert_eq!(seams, 1, "it says that it changed hands");
    assert_eq!(cluster.events(job, None).await.read_to_end().await.events, received.events);
}
