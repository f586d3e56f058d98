//! What the orchestrator was told is given to a brain again, and every decision comes out as it was, to
//! the byte: under scripts that change meanwhile, with a worker lost and the orchestrator killed.

use std::collections::BTreeSet;

use api_types::JobId;
use campaign::Ledger;
use e2e::recording::{Decisions, Recording};
use e2e::{Cluster, Engine, WorkerOptions, until};
use futures_util::stream::{self, StreamExt};
use orchestrator_core::Event;
use orchestrator_core::journal::{Entry, Input};
use orchestrator_core::policy::PolicyChange;
use serde::Serialize;
use serde_json::{Value, json};

/// Jobs that are taken in at least.
const TAKEN: usize = 1_000;
/// Jobs that are handed in; some come too late, are too long, or bear another's key.
const JOBS: usize = 1_250;
/// Jobs of a long run.
const MANY: usize = 10_000;
/// Clients that hand in jobs at one time.
const CLIENTS: usize = 16;
const WORKERS: usize = 3;
/// Nobody is turned away, and nobody waits long for the next try.
const CONFIG: &str = "queue_capacity = -1\nretry_backoff_first_ms = 50\nretry_budget = 1000\n";
/// Tokens come quickly, so that there is time for many jobs.
const MODEL: &str = "fake:fake-bee?seed=7&pace_ms=2&context=2048";

const LEAST_LOADED: &str = include_str!("../../../policies/least-loaded.rhai");
const DEFAULT: &str = include_str!("../../../policies/default.rhai");
/// Holds some batch jobs back, keeps a slot of every worker for the others, serves short ones first,
/// and leaves alone what failed twice.
const PARTICULAR: &str = r#"
fn admit(job, queue) { if job.priority == "batch" && queue.waiting % 3 == 1 { 120 } else { true } }
fn order(job) { job.max_tokens ?? 512 }
fn score(job, worker) {
    if job.priority == "batch" && worker.slots_free < 2 { return (); }
    100.0 * worker.prefix_share + 10.0 * to_float(worker.slots_free)
}
fn retry(job, failure) { job.tries_failed < 3 }
"#;

async fn cluster() -> Cluster {
    let mut cluster = Cluster::prepared(Engine::Fake, |folder| {
        let place = folder.join("config/rbees");
        std::fs::create_dir_all(&place).expect("a folder");
        std::fs::write(place.join("orchestrator.toml"), CONFIG).expect("written");
    })
    .await;
    for _ in 0..WORKERS {
        add_worker(&mut cluster).await;
    }
    cluster
}

async fn add_worker(cluster: &mut Cluster) {
    let model = Some(MODEL.to_owned());
    cluster.add_worker(WorkerOptions { model, ..WorkerOptions::default() }).await;
}

/// The n-th job of a mixed load.
fn job(n: usize) -> Value {
    let retry = ["continue", "before_first_token", "continue", "never"][n % 4];
    let mut task = json!({
        "prompt": "p".repeat(1 + n * 37 % 2_100),
        "max_tokens": 2 + n * 7 % 29,
        "temperature": 0,
        "priority": if n.is_multiple_of(3) { "batch" } else { "interactive" },
        "on_disconnect": "continue",
        "retry": retry,
    });
    if n.is_multiple_of(5) {
        task["session_id"] = json!(format!("talk-{}", n / 5 % 12));
    }
    if n.is_multiple_of(7) {
        task["durability"] = json!("memory");
    }
    if n.is_multiple_of(9) {
        task["deadline_ms"] = json!(if n.is_multiple_of(27) { 1 } else { 120_000 });
    }
    match n % 11 {
        0 => task["placement"] = json!({ "worker": "worker-fake-000000000001" }),
        3 => task["placement"] = json!({ "avoid": ["worker-fake-000000000002"] }),
        5 => task["placement"] = json!({ "prefer": ["worker-fake-000000000003"] }),
        7 => task["placement"] = json!({ "require": ["completion"] }),
        _ => {}
    }
    if n.is_multiple_of(17) {
        task["idempotency_key"] = json!(format!("key-{}", n / 34));
    }
    task
}

