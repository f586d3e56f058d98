//! From submission to the end: what is written, and what is done, in that order.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use api_types::task::{Durability, Priority, TaskStatus};
use api_types::worker::WorkerStatus;
use api_types::{ErrorCode, StopReason, TaskEvent};
use orchestrator_core::{
    Action, Answer, Event, FullPolicy, Idempotency, OpenStream, PoolModel, PoolRow, Settings, Write,
};
use world::{World, acts, answer, end, facts, job, opened, run, submission};

#[test]
fn a_job_goes_from_submission_to_its_end() {
    let mut world = World::new();
    world.ready("w1", 1);
    let step = world.submit(1);
    let [Write::InsertJob(new), Write::PutDecision { decision, .. }, Write::UpdateJob(row)] =
        &step.writes[..]
    else {
        panic!("{:?}", step.writes)
    };
    assert_eq!((new.status, row.status), (TaskStatus::Queued, TaskStatus::Dispatched));
    assert_eq!(decision.picked.as_ref(), row.attempt.as_ref().map(|attempt| &attempt.worker_id));
    let expected = vec![
        Action::Publish {
            job_id: job(1),
            event: TaskEvent::Queued { job_id: job(1), queue_position: 0, eta_ms: None },
        },
        Action::Answer {
            request: orchestrator_core::RequestId(1),
            answer: Answer::Accepted {
                job_id: job(1),
                status: TaskStatus::Dispatched,
                queue_position: 0,
                eta: None,
                replayed: false,
                model: "small".to_owned(),
            },
        },
        Action::OpenStream(OpenStream {
            run: run(1, 1, "w1", 1),
            uri: "http://w1".to_owned(),
            secret: None,
            first_event_id: 1,
            time_limit_ms: 300_000,
            prefix: None,
            goes_on: None,
        }),
    ];
    assert_eq!(acts(&step), expected);

    let step = world.event(Event::FirstToken(run(1, 1, "w1", 1)));
    assert!(matches!(&step.writes[..], [Write::UpdateJob(row)] if row.status == TaskStatus::Running));
    assert_eq!(acts(&step), vec![Action::PassStream(run(1, 1, "w1", 1))]);

    world.now = world.now + 40;
    let step = world.event(Event::StreamEnded { run: run(1, 1, "w1", 1), end: end(2, StopReason::Eos) });
    let last_event = TaskEvent::End(end(2, StopReason::Eos));
    let [Write::EndJob { row, last_event: written }] = &step.writes[..] else { panic!("{:?}", step.writes) };
    assert_eq!((row.status, written), (TaskStatus::Completed, &last_event));
    let expected = vec![
        Action::EndJob { job_id: job(1), release_held: true, last_event },
        Action::AckRun { run: run(1, 1, "w1", 1), uri: "http://w1".to_owned(), secret: None },
    ];
    assert_eq!(acts(&step), expected);
    assert_eq!(world.brain.health(world.now).running, 0);
}

#[test]
fn a_memory_job_is_never_written() {
    let mut world = World::new();
    world.ready("w1", 1);
    let step = world.event(Event::Submit(orchestrator_core::Submission {
        durability: Durability::Memory,
        ..submission(1)
    }));
    assert_eq!((step.writes, opened(&world.event(Event::FirstToken(run(1, 1, "w1", 1))))), (vec![], vec![]));
    let step = world.event(Event::StreamEnded { run: run(1, 1, "w1", 1), end: end(0, StopReason::Eos) });
    assert_eq!(step.writes, vec![]);
    assert_eq!(world.status(1), TaskStatus::Completed);
}

