//! Workers are killed while they speak; jobs with `retry: continue` go on on another worker, and what
//! is joined is what one worker would have said.
//!
//! Where a worker is killed is no matter of timing: a wire lets so many tokens through to the
//! orchestrator and holds the next one until the process is gone.

use api_types::TaskEvent;
use api_types::event::RunEnd;
use api_types::worker::EXACT_REPLAY;
use campaign::Ledger;
use e2e::{Cluster, Engine, Received, Wire, WorkerOptions};
use serde::Serialize;
use serde_json::{Value, json};

/// Tokens of the job that is disturbed.
const TOKENS: usize = 96;
/// Of the places where a worker can be killed, every so many are tried by the quick tests.
const TENTH: usize = 10;
/// Nobody here waits long for the next attempt.
const SHORT_PAUSE: &str = "retry_backoff_first_ms = 20\n";

fn end(received: &Received) -> &RunEnd {
    match received.last() {
        Some(TaskEvent::End(end)) => end,
        other => panic!("the job ends well, not with {other:?}"),
    }
}

/// Two workers, each behind a wire. When one is killed another takes its place.
struct Pair {
    cluster: Cluster,
    /// In the order of the cluster's workers.
    wires: Vec<Wire>,
    living: [usize; 2],
}

/// What came of a job whose worker was killed.
struct Joined {
    received: Received,
    lost: String,
    took_over: String,
}

impl Pair {
    async fn start(engine: Engine) -> Self {
        let cluster = Cluster::prepared(engine, |folder| {
            let place = folder.join("config/rbees");
            std::fs::create_dir_all(&place).expect("a folder");
            std::fs::write(place.join("orchestrator.toml"), SHORT_PAUSE).expect("written");
        })
        .await;
        let mut pair = Self { cluster, wires: Vec::new(), living: [0, 1] };
        pair.add_worker().await;
        pair.add_worker().await;
        pair
    }

    async fn add_worker(&mut self) -> usize {
        let wire = Wire::open(self.cluster.address()).await;
        let orchestrator = Some(wire.orchestrator.clone());
        let place = self.cluster.add_worker(WorkerOptions { orchestrator, ..WorkerOptions::default() }).await;
        self.wires.push(wire);
        place
    }

    /// Runs the task and kills its worker when exactly `index` tokens have come from it; with 0, when
    /// its run has begun.
    async fn killed_at(&mut self, task: &Value, index: usize) -> Joined {
        let [a, b] = self.living;
        self.wires[a].allow(index);
        self.wires[b].allow(index);
        let job = self.cluster.submit(task.clone()).await;
        let mut stream = self.cluster.events(job, None).await;
        let mut received = Received::default();
        let (held, other) = tokio::select! {
            () = self.wires[a].holds() => (a, b),
            () = self.wires[b].holds() => (b, a),
        };
        stream.read_until(&mut received, |received| received.tokens().len() >= index).await;
        assert_eq!(received.tokens().len(), index, "nothing passes a wire that holds");
        self.wires[other].open_up();
        self.cluster.workers[held].daemon.kill();
        self.wires[held].cut().await;
        stream.read_until(&mut received, |_| false).await;
        received.assert_whole();
        let name = |place: usize| self.cluster.workers[place].id.clone();
        let (lost, took_over) = (name(held), name(other));
        self.living = [other, self.add_worker().await];
        Joined { received, lost, took_over }
    }
}

/// What was found at the places where a worker was killed.
#[derive(Debug, Default, Serialize)]
struct Found {
    /// Tokens of the undisturbed answer.
    tokens: usize,
    /// Places where a worker was killed: after so many tokens, 0 included.
    indices: usize,
    /// Of these, where the joined answer is the undisturbed one, token by token, with its usage.
    identical: usize,
    /// Of these, where a seam stands right behind the last token of the lost worker: everywhere but
    /// before the first token, where the job begins anew.
    seams: usize,
    /// Of the seams, how many are exact: those behind up to [`EXACT_REPLAY`] tokens.
    seams_exact: usize,
    /// Of these, where the joined answer is what the job asked for.
    valid: usize,
    /// What was not as promised.
    #[serde(skip)]
    problems: Vec<String>,
}

impl Found {
    fn note(&mut self, index: usize, whole: &Received, joined: &Joined) {
        self.indices += 1;
        let usage = |end: &RunEnd| (end.tokens_in, end.tokens_out, end.stop_reason);
        let received = &joined.received;
        if received.tokens() == whole.tokens() && usage(end(received)) == usage(end(whole)) {
            self.identical += 1;
        } else if index <= EXACT_REPLAY {
            self.problems.push(format!("killed at {index}, it said {:?}", received.text()));
        }
        if changed_hands(received) == expected_changes(index, joined) {
            self.seams += usize::from(index > 0);
            self.seams_exact += usize::from((1..=EXACT_REPLAY).contains(&index));
        } else {
            self.problems.push(format!("killed at {index}: {:#?}", changed_hands(received)));
        }
    }

    fn assert_as_promised(&self) {
        assert!(self.problems.is_empty() && self.valid == self.indices, "{self:#?}");
    }
}

