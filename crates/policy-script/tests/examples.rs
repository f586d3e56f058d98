//! The policies of `policies/`: each does what its first line says.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api_types::task::Priority;
use orchestrator_core::policy::{
    Admission, Again, FailureFacts, Hour, JobFacts, Label, Labels, Policy, QueueFacts, Score, WorkerLoad,
};
use policy_script::Language;
use policy_script::check::check;

fn root(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder)
}

fn source(name: &str) -> String {
    std::fs::read_to_string(root("policies").join(format!("{name}.rhai"))).expect("it is there")
}

fn policy(name: &str) -> Arc<dyn Policy> {
    Language::default().compile(name, &source(name)).expect("it compiles")
}

fn scores(policy: &dyn Policy, job: &JobFacts<'_>, workers: &[WorkerLoad<'_>]) -> Vec<Option<f64>> {
    let mut scores = Vec::new();
    policy.score(job, workers, &mut scores).expect("it answers");
    let points = |score: Score| match score {
        Score::Points(points) => Some(points),
        Score::KeepFree => None,
    };
    scores.into_iter().map(points).collect()
}

fn load(slots: u32, slots_free: u32) -> WorkerLoad<'static> {
    WorkerLoad { slots, slots_free, ..WorkerLoad::default() }
}

fn batch(of_day: u8) -> JobFacts<'static> {
    batch_at(of_day, 0)
}

fn batch_at(of_day: u8, minute: u8) -> JobFacts<'static> {
    let hour = Hour { of_day, minute, weekday: 2 };
    JobFacts { priority: Priority::Batch, hour, ..JobFacts::default() }
}

