//! Tenants side by side: turns, quotas, and what is given back.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use std::collections::BTreeMap;

use api_types::task::{Placement, Priority, TaskStatus};
use api_types::{Attempt, ErrorCode, ErrorDetail, StopReason, TenantId};
use orchestrator_core::{Answer, Event, FullPolicy, Quota, Quotas, Run, Settings, Step, Submission};
use world::{World, answer, end, facts, job, opened, run, submission};

fn tenant(name: &str) -> TenantId {
    name.parse().expect("an id")
}

fn of(name: &str, n: u128) -> Submission {
    Submission { tenant: tenant(name), ..submission(n) }
}

fn with_quota(quota: Quota) -> Settings {
    let quotas = Quotas { default: Quota::default(), tenants: BTreeMap::from([(tenant("a"), quota)]) };
    Settings { quotas, ..Settings::default() }
}

fn submit(world: &mut World, task: Submission) -> Step {
    world.event(Event::Submit(task))
}

fn refusal(step: &Step) -> ErrorDetail {
    let Answer::Refused(error) = answer(step) else { panic!("{step:?}") };
    assert!(step.writes.is_empty());
    error
}

/// Ends the only run of the job; gives the jobs that are handed out next.
fn finish(world: &mut World, n: u128) -> Vec<u128> {
    let step = world.event(Event::StreamEnded { run: run(n, 1, "w1", 1), end: end(9, StopReason::Eos) });
    opened(&step).into_iter().map(|run| run.job_id.uuid().as_u128()).collect()
}

#[test]
fn a_flood_of_one_tenant_does_not_hold_up_another() {
    let mut world = World::new();
    world.ready("w1", 1);
    for n in 1..=50 {
        submit(&mut world, of("flood", n));
    }
    submit(&mut world, of("light", 100));
    let standing = world.brain.job(job(100)).expect("known");
    assert!(standing.queue_position.expect("it waits") <= 1);
    let first = finish(&mut world, 1);
    let second = finish(&mut world, first[0]);
    assert!(first[0] == 100 || second[0] == 100, "{first:?} {second:?}");
}

#[test]
fn over_its_concurrency_a_tenant_waits_and_is_in_nobodys_way() {
    let mut world = World::with(with_quota(Quota { concurrency: Some(2), ..Quota::default() }));
    world.ready("w1", 4);
    for n in 1..=4 {
        submit(&mut world, of("a", n));
    }
    submit(&mut world, of("b", 5));
    let status = |world: &World| (1..=5).map(|n| world.status(n)).collect::<Vec<_>>();
    use TaskStatus::{Dispatched, Queued};
    assert_eq!(status(&world), [Dispatched, Dispatched, Queued, Queued, Dispatched]);
    assert_eq!(finish(&mut world, 5), Vec::<u128>::new());
    assert_eq!(finish(&mut world, 1), [3]);
    // It counts what workers hold, also after a restart.
    world.restart();
    let held = [2, 3].map(|n| Run { job_id: job(n), attempt: Attempt(1), ended: false });
    assert_eq!(opened(&world.beat("w1", held.to_vec())), [], "slots are free, and its two jobs still run");
    assert_eq!(finish(&mut world, 3), [4]);
}

#[test]
fn a_failed_attempt_gives_its_place_in_the_quota_back() {
    let mut world = World::with(with_quota(Quota { concurrency: Some(1), ..Quota::default() }));
    world.ready("w1", 1);
    world.ready("w2", 1);
    submit(&mut world, of("a", 1));
    submit(&mut world, of("a", 2));
    let busy = ErrorDetail::new(ErrorCode::EngineFailed, "no");
    let step = world.event(Event::StreamFailed { run: run(1, 1, "w1", 1), error: busy });
    assert_eq!(world.status(1), TaskStatus::Queued);
    assert_eq!(opened(&step).len(), 1, "the next job of the tenant starts while the first one rests");
    assert_eq!(world.status(2), TaskStatus::Dispatched);
}

#[test]
fn too_many_waiting_jobs_of_a_tenant_are_refused_and_others_are_not() {
    let mut world = World::with(with_quota(Quota { queued: Some(2), ..Quota::default() }));
    for n in 1..=2 {
        world.register(facts("w1", 1), api_types::worker::WorkerStatus::Loading, vec![]);
        submit(&mut world, of("a", n));
    }
    let error = refusal(&submit(&mut world, of("a", 3)));
    assert_eq!((error.code, error.retriable), (ErrorCode::QuotaExceeded, true));
    assert!(
        error.retry_after_ms.is_some() && error.hint.is_some_and(|hint| hint.contains("[quotas.tenants.a]"))
    );
    assert!(matches!(answer(&submit(&mut world, of("b", 4))), Answer::Accepted { .. }));
    world.event(Event::Cancel { request: None, job_id: job(1) });
    assert!(matches!(answer(&submit(&mut world, of("a", 5))), Answer::Accepted { .. }));
}

