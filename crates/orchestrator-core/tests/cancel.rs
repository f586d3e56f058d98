//! Ends by request and by the clock.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use api_types::task::{OnDisconnect, TaskStatus};
use api_types::{ErrorCode, StopReason, TaskEvent, TenantId};
use orchestrator_core::{Action, Answer, Event, Idempotency, Kept, RequestId, Submission, Write};
use world::{World, acts, answer, end, job, run, submission};

fn cancel(world: &mut World, n: u128) -> orchestrator_core::Step {
    let request = Some(RequestId(77));
    world.event(Event::Cancel { request, job_id: job(n) })
}

fn stop(n: u128) -> Action {
    Action::StopRun { run: run(n, 1, "w1", 1), uri: "http://w1".to_owned(), secret: None }
}

#[test]
fn a_waiting_job_ends_at_once() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    world.submit(2);
    let step = cancel(&mut world, 2);
    assert_eq!(answer(&step), Answer::Cancelled { status: TaskStatus::Cancelled, already_ended: false });
    assert!(matches!(&step.writes[..], [Write::EndJob { last_event: TaskEvent::End(end), .. }]
        if end.stop_reason == StopReason::Cancelled && end.tokens_out == 0));
    let again = cancel(&mut world, 2);
    assert!(again.writes.is_empty());
    assert_eq!(answer(&again), Answer::Cancelled { status: TaskStatus::Cancelled, already_ended: true });
}

#[test]
fn a_run_is_told_to_stop_once_and_its_end_counts() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    let step = cancel(&mut world, 1);
    assert!(acts(&step).contains(&stop(1)));
    let again = cancel(&mut world, 1);
    assert!(again.writes.is_empty() && !acts(&again).contains(&stop(1)));
    world.event(Event::StreamEnded { run: run(1, 1, "w1", 1), end: end(4, StopReason::Cancelled) });
    let row = world.brain.job(job(1)).expect("kept for a while").row;
    assert_eq!((row.status, row.end.map(|end| end.tokens_out)), (TaskStatus::Cancelled, Some(4)));
}

#[test]
fn a_cancellation_is_final_after_five_seconds_and_the_slot_waits_for_the_worker() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.submit(1);
    world.event(Event::FirstToken(run(1, 1, "w1", 1)));
    cancel(&mut world, 1);
    let step = world.pass(5_000);
    let last_event = TaskEvent::End(end_of_cancelled());
    let expected = vec![
        Action::DropStream(run(1, 1, "w1", 1)),
        stop(1),
        Action::Salvage(run(1, 1, "w1", 1)),
        Action::EndJob { job_id: job(1), release_held: false, last_event },
    ];
    assert_eq!(acts(&step), expected, "it ends even if nobody counts what was shown");
    world.submit(2);
    assert_eq!(world.status(2), TaskStatus::Queued);
    world.beat("w1", vec![]);
    assert_eq!(world.status(2), TaskStatus::Dispatched);
}

/// Does what is due now, and tells what is in the log of each run that is to be counted.
fn due_with_log(world: &mut World, tokens: u32) -> orchestrator_core::Step {
    let mut all = world.brain.handle_timeout(world.now);
    world.commit(&all);
    let counted: Vec<_> = all
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Salvage(run) => Some(run.clone()),
            _ => None,
        })
        .collect();
    for run in counted {
        let kept = Kept { events: u64::from(tokens) + 2, tokens, seams: 0, unsure: 0, ids_known: false };
        let step = world.event(Event::Salvaged { run, kept });
        all.writes.extend(step.writes);
        all.actions.extend(step.actions);
    }
    all
}

#[test]
fn what_readers_were_shown_counts_although_the_worker_never_says_a_word() {
    let mut world = World::new();
    world.ready("w1", 2);
    let in_session = |n| Submission { session_id: Some("chat".parse().expect("an id")), ..submission(n) };
    let limited = Submission { deadline_ms: Some(5_000), ..in_session(2) };
    for submission in [in_session(1), limited] {
        world.event(Event::Submit(submission));
    }
    for n in [1, 2] {
        world.event(Event::FirstToken(run(n, 1, "w1", 1)));
    }
    cancel(&mut world, 1);
    world.now = world.now + 5_000;
    due_with_log(&mut world, 7);
    let row = world.brain.job(job(1)).expect("kept for a while").row;
    let end = row.end.expect("figures");
    assert_eq!(
        (row.status, end.tokens_out, end.stop_reason),
        (TaskStatus::Cancelled, 7, StopReason::Cancelled)
    );
    let row = world.brain.job(job(2)).expect("kept for a while").row;
    assert_eq!(row.error.expect("an error").code, ErrorCode::DeadlineExceeded);
    let session = world.brain.session(&TenantId::default(), &"chat".parse().expect("an id"), world.now);
    let session = session.expect("known");
    assert_eq!((session.tokens_used, session.tokens_reserved), (2 * (6 + 7), 0), "of both");
}

