//! A job whose first commit failed was never in.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use orchestrator_core::{Answer, Event, Idempotency, Submission};
use world::{World, answer, job, opened, run, submission};

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
fn a_withdrawn_key_is_free_again() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.event(Event::Submit(keyed(1)));
    world.event(Event::Withdraw { job_id: job(1) });
    let step = world.event(Event::Submit(keyed(2)));
    assert!(matches!(answer(&step), Answer::Accepted { job_id, replayed: false, .. } if job_id == job(2)));
}

#[test]
fn withdrawing_what_is_not_there_changes_nothing() {
    let mut world = World::new();
    let step = world.event(Event::Withdraw { job_id: job(9) });
    assert!(step.writes.is_empty() && step.actions.is_empty());
}