#[test]
fn tokens_per_minute_are_reserved_at_admission_and_settled_at_the_end() {
    let quota = Quota { tokens_per_minute: Some(600), ..Quota::default() };
    let mut world = World::with(with_quota(quota));
    world.ready("w1", 1);
    // 5 bytes of prompt and its beginning may be 6 tokens.
    let task = |n| Submission { max_tokens: Some(494), ..of("a", n) };
    submit(&mut world, task(1));
    let error = refusal(&submit(&mut world, task(2)));
    assert_eq!((error.code, error.retry_after_ms), (ErrorCode::QuotaExceeded, Some(40_000)));
    // It took 3 tokens in and 9 out.
    finish(&mut world, 1);
    assert!(matches!(answer(&submit(&mut world, task(2))), Answer::Accepted { .. }));
    let error = refusal(&submit(&mut world, Submission { max_tokens: Some(95), ..of("a", 3) }));
    assert_eq!(error.retry_after_ms, Some(1_300));
    world.restart();
    assert_eq!(refusal(&submit(&mut world, task(3))).retry_after_ms, Some(40_000));
}

#[test]
fn a_replayed_submission_is_charged_once() {
    let quota = Quota { tokens_per_minute: Some(600), queued: Some(1), ..Quota::default() };
    let mut world = World::with(with_quota(quota));
    world.register(facts("w1", 1), api_types::worker::WorkerStatus::Loading, vec![]);
    let keyed = |n| {
        let digest = "d".to_owned();
        let idempotency = Some(orchestrator_core::Idempotency { key: "k".to_owned(), digest });
        Submission { idempotency, max_tokens: Some(598), ..of("a", n) }
    };
    submit(&mut world, keyed(1));
    for n in 2..5 {
        let step = submit(&mut world, keyed(n));
        assert!(matches!(answer(&step), Answer::Accepted { replayed: true, .. }), "{step:?}");
        world.restart();
    }
    world.event(Event::Cancel { request: None, job_id: job(1) });
    assert!(matches!(
        answer(&submit(&mut world, Submission { idempotency: None, ..keyed(9) })),
        Answer::Accepted { .. }
    ));
}

#[test]
fn a_key_of_one_tenant_means_nothing_to_another() {
    let mut world = World::new();
    world.ready("w1", 2);
    let keyed = |name, n| {
        let idempotency =
            Some(orchestrator_core::Idempotency { key: "k".to_owned(), digest: "d".to_owned() });
        Submission { idempotency, ..of(name, n) }
    };
    let job_of = |step: &Step| match answer(step) {
        Answer::Accepted { job_id, .. } => job_id,
        other => panic!("{other:?}"),
    };
    for _ in 0..2 {
        assert_eq!(job_of(&submit(&mut world, keyed("a", 1))), job(1));
        assert_eq!(job_of(&submit(&mut world, keyed("b", 2))), job(2));
        world.restart();
    }
    finish(&mut world, 1);
    world.restart();
    assert_eq!(job_of(&submit(&mut world, keyed("a", 3))), job(1));
    assert_eq!(job_of(&submit(&mut world, keyed("b", 4))), job(2));
}

#[test]
fn a_full_queue_still_takes_what_starts_at_once_and_drops_the_oldest_batch_job() {
    let quota = Quota { concurrency: Some(1), ..Quota::default() };
    let settings =
        Settings { queue_capacity: Some(2), full_policy: FullPolicy::DropOldestBatch, ..with_quota(quota) };
    let mut world = World::with(settings);
    world.ready("w1", 2);
    submit(&mut world, of("a", 1));
    submit(&mut world, Submission { priority: Priority::Batch, ..of("a", 2) });
    submit(&mut world, Submission { priority: Priority::Batch, ..of("a", 3) });
    assert_eq!((world.status(2), world.status(3)), (TaskStatus::Queued, TaskStatus::Queued));
    submit(&mut world, of("b", 4));
    assert_eq!(world.status(4), TaskStatus::Dispatched, "a slot is free and only blocked jobs wait");
    assert_eq!(world.status(2), TaskStatus::Queued);
    submit(&mut world, of("b", 5));
    assert_eq!((world.status(2), world.status(5)), (TaskStatus::Failed, TaskStatus::Queued));
}

#[test]
fn a_demand_that_nothing_meets_keeps_only_its_own_tenants_job_waiting() {
    let mut world = World::new();
    world.ready("w1", 1);
    submit(&mut world, of("a", 1));
    let placement = Placement { require: vec!["cuda".to_owned()], ..Placement::default() };
    submit(&mut world, Submission { placement, ..of("b", 2) });
    submit(&mut world, of("b", 3));
    assert_eq!(finish(&mut world, 1), [3]);
    assert_eq!(world.status(2), TaskStatus::Queued);
}

#[test]
fn among_deadlines_the_tightest_goes_first_and_takes_no_place_of_the_others() {
    let mut world = World::new();
    world.ready("w1", 1);
    submit(&mut world, submission(1));
    let within = |n, deadline_ms| Submission { deadline_ms, ..submission(n) };
    for task in [within(2, Some(9_000)), within(3, None), within(4, Some(2_000)), within(5, None)] {
        submit(&mut world, task);
    }
    let mut order = vec![1];
    for _ in 0..4 {
        let last = *order.last().expect("not empty");
        order.extend(finish(&mut world, last));
    }
    assert_eq!(order, [1, 4, 3, 2, 5]);
}