fn end_of_cancelled() -> api_types::event::RunEnd {
    let zeros = end(0, StopReason::Cancelled);
    // Its prompt of 5 bytes was read, and nobody counted it.
    api_types::event::RunEnd { tokens_in: 2, prefill_time_ms: 0, decode_time_ms: 0, ..zeros }
}

#[test]
fn a_deadline_ends_a_waiting_job_and_stops_a_run() {
    let mut world = World::new();
    world.ready("w1", 1);
    for n in [1, 2] {
        world.event(Event::Submit(Submission { deadline_ms: Some(2_000), ..submission(n) }));
    }
    let step = world.pass(2_000);
    assert!(acts(&step).contains(&stop(1)));
    for n in [1, 2] {
        let error = world.brain.job(job(n)).and_then(|standing| standing.row.error).expect("failed");
        assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    }
}

#[test]
fn a_job_whose_reader_left_is_cancelled_after_ten_seconds_and_a_restart_begins_them_anew() {
    let mut world = World::new();
    world.ready("w1", 1);
    world.event(Event::Submit(Submission { on_disconnect: OnDisconnect::Cancel, ..submission(1) }));
    world.event(Event::ReadersChanged { job_id: job(1), readers: 1 });
    // The reader is written with the job's next move.
    world.event(Event::FirstToken(run(1, 1, "w1", 1)));
    world.event(Event::ReadersChanged { job_id: job(1), readers: 0 });
    world.pass(5_000);
    world.restart();
    world.beat("w1", vec![]);
    assert!(!acts(&world.pass(5_900)).contains(&stop(1)));
    world.beat("w1", vec![]);
    assert!(acts(&world.pass(4_200)).contains(&stop(1)));
}

#[test]
fn a_job_that_its_submitter_reads_is_read_from_the_start() {
    let mut world = World::new();
    world.ready("w1", 1);
    let read = Submission { on_disconnect: OnDisconnect::Cancel, is_read: true, ..submission(1) };
    world.event(Event::Submit(read));
    world.event(Event::ReadersChanged { job_id: job(1), readers: 0 });
    world.beat("w1", vec![]);
    assert!(!acts(&world.pass(5_000)).contains(&stop(1)));
    world.beat("w1", vec![]);
    assert!(acts(&world.pass(5_100)).contains(&stop(1)));
}

fn keyed(n: u128) -> Event {
    let idempotency = Some(Idempotency { key: "k".to_owned(), digest: "d".to_owned() });
    let on_disconnect = OnDisconnect::Cancel;
    Event::Submit(Submission { idempotency, on_disconnect, is_read: true, ..submission(n) })
}

/// The job that a submission under the key becomes, and whether it was there.
fn becomes(world: &mut World, n: u128) -> (api_types::JobId, bool) {
    let step = world.event(keyed(n));
    match answer(&step) {
        Answer::Accepted { job_id, replayed, .. } => (job_id, replayed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_abandoned_job_gives_its_key_up_at_once_and_for_good() {
    for crashes in [false, true] {
        let mut world = World::new();
        world.ready("w1", 2);
        assert_eq!(becomes(&mut world, 1), (job(1), false));
        let step = world.event(Event::Abandon { job_id: job(1) });
        assert!(acts(&step).contains(&stop(1)));
        if crashes {
            world.restart();
        }
        // Its worker has not stopped yet.
        assert_eq!(becomes(&mut world, 2), (job(2), false));
        world.event(Event::StreamEnded { run: run(1, 1, "w1", 1), end: end(1, StopReason::Cancelled) });
        assert_eq!(becomes(&mut world, 3), (job(2), true), "its end does not take the key away");
        if crashes {
            world.restart();
        }
        assert_eq!(becomes(&mut world, 4), (job(2), true));
    }
}

#[test]
fn a_job_whose_readers_stayed_away_gives_its_key_up() {
    let mut world = World::new();
    assert!(matches!(answer(&world.event(keyed(1))), Answer::Refused(_)), "nobody has the model yet");
    world.ready("w1", 1);
    becomes(&mut world, 1);
    world.event(Event::ReadersChanged { job_id: job(1), readers: 0 });
    world.pass(9_999);
    assert_eq!(becomes(&mut world, 2), (job(1), true));
    world.pass(1);
    assert_eq!(becomes(&mut world, 3), (job(3), false));
}

#[test]
fn a_job_that_is_to_end_by_request_keeps_its_key_when_it_is_left() {
    let mut world = World::new();
    world.ready("w1", 1);
    becomes(&mut world, 1);
    cancel(&mut world, 1);
    world.event(Event::Abandon { job_id: job(1) });
    assert_eq!(becomes(&mut world, 2), (job(1), true));
}