/// Hands in jobs, of which some are cancelled at once. Gives those that were taken in.
async fn hand_in(cluster: &Cluster, jobs: std::ops::Range<usize>) -> BTreeSet<JobId> {
    let taken = stream::iter(jobs)
        .map(|n| async move {
            let mut task = job(n);
            task["model"] = json!(Engine::Fake.model());
            let id: JobId = match cluster.post("/v2/tasks", &task).await {
                Ok(accepted) => accepted["job_id"].as_str().expect("an id").parse().expect("a job id"),
                Err((422 | 409, _)) => return None,
                Err(refused) => panic!("{n} is refused: {refused:?}"),
            };
            if n.is_multiple_of(13) {
                cluster.post(&format!("/v2/tasks/{id}/cancel"), &json!({})).await.expect("cancelled");
            }
            Some(id)
        })
        .buffer_unordered(CLIENTS);
    taken.filter_map(|id| async move { id }).collect().await
}

async fn all_end(cluster: &Cluster) {
    let mut waiting = u64::MAX;
    while waiting > 0 {
        waiting = until("fewer jobs wait", || async {
            let depth = cluster.get("/health").await.ok()?["queue_depth"].as_u64()?;
            (depth < waiting).then_some(depth)
        })
        .await;
    }
    until("nothing runs", || async {
        let workers = cluster.get("/v2/workers").await.ok()?;
        let busy = |worker: &Value| worker["state"] == "ready" && worker["slots_busy"] != 0;
        (!workers["workers"].as_array()?.iter().any(busy)).then_some(())
    })
    .await;
}

async fn set_policy(cluster: &Cluster, name: &str, source: &str) {
    let policy = json!({ "name": name, "source": source });
    cluster.send(cluster.http.put(cluster.url("/v2/policy")).json(&policy)).await.expect("it is taken");
}

/// Waits until the worker runs something, and kills it.
async fn kill_busy(cluster: &mut Cluster, place: usize) {
    let path = format!("/v2/workers/{}", cluster.workers[place].id);
    until("the worker is busy", || async {
        let view = cluster.get(&path).await.ok()?;
        (view["slots_busy"].as_u64()? > 0).then_some(())
    })
    .await;
    cluster.workers[place].daemon.kill();
}

/// What the orchestrator says of its own journal, and what is in its database.
async fn recording(cluster: &Cluster) -> (Value, Recording) {
    let report = cluster.post("/v2/policy/replay", &json!({})).await.expect("it is replayed");
    let recording = Recording::read(&cluster.folder().join("orchestrator.db")).expect("a database");
    (report, recording)
}

/// Decisions of one that the other has too, and of these the same to the byte; and those it lacks.
fn compare(one: &Decisions, other: &Decisions) -> (u64, u64, Vec<String>) {
    let (mut both, mut same, mut lacking) = (0, 0, Vec::new());
    for (key, decision) in one {
        match other.get(key) {
            None => lacking.push(format!("{key:?}: {decision}")),
            Some(found) => {
                both += 1;
                same += u64::from(found == decision);
            }
        }
    }
    (both, same, lacking)
}

/// What was found.
#[derive(Debug, Serialize)]
struct Found {
    run: &'static str,
    /// Jobs that were handed in, and of these taken in.
    jobs: usize,
    accepted: usize,
    /// Snapshots, each with what followed.
    chapters: usize,
    /// Inputs of the brain that were replayed.
    inputs: u64,
    /// Decisions in the database, and of these the same in the replay, to the byte.
    decisions: u64,
    identical: u64,
    /// Placements after a lost worker.
    later_attempts: usize,
    /// All runs that were handed out in the replay, those of jobs in memory included.
    placements: usize,
    /// What changes without the shadow policy that was set, and how often both were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<Shadow>,
}

#[derive(Debug, Serialize)]
struct Shadow {
    compared: u64,
    differed: u64,
    /// Placements of the same journal without the shadow that are not as with it.
    changed: usize,
}

fn later_attempts(decisions: &Decisions) -> usize {
    decisions.keys().filter(|(_, attempt)| attempt.0 > 1).count()
}