#[test]
fn the_same_key_gives_the_same_job_also_after_its_end_and_a_restart() {
    let mut world = World::new();
    world.ready("w1", 1);
    let keyed = |n, digest: &str| {
        let idempotency = Some(Idempotency { key: "k".to_owned(), digest: digest.to_owned() });
        Event::Submit(orchestrator_core::Submission { idempotency, ..submission(n) })
    };
    world.event(keyed(1, "a"));
    world.event(Event::StreamEnded { run: run(1, 1, "w1", 1), end: end(0, StopReason::Eos) });
    for _ in 0..2 {
        let step = world.event(keyed(2, "a"));
        assert!(step.writes.is_empty());
        let Answer::Accepted { job_id, status, replayed, .. } = answer(&step) else { panic!("{step:?}") };
        assert_eq!((job_id, status, replayed), (job(1), TaskStatus::Completed, true));
        let step = world.event(keyed(3, "b"));
        assert!(matches!(answer(&step), Answer::Refused(e) if e.code == ErrorCode::IdempotencyConflict));
        world.restart();
    }
}

#[test]
fn refusals_name_what_is_wrong_and_what_to_do() {
    let mut world = World::new();
    let refused = |world: &mut World, change: fn(&mut orchestrator_core::Submission)| {
        let mut task = submission(9);
        change(&mut task);
        let step = world.event(Event::Submit(task));
        assert!(step.writes.is_empty());
        match answer(&step) {
            Answer::Refused(error) => error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&mut world, |task| task.model = None).code, ErrorCode::ModelAmbiguous);
    world.ready("w1", 1);
    let error = refused(&mut world, |task| task.model = Some("smal".to_owned()));
    assert_eq!(
        (error.code, error.hint.as_deref()),
        (ErrorCode::ModelNotFound, Some("Did you mean `small`?"))
    );
    assert_eq!(refused(&mut world, |task| task.deadline_ms = Some(0)).code, ErrorCode::DeadlineUnmet);
    let models = |downloaded| {
        let (id, aliases) = ("big".to_owned(), vec!["b".to_owned()]);
        let models = vec![PoolModel { id, aliases, context_length: None, downloaded }];
        Event::PoolModels { pool_id: "mac".parse().expect("an id"), models }
    };
    let request = world.request();
    let pool_id = "mac".parse().expect("an id");
    let pool = PoolRow { pool_id, address: None, repo_dir: None, draining: false };
    world.event(Event::PutPool { request, pool });
    world.event(models(false));
    let error = refused(&mut world, |task| task.model = Some("b".to_owned()));
    assert_eq!(error.code, ErrorCode::ModelNotReady);
    assert!(error.hint.is_some_and(|hint| hint.contains("rbees pool models download big --host mac")));
    world.event(models(true));
    let task = orchestrator_core::Submission { model: Some("b".to_owned()), ..submission(9) };
    world.event(Event::Submit(task));
    let why = world.brain.why(job(9), world.now).expect("it waits");
    assert!(why.summary.contains("the pool `mac`"), "{}", why.summary);
    let request = world.request();
    world.event(Event::RemovePool { request, pool_id: "mac".parse().expect("an id") });
    let why = world.brain.why(job(9), world.now).expect("it waits");
    assert!(why.summary.contains("rbees pool worker spawn --model big"), "{}", why.summary);
}

#[test]
fn a_full_queue_refuses_or_drops_the_oldest_batch_job() {
    for full_policy in [FullPolicy::Reject, FullPolicy::DropOldestBatch] {
        let settings = Settings { queue_capacity: Some(1), full_policy, ..Settings::default() };
        let mut world = World::with(settings);
        world.register(facts("w1", 1), WorkerStatus::Loading, vec![]);
        let batch = orchestrator_core::Submission { priority: Priority::Batch, ..submission(1) };
        world.event(Event::Submit(batch));
        let step = world.submit(2);
        match full_policy {
            FullPolicy::Reject => {
                let Answer::Refused(error) = answer(&step) else { panic!("{step:?}") };
                assert_eq!(error.code, ErrorCode::QueueFull);
                assert!(error.retry_after_ms.is_some());
            }
            FullPolicy::DropOldestBatch => {
                assert_eq!((world.status(1), world.status(2)), (TaskStatus::Failed, TaskStatus::Queued));
            }
        }
    }
}
