//! Who runs what: order of the queue, demands of a job, scores, and the explanation.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use api_types::task::{Placement, Priority, RetryMode, TaskStatus};
use api_types::why::{Change, Counterfactual, RuledOut};
use api_types::worker::{WorkerFacts, WorkerState, WorkerStatus};
use api_types::{Attempt, ErrorCode, ErrorDetail, StopReason};
use orchestrator_core::{Event, Step, Submission};
use world::{World, end, facts, job, opened, run, submission, worker};

fn submit_batch(world: &mut World, n: u128) {
    world.event(Event::Submit(Submission { priority: Priority::Batch, ..submission(n) }));
}

/// Ends the job on the only slot and returns the number of the next one.
fn next(world: &mut World, n: u128) -> u128 {
    let ended = Event::StreamEnded { run: run(n, 1, "w1", 1), end: end(0, StopReason::Eos) };
    let opened = opened(&world.event(ended));
    opened.first().map(|run| run.job_id.uuid().as_u128()).expect("another job")
}

#[test]
fn interactive_goes_before_batch_and_then_first_come() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    submit_batch(&mut world, 2);
    world.submit(3);
    world.submit(4);
    assert_eq!(world.brain.job(job(2)).and_then(|standing| standing.queue_position), Some(2));
    assert_eq!(next(&mut world, 1), 3);
    assert_eq!(next(&mut world, 3), 4);
    assert_eq!(next(&mut world, 4), 2);
}

#[test]
fn aged_batch_jobs_get_one_slot_in_four() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    submit_batch(&mut world, 2);
    submit_batch(&mut world, 3);
    for _ in 0..99 {
        world.pass(3_000);
        world.beat("w1", vec![orchestrator_core::Run { job_id: job(1), attempt: Attempt(1), ended: false }]);
    }
    for n in 10..20 {
        world.submit(n);
    }
    world.now = world.now + 3_001;
    world.beat("w1", vec![orchestrator_core::Run { job_id: job(1), attempt: Attempt(1), ended: false }]);
    let mut order = vec![1];
    for _ in 0..8 {
        let last = *order.last().expect("not empty");
        order.push(next(&mut world, last));
    }
    assert_eq!(order, [1, 10, 11, 12, 2, 13, 14, 15, 3]);
}

#[test]
fn the_least_loaded_is_taken_and_ties_fall_to_the_lower_id() {
    let mut world = World::new();
    world.ready("w22", 4);
    world.ready("w1", 2);
    let picked = |world: &mut World, n| opened(&world.submit(n)).pop().map(|run| run.worker_id);
    assert_eq!(picked(&mut world, 1), Some(worker("w1")));
    assert_eq!(picked(&mut world, 2), Some(worker("w22")));
    assert_eq!(picked(&mut world, 3), Some(worker("w22")));
}

#[test]
fn demands_and_wishes_are_honoured_and_each_refusal_has_its_reason() {
    let mut world = World::new();
    let with = |name: &str, pool: &str, backend: &str| WorkerFacts {
        pool_id: Some(pool.parse().expect("an id")),
        backend: backend.to_owned(),
        ..facts(name, 1)
    };
    world.register(with("w1", "mac", "metal"), WorkerStatus::Ready, vec![]);
    world.register(with("w22", "box", "cuda"), WorkerStatus::Ready, vec![]);
    world.register(with("w333", "box", "cuda"), WorkerStatus::Loading, vec![]);
    let place = |world: &mut World, n, placement| {
        opened(&world.event(Event::Submit(Submission { placement, ..submission(n) })))
            .pop()
            .map(|run| run.worker_id)
    };
    let names = |name: &str| vec![name.to_owned()];
    let cuda = Placement { require: names("cuda"), ..Placement::default() };
    assert_eq!(place(&mut world, 1, cuda.clone()), Some(worker("w22")));
    assert_eq!(place(&mut world, 2, cuda), None);
    let avoiding = Placement { avoid: names("mac"), ..Placement::default() };
    assert_eq!(place(&mut world, 3, avoiding), None);
    assert_eq!(
        place(&mut world, 4, Placement { prefer: names("mac"), ..Placement::default() }),
        Some(worker("w1"))
    );
    let decision = world.brain.waiting_decision(job(2), world.now).expect("it waits");
    let reasons: Vec<_> = decision.candidates.iter().filter_map(|c| c.ruled_out.as_deref()).collect();
    assert_eq!(reasons.len(), 3);
    assert!(reasons.iter().any(|reason| reason.contains("requires `cuda`")), "{reasons:?}");
    assert!(reasons.iter().any(|reason| reason.contains("all of its 1 slots are taken")), "{reasons:?}");
    assert!(reasons.iter().any(|reason| reason.contains("still loading")), "{reasons:?}");
    let decided = world.brain.decisions(job(4));
    assert_eq!(decided.first().and_then(|decision| decision.picked.clone()), Some(worker("w1")));
}