/// A mixed run under policies that change, with a worker lost and the orchestrator killed.
async fn mixed_run(jobs: usize) -> Found {
    let mut cluster = cluster().await;
    let mut accepted = BTreeSet::new();
    let quarter = jobs / 4;
    accepted.extend(hand_in(&cluster, 0..quarter).await);
    set_policy(&cluster, "particular", PARTICULAR).await;
    accepted.extend(hand_in(&cluster, quarter..2 * quarter).await);
    kill_busy(&mut cluster, WORKERS - 1).await;
    set_policy(&cluster, "least-loaded", LEAST_LOADED).await;
    add_worker(&mut cluster).await;
    accepted.extend(hand_in(&cluster, 2 * quarter..3 * quarter).await);
    cluster.kill_orchestrator();
    cluster.restart_orchestrator().await;
    accepted.extend(hand_in(&cluster, 3 * quarter..jobs - 50).await);
    set_policy(&cluster, "default-as-script", DEFAULT).await;
    accepted.extend(hand_in(&cluster, jobs - 50..jobs).await);
    all_end(&cluster).await;

    let (report, recording) = recording(&cluster).await;
    assert_eq!(report["identical"], true, "{report}");
    let replayed = recording.replay(|_| false).expect("it is read");
    let (decisions, identical, lacking) = compare(&recording.stored, &replayed.decisions);
    assert_eq!(replayed.digests_differ, 0);
    assert!(lacking.is_empty(), "{} were decided and cannot be had again: {lacking:#?}", lacking.len());
    assert!(recording.chapters() >= 2, "each life of the orchestrator begins a chapter");
    Found {
        run: "mixed",
        jobs,
        accepted: accepted.len(),
        chapters: recording.chapters(),
        inputs: replayed.inputs,
        decisions,
        identical,
        later_attempts: later_attempts(&recording.stored),
        placements: replayed.placements.len(),
        shadow: None,
    }
}

fn assert_had_again(found: &Found) {
    assert_eq!(found.identical, found.decisions, "{found:#?}");
    assert!(found.accepted >= TAKEN, "{found:#?}");
    // Of seven jobs one is in memory only, of thirteen one is cancelled, of 27 one comes too late.
    assert!(found.decisions >= found.jobs as u64 * 6 / 10, "{found:#?}");
    assert!(found.later_attempts > 0, "a worker was lost with jobs on it: {found:#?}");
}

/// Sets the default policy as a script for a shadow, and looks what is other without it.
async fn shadowed_run(jobs: usize) -> Found {
    let cluster = cluster().await;
    let shadow = json!({ "policy": { "name": "default-as-script", "source": DEFAULT } });
    let put = cluster.http.put(cluster.url("/v2/policy/shadow")).json(&shadow);
    cluster.send(put).await.expect("it is taken");
    let accepted = hand_in(&cluster, 0..jobs).await;
    all_end(&cluster).await;

    let policies = cluster.get("/v2/policy").await.expect("the policies");
    let sum = |counts: &Value| counts.as_object().map_or(0, |c| c.values().filter_map(Value::as_u64).sum());
    let (_, recording) = recording(&cluster).await;
    let with = recording.replay(|_| false).expect("it is read");
    let without = recording.replay(sets_shadow).expect("it is read");
    let (decisions, identical, _) = compare(&recording.stored, &without.decisions);
    let changed = with.placements.iter().zip(&without.placements).filter(|(with, without)| with != without);
    let changed = changed.count() + with.placements.len().abs_diff(without.placements.len());
    assert_eq!(with.inputs, without.inputs + 1, "only the shadow is left out");
    Found {
        run: "shadow",
        jobs,
        accepted: accepted.len(),
        chapters: recording.chapters(),
        inputs: without.inputs,
        decisions,
        identical,
        later_attempts: later_attempts(&recording.stored),
        placements: without.placements.len(),
        shadow: Some(Shadow {
            compared: sum(&policies["shadow"]["compared"]),
            differed: sum(&policies["shadow"]["differed"]),
            changed,
        }),
    }
}

fn sets_shadow(entry: &Entry) -> bool {
    matches!(&entry.input, Input::Event(Event::SetPolicy { change: PolicyChange::Shadow(_), .. }))
}

fn assert_unchanged(found: &Found) {
    let shadow = found.shadow.as_ref().expect("a shadow was set");
    assert_eq!((shadow.changed, shadow.differed), (0, 0), "{found:#?}");
    assert!(found.accepted >= TAKEN, "{found:#?}");
    assert_eq!(found.identical, found.decisions, "{found:#?}");
    assert!(shadow.compared >= found.decisions, "it was asked beside the live one: {found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_mixed_jobs_under_changing_scripts_are_decided_again_to_the_byte() {
    assert_had_again(&mixed_run(JOBS).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_changes_no_placement_of_a_thousand_jobs() {
    assert_unchanged(&shadowed_run(JOBS).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_many_mixed_jobs_are_decided_again_to_the_byte_and_a_shadow_changes_none() {
    for (found, check) in [
        (mixed_run(MANY).await, assert_had_again as fn(&Found)),
        (shadowed_run(MANY).await, assert_unchanged as fn(&Found)),
    ] {
        Ledger::of_test("replay").add(&found).expect("the ledger is written");
        check(&found);
    }
}
