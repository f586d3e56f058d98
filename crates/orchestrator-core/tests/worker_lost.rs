//! Workers that die, fall silent, come back, or take no job.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use api_types::task::TaskStatus;
use api_types::worker::{WorkerState, WorkerStatus};
use api_types::{ErrorCode, ErrorDetail, SessionId, TenantId};
use orchestrator_core::{Action, Answer, BrokenCause, Event, Kept, Notice, Run, Step, Submission};
use world::{World, acts, answer, facts, instance, job, opened, run, submission, worker};

fn broken(
    world: &mut World,
    attempt: u32,
    name: &str,
    inc: u64,
    cause: BrokenCause,
) -> orchestrator_core::Step {
    world.event(Event::StreamBroken { run: run(1, attempt, name, inc), cause })
}

#[test]
fn a_job_without_a_token_goes_elsewhere_and_late_news_is_dropped() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.ready("w22", 1);
    world.submit(1);
    let step = broken(&mut world, 1, "w1", 1, BrokenCause::Refused);
    assert!(acts(&step).contains(&Action::DropStream(run(1, 1, "w1", 1))));
    assert_eq!(world.status(1), TaskStatus::Queued);
    assert_eq!(opened(&world.pass(1_000)), vec![run(1, 2, "w22", 2)]);
    let late = world.event(Event::FirstToken(run(1, 1, "w1", 1)));
    assert!(late.writes.is_empty() && acts(&late).is_empty());
    assert_eq!(world.status(1), TaskStatus::Dispatched);
}

#[test]
fn a_job_with_tokens_fails_with_worker_lost() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    world.event(Event::FirstToken(run(1, 1, "w1", 1)));
    broken(&mut world, 1, "w1", 1, BrokenCause::Refused);
    // It ends even if nobody counts what was shown.
    world.pass(0);
    let error = world.brain.job(job(1)).and_then(|standing| standing.row.error).expect("failed");
    assert_eq!(error.code, ErrorCode::WorkerLost);
}

/// How a running job ends early without a continuation.
const EARLY_ENDS: [fn(&mut World) -> Step; 4] = [
    |world| broken(world, 1, "w1", 1, BrokenCause::Refused),
    |world| broken(world, 1, "w1", 1, BrokenCause::RunUnknown),
    |world| broken(world, 1, "w1", 1, BrokenCause::Stalled),
    |world| {
        let error = ErrorDetail::new(ErrorCode::EngineFailed, "a test");
        world.event(Event::StreamFailed { run: run(1, 1, "w1", 1), error })
    },
];

#[test]
fn what_a_lost_run_showed_counts_against_the_budget_of_its_session() {
    for early_end in EARLY_ENDS {
        let mut world = World::new();
        world.ready("w1", 1);
        let session: SessionId = "chat".parse().expect("an id");
        world.event(Event::Submit(Submission { session_id: Some(session.clone()), ..submission(1) }));
        world.event(Event::FirstToken(run(1, 1, "w1", 1)));
        let step = early_end(&mut world);
        assert!(acts(&step).contains(&Action::Salvage(run(1, 1, "w1", 1))), "{step:?}");
        assert!(step.writes.is_empty(), "nothing is on disk before the count: {step:?}");
        let kept = Kept { events: 9, tokens: 7, seams: 0, unsure: 0, ids_known: false };
        world.event(Event::Salvaged { run: run(1, 1, "w1", 1), kept });
        assert_eq!(world.status(1), TaskStatus::Failed);
        let view = world.brain.session(&TenantId::default(), &session, world.now).expect("known");
        // Its prompt of 5 bytes may have been 6 tokens.
        assert_eq!((view.tokens_used, view.tokens_reserved), (6 + 7, 0));
    }
}

#[test]
fn an_unreachable_worker_is_asked_again_while_its_lease_is_good() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    for delay in [100, 200, 400] {
        let step = broken(&mut world, 1, "w1", 1, BrokenCause::Unreachable);
        assert!(
            matches!(&acts(&step)[..], [Action::ResumeStream { delay_ms, passed: false, .. }] if *delay_ms == delay)
        );
    }
    let step = broken(&mut world, 1, "w1", 1, BrokenCause::RunUnknown);
    assert_eq!(opened(&step), vec![run(1, 1, "w1", 1)]);
}

#[test]
fn silence_makes_suspect_then_lost_then_forgotten() {
    let mut world = World::new();
    for name in ["w1", "w22", "w333"] {
        world.ready(name, 1);
    }
    let keep = |world: &mut World, ms: u64| {
        let mut all = vec![];
        for _ in 0..ms / 2_000 {
            world.beat("w22", vec![]);
            world.beat("w333", vec![]);
            all.extend(acts(&world.pass(2_000)));
        }
        all
    };
    let state =
        |world: &World| world.brain.workers(world.now).first().map(|w| (w.facts.worker_id.clone(), w.state));
    let probes = keep(&mut world, 6_000);
    assert!(
        probes
            .iter()
            .any(|act| matches!(act, Action::ProbeWorker { worker_id, .. } if *worker_id == worker("w1")))
    );
    assert_eq!(state(&world), Some((worker("w1"), WorkerState::Suspect)));
    keep(&mut world, 4_000);
    assert_eq!(state(&world), Some((worker("w1"), WorkerState::Lost)));
    keep(&mut world, 60_000);
    assert_eq!(state(&world), Some((worker("w22"), WorkerState::Ready)));
}

