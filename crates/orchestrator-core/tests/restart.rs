//! A restart from the rows of any commit goes on as if nothing had happened.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use api_types::task::{Priority, TaskStatus};
use api_types::{ErrorCode, ErrorDetail, StopReason};
use orchestrator_core::{Action, BrokenCause, Event, Submission};
use proptest::prelude::*;
use world::{World, acts, end, job, opened, run, submission, worker};

#[test]
fn runs_are_taken_up_from_their_logs_and_waiting_jobs_keep_their_order() {
    let mut world = World::new();
    world.ready("w1", 2);
    for n in 1..=4 {
        world.submit(n);
    }
    world.event(Event::FirstToken(run(1, 1, "w1", 1)));
    let step = world.restart();
    assert!(step.writes.is_empty());
    let resumed = |n, passed| Action::ResumeStream {
        run: run(n, 1, "w1", 1),
        uri: "http://w1".to_owned(),
        secret: None,
        delay_ms: 0,
        passed,
    };
    let probe = Action::ProbeWorker {
        worker_id: worker("w1"),
        incarnation: api_types::Incarnation(1),
        uri: "http://w1".to_owned(),
        secret: None,
    };
    assert_eq!(acts(&step), vec![probe, resumed(1, true), resumed(2, false)]);
    let ended = |n| Event::StreamEnded { run: run(n, 1, "w1", 1), end: end(1, StopReason::Eos) };
    assert!(opened(&world.event(ended(2))).is_empty(), "the worker has not been heard of");
    assert_eq!(opened(&world.beat("w1", vec![])), vec![run(3, 1, "w1", 1)]);
    assert_eq!(opened(&world.event(ended(1))), vec![run(4, 1, "w1", 1)]);
}

#[test]
fn a_dispatch_that_was_never_sent_is_sent_after_the_restart() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    world.restart();
    let unknown = Event::StreamBroken { run: run(1, 1, "w1", 1), cause: BrokenCause::RunUnknown };
    assert_eq!(opened(&world.event(unknown)), vec![run(1, 1, "w1", 1)]);
}

#[test]
fn a_cancellation_goes_on_after_a_restart() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    world.event(Event::Cancel { request: None, job_id: job(1) });
    let step = world.restart();
    assert!(acts(&step).iter().any(|act| matches!(act, Action::StopRun { .. })));
    world.pass(5_000);
    assert_eq!(world.status(1), TaskStatus::Cancelled);
}

#[derive(Debug, Clone)]
enum Doing {
    Submit(Priority),
    Token(u128),
    End(u128),
    Fail(u128),
    Break(u128, BrokenCause),
    Cancel(u128),
    Beat,
    Pass(u64),
}

fn doing() -> impl Strategy<Value = Doing> {
    let cause = prop_oneof![
        Just(BrokenCause::Unreachable),
        Just(BrokenCause::RunUnknown),
        Just(BrokenCause::Stalled)
    ];
    prop_oneof![
        3 => prop_oneof![Just(Priority::Interactive), Just(Priority::Batch)].prop_map(Doing::Submit),
        2 => (1..9_u128).prop_map(Doing::Token),
        2 => (1..9_u128).prop_map(Doing::End),
        1 => (1..9_u128).prop_map(Doing::Fail),
        1 => (1..9_u128, cause).prop_map(|(n, cause)| Doing::Break(n, cause)),
        1 => (1..9_u128).prop_map(Doing::Cancel),
        3 => Just(Doing::Beat),
        2 => (0..3_000_u64).prop_map(Doing::Pass),
    ]
}

fn apply(world: &mut World, doing: Doing, submitted: &mut u128) {
    let current = |world: &World, n| {
        let attempt = world.brain.job(job(n)).and_then(|standing| standing.row.attempt);
        attempt.map(|attempt| run(n, attempt.attempt.0, "w1", attempt.incarnation.0))
    };
    match doing {
        Doing::Submit(priority) => {
            *submitted += 1;
            world.event(Event::Submit(Submission { priority, ..submission(*submitted) }));
        }
        Doing::Token(n) => drop(current(world, n).map(|run| world.event(Event::FirstToken(run)))),
        Doing::End(n) => {
            let end = end(1, StopReason::Eos);
            drop(current(world, n).map(|run| world.event(Event::StreamEnded { run, end })));
        }
        Doing::Fail(n) => {
            let error = ErrorDetail::new(ErrorCode::EngineFailed, "scripted");
            drop(current(world, n).map(|run| world.event_counted(Event::StreamFailed { run, error }, 1)));
        }
        Doing::Break(n, cause) => {
            drop(current(world, n).map(|run| world.event_counted(Event::StreamBroken { run, cause }, 1)));
        }
        Doing::Cancel(n) => drop(world.event(Event::Cancel { request: None, job_id: job(n) })),
        Doing::Beat => drop(world.beat("w1", vec![])),
        Doing::Pass(ms) => drop(world.pass(ms)),
    }
}

proptest! {
    #[test]
    fn what_the_brain_holds_is_what_it_wrote(doings in prop::collection::vec(doing(), 0..40)) {
        let mut world = World::new();
        world.ready("w1", 2);
        let mut submitted = 0;
        for doing in doings {
            apply(&mut world, doing, &mut submitted);
            for (id, row) in &world.jobs {
                let held = world.brain.job(*id).map(|standing| standing.row);
                prop_assert_eq!(held.as_ref(), Some(row));
            }
        }
        let before: Vec<_> = (1..=submitted).map(|n| world.brain.job(job(n)).map(|s| s.row.status)).collect();
        let step = world.restart();
        prop_assert_eq!(step.writes, vec![]);
        for (n, status) in (1..=submitted).zip(before) {
            prop_assert_eq!(world.brain.job(job(n)).map(|standing| standing.row.status), status);
        }
    }
}