#[test]
fn a_session_stays_with_its_worker_unless_another_is_much_freer() {
    let mut world = World::new();
    world.ready("w1", 8);
    world.ready("w22", 8);
    let ask = |world: &mut World, n, session: Option<&str>| {
        let session_id = session.map(|session| session.parse().expect("an id"));
        let begun = opened(&world.event(Event::Submit(Submission { session_id, ..submission(n) })));
        begun.first().map(|run| run.worker_id.clone())
    };
    assert_eq!(ask(&mut world, 1, Some("talk")), Some(worker("w1")));
    world.event(Event::FirstToken(run(1, 1, "w1", 1)));
    world.event(Event::StreamEnded { run: run(1, 1, "w1", 1), end: end(4, StopReason::Eos) });
    assert_eq!(ask(&mut world, 2, None), Some(worker("w1")));
    assert_eq!(ask(&mut world, 3, Some("talk")), Some(worker("w1")), "one job more there is worth it");
    let decision = world.brain.decisions(job(3)).first().cloned().expect("a decision");
    let affinity = decision.candidates.first().and_then(|best| best.terms).map(|terms| terms.affinity);
    assert_eq!(affinity, Some(125.0));
    let other = Counterfactual { worker_id: worker("w22"), change: Change::PickedAbsent };
    assert_eq!(decision.counterfactual, Some(other), "all of its slots are free already");
    assert_eq!(ask(&mut world, 4, Some("talk")), Some(worker("w1")), "two are as much as it is worth");
    assert_eq!(ask(&mut world, 5, Some("talk")), Some(worker("w22")), "three are too many");
}

#[test]
fn names_that_mean_nothing_known_are_said_to() {
    let mut world = World::new();
    world.ready("w1", 1);
    let placement = Placement {
        worker: Some(worker("attic")),
        avoid: vec!["w1".to_owned(), "cellar".to_owned()],
        ..Placement::default()
    };
    world.event(Event::Submit(Submission { placement, ..submission(1) }));
    let why = world.brain.why(job(1), world.now).expect("it waits");
    assert!(why.summary.contains("`attic`, `cellar`"), "{}", why.summary);
    assert_eq!(why.waiting.expect("a look ahead").unknown_names, ["attic", "cellar"]);
}

#[test]
fn a_decision_tells_a_few_unknown_names_however_many_a_job_gives() {
    let mut world = World::new();
    world.ready("w1", 1);
    let prefer = (0..1_000).map(|n| format!("nowhere-{n}")).collect();
    let placement = Placement { prefer, ..Placement::default() };
    world.event(Event::Submit(Submission { placement, ..submission(1) }));
    let decision = world.brain.decisions(job(1)).first().cloned().expect("a decision");
    assert_eq!(decision.unknown_names.len(), 8);
}

#[test]
fn a_lost_worker_that_would_be_draining_is_nowhere_the_job_would_have_gone() {
    for (drains, change) in [(false, Some(lost())), (true, None)] {
        let mut world = World::new();
        world.ready("w1", 1);
        world.ready("w22", 8);
        if drains {
            let request = world.request();
            world.event(Event::DrainWorker { request, worker_id: worker("w22") });
        }
        while !is_lost(&world, "w22") {
            world.pass(1_000);
            world.beat("w1", vec![]);
        }
        let prefer = vec!["w22".to_owned()];
        let placement = Placement { prefer, ..Placement::default() };
        world.event(Event::Submit(Submission { placement, ..submission(1) }));
        let decision = world.brain.decisions(job(1)).first().cloned().expect("a decision");
        assert_eq!(decision.picked, Some(worker("w1")));
        let reasons = decision.candidates.iter().filter_map(|candidate| candidate.because.clone());
        assert_eq!(reasons.collect::<Vec<_>>(), [RuledOut::Lost]);
        assert_eq!(decision.counterfactual.map(|other| other.change), change, "{drains}");
    }
}

const fn lost() -> Change {
    Change::Lifted { because: RuledOut::Lost }
}

fn is_lost(world: &World, name: &str) -> bool {
    let workers = world.brain.workers(world.now);
    workers.iter().any(|view| view.facts.worker_id == worker(name) && view.state == WorkerState::Lost)
}