#[test]
fn mass_silence_is_put_down_to_us_for_half_a_minute() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.ready("w22", 1);
    world.submit(1);
    world.pass(39_000);
    assert!(world.brain.health(world.now).braking);
    assert_eq!(world.status(1), TaskStatus::Dispatched);
    world.pass(2_000);
    assert_eq!(world.status(1), TaskStatus::Queued);
}

#[test]
fn the_same_start_keeps_its_number_and_another_one_loses_the_runs() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    let held = Run { job_id: job(1), attempt: api_types::Attempt(1), ended: false };
    let strange = Run { job_id: job(8), ..held };
    let step = world.register(facts("w1", 1), WorkerStatus::Ready, vec![held, strange]);
    let Answer::Registered { incarnation, drop_runs } = answer(&step) else { panic!("{step:?}") };
    assert_eq!((incarnation.0, drop_runs), (1, vec![strange]));
    let anew = api_types::worker::WorkerFacts { instance: instance(99), ..facts("w1", 1) };
    let step = world.register(anew, WorkerStatus::Ready, vec![]);
    assert!(matches!(answer(&step), Answer::Registered { incarnation, .. } if incarnation.0 == 2));
    assert_eq!(world.status(1), TaskStatus::Queued);
    let step = world.register(facts("w1", 1), WorkerStatus::Ready, vec![]);
    assert!(matches!(answer(&step), Answer::Refused(e) if e.code == ErrorCode::StaleIncarnation));
}

#[test]
fn a_busy_worker_is_not_blamed_and_a_permanent_error_is_final() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    let busy = ErrorDetail::new(ErrorCode::AllSlotsBusy, "busy");
    let step = world.event(Event::StreamFailed { run: run(1, 1, "w1", 1), error: busy });
    assert!(opened(&step).is_empty());
    assert_eq!(opened(&world.pass(250)), vec![run(1, 2, "w1", 1)]);
    let row = world.brain.job(job(1)).expect("lives").row;
    assert_eq!((row.tries_failed, row.workers_lost.len()), (0, 0));
    let error = ErrorDetail::new(ErrorCode::ContextOverflow, "too long");
    world.event(Event::StreamFailed { run: run(1, 2, "w1", 1), error });
    assert_eq!(world.status(1), TaskStatus::Failed);
}

#[test]
fn a_job_that_ended_two_workers_is_poison() {
    let mut world = World::new();
    for name in ["w1", "w22", "w333"] {
        world.ready(name, 1);
    }
    world.submit(1);
    broken(&mut world, 1, "w1", 1, BrokenCause::Refused);
    world.pass(1_500);
    broken(&mut world, 2, "w22", 2, BrokenCause::Refused);
    let error = world.brain.job(job(1)).and_then(|standing| standing.row.error).expect("failed");
    assert_eq!(error.code, ErrorCode::Poison);
}

#[test]
fn a_draining_worker_gets_no_job_and_is_told_so() {
    let mut world = World::new();
    world.ready("w1", 2);
    let request = world.request();
    world.event(Event::DrainWorker { request, worker_id: worker("w1") });
    assert!(opened(&world.submit(1)).is_empty());
    assert!(matches!(answer(&world.beat("w1", vec![])), Answer::Heartbeat { drain: true, .. }));
    let why = world.brain.why(job(1), world.now).expect("it waits");
    assert!(why.summary.contains("draining"), "{}", why.summary);
}

#[test]
fn three_protocol_errors_quarantine_a_worker() {
    let mut world = World::new();
    world.ready("w1", 3);
    for n in 1..=3 {
        world.submit(n);
        let step = world.event(Event::StreamBroken { run: run(n, 1, "w1", 1), cause: BrokenCause::Protocol });
        assert!(acts(&step).iter().any(|act| matches!(act, Action::StopRun { .. })));
        let told = step.actions.iter().find_map(|action| match action {
            Action::Notify(Notice::ProtocolBroken { errors, quarantine_ms, .. }) => {
                Some((*errors, *quarantine_ms))
            }
            _ => None,
        });
        let errors = u32::try_from(n).expect("small");
        assert_eq!(told, Some((errors, (n == 3).then_some(300_000))));
    }
    let view = world.brain.workers(world.now).pop().expect("one");
    assert_eq!((view.protocol_errors, view.quarantined_ms), (3, Some(300_000)));
    world.beat("w1", vec![]);
    world.pass(2_000);
    assert_eq!(world.status(1), TaskStatus::Queued);
    let why = world.brain.why(job(1), world.now).expect("it waits");
    assert!(why.summary.contains("broke the protocol 3 times"), "{}", why.summary);
}

#[test]
fn a_worker_that_says_it_ended_in_order_leaves_the_registry() {
    let mut world = World::new();
    for (name, code, stays) in
        [("w1", ErrorCode::ShuttingDown, false), ("w22", ErrorCode::EngineFailed, true)]
    {
        world.ready(name, 1);
        let instance = world.brain.worker_row(&worker(name)).expect("registered").facts.instance;
        let error = ErrorDetail::new(code, "the end");
        world.event(Event::WorkerFailed { request: None, worker_id: worker(name), instance, error });
        assert_eq!(world.brain.worker_row(&worker(name)).is_some(), stays, "{name}");
        let refused = matches!(answer(&world.ready(name, 1)), Answer::Refused(_));
        assert_eq!(refused, !stays, "{name}: what it had on the way");
    }
}