#[test]
fn every_policy_passes_its_check_and_has_its_page() {
    let mut names: Vec<String> = std::fs::read_dir(root("policies"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rhai"))
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names.len(), 6, "{names:?}");
    for name in names {
        let found = check(&name, &source(&name), &[]);
        assert!(found.ok, "{name}: {:?}", found.errors);
        let page = root("docs/policies").join(format!("{name}.md"));
        assert!(page.is_file(), "{} is missing", page.display());
    }
}

/// A script that goes wrong where a fact is other than nothing, or is nothing.
fn goes_wrong_where(hook: &str, condition: &str) -> String {
    format!("fn {hook} {{ if {condition} {{ no_such_function() }} else {{ 1 }} }}")
}

#[test]
fn a_check_shows_a_script_every_fact_one_way_and_the_other() {
    let job = ["job.session == ()", "job.deadline_in_ms == ()", "job.max_tokens == ()", "job.waited_ms == 0"];
    let score = ["worker.session_here", "worker.prefix_share > 0.5", "worker.idle_ms > 60000"];
    let admit = ["queue.waiting == 0", "queue.waiting > 500", "queue.tenant_waiting == 0"];
    let retry = ["failure.workers_lost == 0", "failure.workers_lost > 1", "failure.code == \"WORKER_LOST\""];
    let hooks = [
        ("order(job)", job.as_slice()),
        ("score(job, worker)", &score),
        ("admit(job, queue)", &admit),
        ("retry(job, failure)", &retry),
        ("evict(worker)", &["worker.idle_ms > 60000"]),
    ];
    for (hook, conditions) in hooks {
        for condition in conditions {
            for condition in [(*condition).to_owned(), format!("!({condition})")] {
                let found = check("wrong", &goes_wrong_where(hook, &condition), &[]);
                assert!(!found.ok, "{hook} where {condition} was never asked");
            }
        }
    }
}

#[test]
fn a_check_asks_whom_to_evict_once_for_each_worker_and_hour() {
    let found = check("default", &source("default"), &[]);
    let evict = found.hooks.iter().find(|hook| hook.hook == "evict").expect("the hook");
    assert_eq!((evict.asked, evict.answers.len()), (8, 8), "{evict:?}");
    let all: std::collections::BTreeSet<&String> = evict.answers.iter().collect();
    assert_eq!(all.len(), 8, "no answer is given twice: {evict:?}");
    assert!(evict.answers.iter().any(|answer| answer.starts_with("laptop at noon: 3600000")), "{evict:?}");
}

#[test]
fn least_loaded_takes_the_largest_share_of_free_slots() {
    let workers = [load(4, 1), load(2, 1), load(8, 7)];
    let scored = scores(&*policy("least-loaded"), &JobFacts::default(), &workers);
    assert_eq!(scored, [Some(250.0), Some(500.0), Some(875.0)]);
}

#[test]
fn cheapest_watts_takes_the_smallest_draw_and_the_unmeasured_last() {
    let label = |watts| BTreeMap::from([("watts".to_owned(), Label::Integer(watts))]);
    let (shelf, desk) = (label(15), label(350));
    let labelled = |labels| WorkerLoad { labels: Labels { worker: None, pool: Some(labels) }, ..load(4, 2) };
    let cheapest = policy("cheapest-watts");
    let workers = [labelled(&desk), labelled(&shelf), load(4, 4)];
    let scored = scores(&*cheapest, &JobFacts::default(), &workers);
    assert!(scored[1] > scored[0] && scored[0] > scored[2], "{scored:?}");
    let (busy, free) = (labelled(&shelf), WorkerLoad { slots_free: 4, ..labelled(&shelf) });
    let scored = scores(&*cheapest, &JobFacts::default(), &[busy, free]);
    assert!(scored[1] > scored[0], "equals share the work: {scored:?}");
    let evict = |worker| cheapest.evict(worker).expect("a key");
    assert!(evict(&workers[0]) > evict(&workers[1]), "what draws the most goes first");
}

#[test]
fn card_0_is_kept_free_in_the_evening_and_at_weekends_only() {
    let games = policy("keep-gpu-0-free-for-games");
    let card = |number: u8| vec![format!("CUDA{number} (NVIDIA GeForce RTX 3060)")];
    let (first, second) = (card(0), card(1));
    let at = |of_day, weekday| {
        let hour = Hour { of_day, minute: 0, weekday };
        let workers = [&first, &second].map(|devices| WorkerLoad { devices, hour, ..load(2, 2) });
        scores(&*games, &JobFacts::default(), &workers)
    };
    assert_eq!(at(20, 2), [None, Some(1000.0)], "a Wednesday evening");
    assert_eq!(at(14, 2), [Some(1000.0), Some(1000.0)], "a Wednesday afternoon");
    assert_eq!(at(14, 5), [None, Some(1000.0)], "a Saturday afternoon");
    let idle = |devices| WorkerLoad { devices, idle_ms: 5, ..load(2, 2) };
    assert!(games.evict(&idle(&first)).expect("a key") > games.evict(&idle(&second)).expect("a key"));
}

#[test]
fn batch_jobs_wait_for_the_night_unless_they_would_be_worthless() {
    let night = policy("night-batch");
    let admit = |job: &JobFacts<'_>| night.admit(job, &QueueFacts::default()).expect("it answers");
    assert_eq!(admit(&batch(14)), Admission::Hold(8 * 3_600_000));
    assert_eq!(admit(&batch_at(14, 45)), Admission::Hold(7 * 3_600_000 + 15 * 60_000));
    assert_eq!(admit(&batch_at(21, 59)), Admission::Hold(60_000), "not an hour too late");
    assert_eq!(admit(&batch_at(22, 0)), Admission::Admit);
    assert_eq!(admit(&batch_at(5, 59)), Admission::Admit);
    assert_eq!(admit(&batch_at(6, 0)), Admission::Hold(16 * 3_600_000));
    assert_eq!(admit(&batch(23)), Admission::Admit);
    assert_eq!(admit(&batch(3)), Admission::Admit);
    assert_eq!(admit(&JobFacts { priority: Priority::Interactive, ..batch(14) }), Admission::Admit);
    assert_eq!(admit(&JobFacts { deadline_in_ms: Some(60_000), ..batch(14) }), Admission::Admit);
    assert_eq!(
        admit(&JobFacts { deadline_in_ms: Some(86_400_000), ..batch(21) }),
        Admission::Hold(3_600_000)
    );
}

#[test]
fn a_fair_team_puts_short_questions_first_and_bounds_batch_and_retries() {
    let team = policy("fair-team");
    let order = |prompt_bytes, max_tokens| {
        team.order(&JobFacts { prompt_bytes, max_tokens, ..JobFacts::default() }).expect("a key")
    };
    assert!(order(400, Some(100)) < order(220_000, Some(100)));
    assert!(order(400, Some(100)) < order(400, None));
    let queue = |model_waiting, workers| QueueFacts {
        waiting: 900,
        model_waiting,
        workers,
        capacity: Some(1_000),
        ..QueueFacts::default()
    };
    assert_eq!(team.admit(&batch(12), &queue(100, 2)), Ok(Admission::Admit), "other models do not count");
    assert!(matches!(team.admit(&batch(12), &queue(101, 2)), Ok(Admission::Refuse(_))));
    assert_eq!(team.admit(&JobFacts::default(), &queue(101, 2)), Ok(Admission::Admit));
    let failure = FailureFacts { code: "WORKER_LOST", workers_lost: 1, attempts: 5 };
    let again = |tries_failed| team.retry(&JobFacts { tries_failed, ..JobFacts::default() }, &failure);
    assert_eq!((again(2), again(3)), (Ok(Again::GoOn), Ok(Again::GiveUp)));
}

#[test]
fn nobody_of_a_fair_team_fills_the_queue_alone() {
    let team = policy("fair-team");
    let admit = |tenant_waiting, capacity| {
        let queue = QueueFacts { waiting: 600, tenant_waiting, capacity, ..QueueFacts::default() };
        team.admit(&JobFacts::default(), &queue).expect("it answers")
    };
    assert_eq!(admit(499, Some(1_000)), Admission::Admit);
    assert!(matches!(admit(500, Some(1_000)), Admission::Refuse(reason) if reason.contains("half")));
    assert_eq!(admit(0, Some(1)), Admission::Admit, "a queue of one is open to everybody");
    assert_eq!(admit(5_000, None), Admission::Admit, "a queue without bound cannot be filled");
}

#[test]
fn the_reference_names_every_field_and_every_limit() {
    let reference = std::fs::read_to_string(root("docs/policies/README.md")).expect("it is there");
    for field in policy_script::fields() {
        assert!(reference.contains(&format!("`{field}`")), "`{field}` is not in docs/policies/README.md");
    }
    for number in ["100,000", "64 KiB", "1,000", "50 ms"] {
        assert!(reference.contains(number), "{number}");
    }
}