#[test]
fn a_sign_of_life_without_free_memory_leaves_what_was_told_before() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.ready("w22", 1);
    for told in [Some(8_000_000_000), None] {
        let request = world.request();
        let row = world.brain.worker_row(&worker("w22")).expect("registered").clone();
        world.event(Event::WorkerHeartbeat {
            request,
            worker_id: worker("w22"),
            incarnation: row.incarnation,
            instance: row.facts.instance,
            status: WorkerStatus::Ready,
            runs: vec![],
            free_memory_bytes: told,
            prefixes: None,
        });
    }
    let picked = opened(&world.submit(1)).pop().map(|run| run.worker_id);
    assert_eq!(picked, Some(worker("w22")), "it has more free memory than one that never told any");
}

fn with_context(name: &str, context_length: u32) -> WorkerFacts {
    WorkerFacts { context_length, ..facts(name, 1) }
}

fn too_long(tokens: Option<u32>) -> ErrorDetail {
    let error = ErrorDetail::new(ErrorCode::ContextOverflow, "too long");
    match tokens {
        Some(tokens) => error.with_details(serde_json::json!({ "prompt_tokens": tokens })),
        None => error,
    }
}

#[test]
fn a_counted_prompt_goes_only_where_the_context_holds_it_and_the_others_say_why_not() {
    let mut world = World::new();
    world.register(with_context("w1", 4_096), WorkerStatus::Ready, vec![]);
    world.register(with_context("w22", 8_192), WorkerStatus::Ready, vec![]);
    let long = |n| Event::Submit(Submission { prompt_tokens: Some(4_100), ..submission(n) });
    let placed = |step: &Step| opened(step).pop().map(|run| run.worker_id);
    assert_eq!(placed(&world.event(long(1))), Some(worker("w22")));
    let because = RuledOut::ContextTooSmall { context_length: 4_096, tokens_at_least: 4_096 };
    let decision = world.brain.decisions(job(1)).first().cloned().expect("a decision");
    let reasons: Vec<_> = decision.candidates.iter().filter_map(|c| c.because.clone()).collect();
    assert_eq!(reasons, std::slice::from_ref(&because));
    let other = Counterfactual { worker_id: worker("w1"), change: Change::Lifted { because } };
    assert_eq!(decision.counterfactual, Some(other));
    assert_eq!(placed(&world.event(long(2))), None, "it waits for the larger one");
    assert_eq!(placed(&world.submit(3)), Some(worker("w1")), "and is in nobody's way");
    let why = world.brain.why(job(2), world.now).expect("it waits").summary;
    assert!(why.contains("All 1 slots of the 1 workers that can run it"), "{why}");
}

#[test]
fn a_job_that_a_context_turns_out_not_to_hold_goes_to_a_larger_one_and_fails_on_the_largest() {
    for counted in [None, Some(9_000)] {
        let mut world = World::new();
        for (name, context) in [("w1", 4_096), ("w22", 8_192), ("w333", 16_384)] {
            world.register(with_context(name, context), WorkerStatus::Ready, vec![]);
        }
        world.event(Event::Submit(Submission { retry: RetryMode::Never, ..submission(1) }));
        let mut ran = vec![];
        for attempt in 1..=4 {
            let row = world.brain.job(job(1)).expect("known").row;
            if row.status == TaskStatus::Failed {
                assert_eq!(row.error.map(|error| error.code), Some(ErrorCode::ContextOverflow));
                break;
            }
            let name = row.attempt.expect("handed out").worker_id.to_string();
            let incarnation = name.len() as u64 - 1;
            let run = run(1, attempt, &name, incarnation);
            world.event(Event::StreamFailed { run, error: too_long(counted) });
            ran.push(name);
        }
        let expected: &[&str] = if counted.is_some() { &["w1", "w333"] } else { &["w1", "w22", "w333"] };
        assert_eq!(ran, expected);
        assert_eq!(world.status(1), TaskStatus::Failed);
    }
}

#[test]
fn without_a_larger_context_that_the_job_may_use_an_overflow_is_final() {
    let mut world = World::new();
    world.register(with_context("w1", 4_096), WorkerStatus::Ready, vec![]);
    world.register(with_context("w22", 8_192), WorkerStatus::Ready, vec![]);
    let placement = Placement { avoid: vec!["w22".to_owned()], ..Placement::default() };
    world.event(Event::Submit(Submission { placement, ..submission(1) }));
    // One that still loads is no hope either, unless its context is larger.
    world.register(with_context("w333", 4_096), WorkerStatus::Loading, vec![]);
    world.event(Event::StreamFailed { run: run(1, 1, "w1", 1), error: too_long(None) });
    assert_eq!(world.status(1), TaskStatus::Failed);
}