/// Where a job changed hands: tokens before each start of a run and each seam, and what that said.
fn changed_hands(received: &Received) -> Vec<(usize, String)> {
    let mut tokens = 0;
    let mut found = Vec::new();
    for (_, event) in &received.events {
        match event {
            TaskEvent::Token { .. } => tokens += 1,
            TaskEvent::Started { worker_id, attempt, .. } => {
                found.push((tokens, format!("{attempt} began on {worker_id}")));
            }
            TaskEvent::Seam { from_worker, to_worker, i, exact } => {
                found.push((tokens, format!("from {from_worker} to {to_worker} at {i}, exact: {exact}")));
            }
            _ => {}
        }
    }
    found
}

fn expected_changes(index: usize, joined: &Joined) -> Vec<(usize, String)> {
    let Joined { lost, took_over, .. } = joined;
    if index == 0 {
        // Nobody has seen anything of the first run.
        return vec![(0, format!("2 began on {took_over}"))];
    }
    let seam = format!("from {lost} to {took_over} at {index}, exact: {}", index <= EXACT_REPLAY);
    vec![(0, format!("1 began on {lost}")), (index, seam)]
}

/// Kills the worker of a job at every `step`-th of its tokens, one after another.
async fn killed_everywhere(engine: Engine, task: &Value, is_valid: fn(&str) -> bool, step: usize) -> Found {
    let mut pair = Pair::start(engine).await;
    let (_, whole) = pair.cluster.run(task.clone()).await;
    let tokens = whole.tokens().len();
    let mut found = Found { tokens, ..Found::default() };
    for index in (0..=tokens).step_by(step) {
        let joined = pair.killed_at(task, index).await;
        found.note(index, &whole, &joined);
        found.valid += usize::from(is_valid(&joined.received.text()));
    }
    found
}

/// The joined answer is that of an undisturbed run, and what it is to be, wherever its worker is killed.
async fn assert_joins(engine: Engine, task: &Value, is_valid: fn(&str) -> bool, step: usize) {
    killed_everywhere(engine, task, is_valid, step).await.assert_as_promised();
}

/// A free text may be any.
fn is_text(_: &str) -> bool {
    true
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

/// Whether this is what the schema of [`formed`] asks for.
fn is_formed(text: &str) -> bool {
    let Ok(day) = serde_json::from_str::<Value>(text) else { return false };
    let letters = |text: &Value| text.as_str().map_or(0, |text| text.chars().count());
    let fields = |value: &Value| value.as_object().map(serde_json::Map::len);
    let is_mood = |mood: &Value| ["calm", "busy", "caf\u{e9}"].iter().any(|known| mood == known);
    let place = &day["place"];
    (8..=60).contains(&letters(&day["title"]))
        && day["moods"]
            .as_array()
            .is_some_and(|moods| (2..=4).contains(&moods.len()) && moods.iter().all(is_mood))
        && day["year"].as_i64().is_some_and(|year| (1900..=2100).contains(&year))
        && (4..=30).contains(&letters(&place["name"]))
        && place["known"].is_boolean()
        && (fields(&day), fields(place)) == (Some(4), Some(2))
}

#[tokio::test]
async fn a_form_is_kept_by_the_worker_that_goes_on() {
    assert_joins(Engine::Fake, &formed(), is_formed, 9 * TENTH).await;
}

#[tokio::test]
async fn real_model_a_form_is_kept_by_the_worker_that_goes_on() {
    assert_joins(Engine::Real, &formed(), is_formed, TENTH).await;
}

#[tokio::test]
async fn a_killed_workers_job_goes_on_elsewhere() {
    assert_joins(Engine::Fake, &greedy(), is_text, TENTH).await;
}

#[tokio::test]
async fn a_seeded_job_goes_on_with_the_same_draws() {
    assert_joins(Engine::Fake, &drawn(), is_text, 3 * TENTH).await;
}

#[tokio::test]
async fn real_model_a_killed_workers_job_goes_on_elsewhere() {
    assert_joins(Engine::Real, &greedy(), is_text, TENTH).await;
}

#[tokio::test]
async fn real_model_a_seeded_job_goes_on_with_the_same_draws() {
    assert_joins(Engine::Real, &drawn(), is_text, 3 * TENTH).await;
}

/// The line of the ledger.
#[derive(Serialize)]
struct Campaign<'a> {
    model: &'a str,
    greedy: &'a Found,
    schema: &'a Found,
    seconds: u64,
}

#[tokio::test]
async fn long_real_model_a_worker_may_be_killed_at_any_token() {
    let started = std::time::Instant::now();
    let engine = Engine::Real;
    let free = killed_everywhere(engine, &greedy(), is_text, 1).await;
    let form = killed_everywhere(engine, &formed(), is_formed, 1).await;
    let campaign = Campaign {
        model: engine.model(),
        greedy: &free,
        schema: &form,
        seconds: started.elapsed().as_secs(),
    };
    Ledger::of_test("failover").add(&campaign).expect("the ledger is written");
    assert_eq!(free.tokens, TOKENS, "the answer is as long as the job lets it be");
    free.assert_as_promised();
    form.assert_as_promised();
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
