//! What the orchestrator did can be had again from what it was told.

use std::collections::HashSet;

use futures_util::stream::{self, StreamExt};
use orchestrator_core::replay::{Replayed, verify};
use orchestrator_core::{Orchestrator, Time};
use rbees_orcd::store::history::History;
use rbees_orcd::store::prompts::Prompts;
use serde_json::{Value, json};

use crate::daemon::{Daemon, until};
use crate::worker::Worker;

const JOBS: usize = 1_000;
const AT_ONCE: usize = 48;

/// The n-th job of a mixed load.
fn job(n: usize) -> Value {
    let mut body = json!({
        "prompt": "p".repeat(1 + n * 37 % 60),
        "max_tokens": 1 + n % 5,
        "priority": if n.is_multiple_of(3) { "batch" } else { "interactive" },
        "on_disconnect": "continue",
    });
    if n.is_multiple_of(7) {
        body["durability"] = json!("memory");
    }
    if n.is_multiple_of(5) {
        // Every other of them is sent under the key of the one before it.
        body = json!({ "prompt": "same", "idempotency_key": format!("key-{}", n / 10) });
    } else if n.is_multiple_of(11) {
        body["placement"] = json!({ "require": ["chat"] });
    }
    body
}

async fn run(daemon: &Daemon, jobs: std::ops::Range<usize>) {
    let ids: HashSet<String> = stream::iter(jobs)
        .map(|n| async move {
            let id = daemon.submit(job(n)).await;
            if n.is_multiple_of(13) {
                daemon.post(&format!("/v2/tasks/{id}/cancel"), "").await;
            }
            id
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    for id in ids {
        until(&format!("{id} has ended"), || async {
            let (_, view) = daemon.get(&format!("/v2/tasks/{id}")).await;
            view["ended_at"].is_string().then_some(())
        })
        .await;
    }
}

/// Replays every chapter; gives what was found in each.
async fn replayed(daemon: &Daemon) -> Vec<Replayed> {
    let prompts = Prompts::open(daemon.folder()).expect("a folder");
    let history = History::new(daemon.folder().join("orchestrator.db"), prompts);
    let mut found = Vec::new();
    for start in history.chapters(Time(0)).await.expect("a journal") {
        let chapter = history.chapter(start).await.expect("a journal").expect("a chapter");
        let brain = Orchestrator::restore(&chapter.snapshot).expect("a snapshot");
        found.push(verify(brain, &chapter.segments).expect("entries"));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_mixed_jobs_replay_to_the_same_decisions() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    run(&daemon, 0..JOBS / 2).await;
    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    run(&daemon, JOBS / 2..JOBS).await;

    let found = replayed(&daemon).await;
    assert!(found.len() >= 2, "each life of the orchestrator begins a chapter: {found:?}");
    assert!(found.iter().all(Replayed::is_identical), "{found:?}");
    let placements: u64 = found.iter().map(|chapter| chapter.placements).sum();
    // Jobs under a used key are none of their own; nearly all others were placed once or oftener.
    assert!(placements >= JOBS as u64 * 7 / 10, "only {placements} placements were recorded");
}

/// What the first commit of a life decides would else be in no journal.
#[tokio::test]
async fn a_life_begins_its_journal_before_anything_happens_in_it() {
    let daemon = Daemon::start().await;
    assert_eq!(replayed(&daemon).await.len(), 1);
    let daemon = daemon.crash_and_restart().await;
    assert_eq!(replayed(&daemon).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_begins_anew_after_as_many_bytes_as_are_configured() {
    const EVERY: u64 = 65_536;
    let daemon = Daemon::start_with(|config| config.keeping.journal_snapshot_bytes = EVERY).await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    run(&daemon, 0..JOBS).await;
    let (_, report) = daemon.post("/v2/policy/replay", "{}").await;
    assert_eq!(report["identical"], true, "{report}");
    let found = replayed(&daemon).await;
    assert!(found.iter().all(Replayed::is_identical), "{found:?}");
    assert!(found.len() >= 2, "{JOBS} jobs take more than {EVERY} bytes of journal: {found:?}");
    let inputs: u64 = found.iter().map(|chapter| chapter.inputs).sum();
    assert!(inputs >= report["inputs"].as_u64().expect("a count"), "{report} {found:?}");
}
