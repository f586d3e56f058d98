//! A job whose first commit failed was never in.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use api_types::worker::WorkerStatus;
use api_types::{SessionId, StopReason, TenantId};
use orchestrator_core::{Answer, Event, Idempotency, Orchestrator, Quota, Quotas, Settings, Submission};
use world::{World, answer, end, facts, job, opened, run, submission};

fn with_quota(default: Quota) -> World {
    let quotas = Quotas { default, ..Quotas::default() };
    World::with(Settings { quotas, ..Settings::default() })
}

fn keyed(n: u128) -> Submission {
    let idempotency = Some(Idempotency { key: "order-7".to_owned(), digest: "d".to_owned() });
    Submission { idempotency, ..submission(n) }
}

#[test]
fn the_slot_of_a_withdrawn_job_goes_to_the_next_and_nothing_of_it_is_written() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    world.submit(2);
    let step = world.event(Event::Withdraw { job_id: job(1) });
    assert_eq!(opened(&step), [run(2, 1, "w1", 1)]);
    assert!(!format!("{:?}", step.writes).contains(&job(1).to_string()), "{:?}", step.writes);
    assert!(world.brain.job(job(1)).is_none());
}

#[test]
fn a_withdrawn_job_counts_no_longer_as_one_that_its_tenant_has_in_service() {
    let mut world = with_quota(Quota { concurrency: Some(1), ..Quota::default() });
    world.ready("w1", 2);
    world.submit(1);
    world.event(Event::Withdraw { job_id: job(1) });
    assert_eq!(opened(&world.submit(2)), [run(2, 1, "w1", 1)]);
    // The bound holds for the next one still, and what waits for it comes on when it is withdrawn.
    assert_eq!(opened(&world.submit(3)), []);
    let step = world.event(Event::Withdraw { job_id: job(2) });
    assert_eq!(opened(&step), [run(3, 1, "w1", 1)]);
}

#[test]
fn a_withdrawn_job_counts_no_longer_as_one_that_waits() {
    let mut world = with_quota(Quota { queued: Some(1), ..Quota::default() });
    world.register(facts("w1", 1), WorkerStatus::Loading, vec![]);
    world.submit(1);
    assert!(matches!(answer(&world.submit(2)), Answer::Refused(_)));
    world.event(Event::Withdraw { job_id: job(1) });
    assert!(matches!(answer(&world.submit(2)), Answer::Accepted { .. }));
    assert!(matches!(answer(&world.submit(3)), Answer::Refused(_)), "one may wait, not two");
}

#[test]
fn the_tokens_of_a_withdrawn_job_are_back_in_the_minute() {
    let mut world = with_quota(Quota { tokens_per_minute: Some(600), ..Quota::default() });
    world.ready("w1", 1);
    // 5 bytes of prompt are taken to be 2 tokens.
    let whole_minute = |n| Event::Submit(Submission { max_tokens: Some(598), ..submission(n) });
    world.event(whole_minute(1));
    assert!(matches!(answer(&world.event(whole_minute(2))), Answer::Refused(_)));
    world.event(Event::Withdraw { job_id: job(1) });
    assert!(matches!(answer(&world.event(whole_minute(2))), Answer::Accepted { .. }));
}

#[test]
fn a_withdrawn_job_is_off_its_session_dispatched_or_not() {
    for status in [WorkerStatus::Ready, WorkerStatus::Loading] {
        let mut world = World::new();
        world.register(facts("w1", 1), status, vec![]);
        let id: SessionId = "chat".parse().expect("an id");
        let session = |world: &World| world.brain.session(&TenantId::default(), &id, world.now);
        world.event(Event::Submit(Submission { session_id: Some(id.clone()), ..submission(1) }));
        let open = session(&world).expect("made");
        assert_eq!((open.jobs_open, open.tokens_reserved), (1, 22));
        let step = world.event(Event::Withdraw { job_id: job(1) });
        assert_eq!(step.writes, []);
        let left = session(&world).expect("its row is written whatever becomes of the job");
        assert_eq!((left.jobs_open, left.tokens_reserved, left.tokens_used, left.turns), (0, 0, 0, 0));
    }
}

#[test]
fn a_withdrawn_job_costs_its_tenant_no_turn() {
    let of = |name: &str, n| {
        let tenant: TenantId = name.parse().expect("an id");
        Event::Submit(Submission { tenant, max_tokens: Some(400), ..submission(n) })
    };
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    for (name, n) in [("a", 2), ("a", 3), ("b", 4)] {
        world.event(of(name, n));
    }
    let step = world.event(Event::StreamEnded { run: run(1, 1, "w1", 1), end: end(9, StopReason::Eos) });
    assert_eq!(opened(&step), [run(2, 1, "w1", 1)]);
    let step = world.event(Event::Withdraw { job_id: job(2) });
    assert_eq!(opened(&step), [run(3, 1, "w1", 1)], "nothing was done for the tenant yet");
}

#[test]
fn a_withdrawn_key_is_free_again() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.event(Event::Submit(keyed(1)));
    world.event(Event::Withdraw { job_id: job(1) });
    let step = world.event(Event::Submit(keyed(2)));
    assert!(matches!(answer(&step), Answer::Accepted { job_id, replayed: false, .. } if job_id == job(2)));
}

/// An ended job that is erased, when its row is remembered and when its key alone is, before a snapshot
/// was read and after.
#[test]
fn the_key_of_an_erased_job_is_free_again() {
    for (ended_capacity, restores) in [(10, false), (10, true), (0, false), (0, true)] {
        let mut world = World::with(Settings { ended_capacity, ..Settings::default() });
        world.ready("w1", 1);
        world.event(Event::Submit(keyed(1)));
        world.event(Event::StreamEnded { run: run(1, 1, "w1", 1), end: end(9, StopReason::Eos) });
        assert_eq!(world.brain.job(job(1)).is_some(), ended_capacity > 0);
        if restores {
            let snapshot = world.brain.snapshot().expect("written");
            world.brain = Orchestrator::restore(&snapshot).expect("read");
        }
        let again = answer(&world.event(Event::Submit(keyed(2))));
        assert!(matches!(again, Answer::Accepted { job_id, replayed: true, .. } if job_id == job(1)));
        world.event(Event::Withdraw { job_id: job(1) });
        let fresh = answer(&world.event(Event::Submit(keyed(2))));
        assert!(matches!(fresh, Answer::Accepted { job_id, replayed: false, .. } if job_id == job(2)));
    }
}

#[test]
fn withdrawing_what_is_not_there_changes_nothing() {
    let mut world = World::new();
    let step = world.event(Event::Withdraw { job_id: job(9) });
    assert!(step.writes.is_empty() && step.actions.is_empty());
}
