//! Jobs whose worker is lost after the first token and that go on on another.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use api_types::event::{Eta, RunEnd};
use api_types::task::{RetryMode, TaskStatus};
use api_types::worker::{EXACT_REPLAY, Seam, WorkerFacts, WorkerStatus};
use api_types::{Attempt, ErrorCode, ErrorDetail, StopReason};
use orchestrator_core::{Action, BrokenCause, Event, GoOn, Kept, OpenStream, Run, RunKey, Step, Submission};
use world::{World, acts, end, facts, instance, job, run, submission, worker};

const WORKERS: [&str; 3] = ["w1", "w22", "w333"];

/// Three workers; a job that goes on elsewhere runs on the first.
fn running() -> World {
    let mut world = World::new();
    for name in WORKERS {
        world.ready(name, 1);
    }
    world.event(Event::Submit(Submission { retry: RetryMode::Continue, ..submission(1) }));
    world.event(Event::FirstToken(run(1, 1, "w1", 1)));
    world
}

fn kept(tokens: u32, seams: u32, unsure: u32) -> Kept {
    Kept { events: u64::from(2 + tokens + seams), tokens, seams, unsure, ids_known: true }
}

/// The worker of a run is gone; the driver tells what the run has left, as it must.
fn lose(world: &mut World, lost: &RunKey, kept: Kept) -> Step {
    let step = world.event(Event::StreamBroken { run: lost.clone(), cause: BrokenCause::Refused });
    assert!(acts(&step).contains(&Action::Salvage(lost.clone())), "{step:?}");
    world.event(Event::Salvaged { run: lost.clone(), kept })
}

fn open(step: &Step) -> OpenStream {
    let found = acts(step).into_iter().find_map(|action| match action {
        Action::OpenStream(open) => Some(open),
        _ => None,
    });
    found.expect("a run is opened")
}

fn seam(at: u32, from: &str, to: &str, i: u32, exact: bool) -> Seam {
    Seam { at, from_worker: worker(from), to_worker: worker(to), i, exact }
}

#[test]
fn a_running_job_goes_on_elsewhere_from_its_tokens() {
    let mut world = running();
    lose(&mut world, &run(1, 1, "w1", 1), kept(7, 0, 0));
    assert_eq!(world.status(1), TaskStatus::Queued);
    let next = open(&world.pass(2_000));
    assert_eq!((next.run, next.first_event_id), (run(1, 2, "w22", 2), 9));
    assert_eq!(next.goes_on, Some(GoOn { tokens: 7, seams: vec![seam(7, "w1", "w22", 7, true)] }));
    let late = world.event(Event::FirstToken(run(1, 1, "w1", 1)));
    assert!(acts(&late).is_empty() && late.writes.is_empty(), "the old attempt has no say");
    world.event(Event::FirstToken(run(1, 2, "w22", 2)));
    assert_eq!(world.status(1), TaskStatus::Running);
}

#[test]
fn a_takeover_that_showed_nothing_leaves_no_seam() {
    let mut world = running();
    lose(&mut world, &run(1, 1, "w1", 1), kept(7, 0, 0));
    world.pass(2_000);
    let error = ErrorDetail::new(ErrorCode::EngineFailed, "broken");
    let step = world.event(Event::StreamFailed { run: run(1, 2, "w22", 2), error });
    assert!(!acts(&step).iter().any(|action| matches!(action, Action::Salvage(_))), "{step:?}");
    let next = open(&world.pass(5_000));
    assert_eq!((next.run.attempt.0, next.first_event_id), (3, 9));
    let to = next.run.worker_id.as_str().to_owned();
    assert_eq!(next.goes_on.expect("it goes on").seams, [seam(7, "w1", &to, 7, true)]);
}

#[test]
fn what_readers_may_have_had_goes_before_the_seam() {
    let mut world = running();
    lose(&mut world, &run(1, 1, "w1", 1), kept(7, 0, 512));
    world.pass(2_000);
    world.event(Event::FirstToken(run(1, 2, "w22", 2)));
    // The second worker stalls before it has come to the seam, so the third is to log both.
    let second = run(1, 2, "w22", 2);
    world.event(Event::StreamBroken { run: second.clone(), cause: BrokenCause::Stalled });
    world.event(Event::Salvaged { run: second, kept: kept(300, 0, 219) });
    let next = open(&world.pass(5_000)).goes_on.expect("it goes on");
    let last = next.seams.last().expect("its own").to_worker.as_str().to_owned();
    let far = seam(519, "w22", &last, 300, 300 <= EXACT_REPLAY);
    assert_eq!(next.seams, [seam(519, "w1", "w22", 7, true), far]);
}

#[test]
fn a_seam_in_the_log_is_not_logged_again() {
    let mut world = running();
    lose(&mut world, &run(1, 1, "w1", 1), kept(7, 0, 0));
    world.pass(2_000);
    world.event(Event::FirstToken(run(1, 2, "w22", 2)));
    let second = run(1, 2, "w22", 2);
    world.event(Event::StreamBroken { run: second.clone(), cause: BrokenCause::Stalled });
    world.event(Event::Salvaged { run: second, kept: kept(20, 1, 0) });
    let next = open(&world.pass(5_000)).goes_on.expect("it goes on");
    let [only] = next.seams.as_slice() else { panic!("one seam: {next:?}") };
    assert_eq!((only.at, only.i, only.from_worker.as_str()), (20, 20, "w22"));
}

#[test]
fn another_build_or_a_long_replay_is_not_exact() {
    for (tokens, version, exact) in [(7, "0", true), (7, "1", false), (EXACT_REPLAY as u32 + 1, "0", false)] {
        let mut world = World::new();
        world.ready("w1", 1);
        world.event(Event::Submit(Submission { retry: RetryMode::Continue, ..submission(1) }));
        world.event(Event::FirstToken(run(1, 1, "w1", 1)));
        let mut other = facts("w22", 1);
        other.version = version.to_owned();
        world.register(other, WorkerStatus::Ready, vec![]);
        lose(&mut world, &run(1, 1, "w1", 1), kept(tokens, 0, 0));
        let seams = open(&world.pass(2_000)).goes_on.expect("it goes on").seams;
        assert_eq!(seams.iter().map(|seam| seam.exact).collect::<Vec<_>>(), [exact], "{tokens} {version}");
    }
}

#[test]
fn a_job_that_kills_two_workers_is_poison_also_when_it_goes_on() {
    let mut world = running();
    lose(&mut world, &run(1, 1, "w1", 1), kept(7, 0, 0));
    world.pass(2_000);
    world.event(Event::FirstToken(run(1, 2, "w22", 2)));
    lose(&mut world, &run(1, 2, "w22", 2), kept(9, 1, 0));
    let error = world.brain.job(job(1)).and_then(|standing| standing.row.error).expect("failed");
    assert_eq!(error.code, ErrorCode::Poison);
}

#[test]
fn a_permanent_error_ends_the_job() {
    let mut world = running();
    let error = ErrorDetail::new(ErrorCode::ContextOverflow, "too long");
    world.event_counted(Event::StreamFailed { run: run(1, 1, "w1", 1), error }, 7);
    assert_eq!(world.status(1), TaskStatus::Failed);
}

#[test]
fn tokens_without_ids_cannot_be_carried_on() {
    let mut world = running();
    lose(&mut world, &run(1, 1, "w1", 1), Kept { ids_known: false, ..kept(7, 0, 0) });
    let error = world.brain.job(job(1)).and_then(|standing| standing.row.error).expect("failed");
    assert_eq!(error.code, ErrorCode::WorkerLost);
}

#[test]
fn a_cancelled_job_counts_its_prompt_and_the_tokens_it_had() {
    let mut world = running();
    lose(&mut world, &run(1, 1, "w1", 1), kept(7, 0, 0));
    world.event(Event::Cancel { request: None, job_id: job(1) });
    let end = world.brain.job(job(1)).and_then(|standing| standing.row.end).expect("cancelled");
    assert_eq!((end.tokens_in, end.tokens_out), (2, 7));
}

#[test]
fn a_job_that_fails_after_a_seam_is_charged_its_prompt_and_the_tokens_it_had() {
    let mut world = World::new();
    WORKERS.iter().for_each(|name| drop(world.ready(name, 1)));
    let session_id = Some("talk".parse().expect("an id"));
    let first = Submission { retry: RetryMode::Continue, session_id, ..submission(1) };
    world.event(Event::Submit(first));
    world.event(Event::FirstToken(run(1, 1, "w1", 1)));
    lose(&mut world, &run(1, 1, "w1", 1), kept(7, 0, 0));
    world.pass(2_000);
    let error = ErrorDetail::new(ErrorCode::ContextOverflow, "too long");
    world.event(Event::StreamFailed { run: run(1, 2, "w22", 2), error });
    assert_eq!(world.status(1), TaskStatus::Failed);
    let used: Vec<u64> = world.sessions.values().map(|session| session.tokens_used).collect();
    assert_eq!(used, [6 + 7], "nobody counted its prompt of 5 bytes");
}

#[test]
fn a_restart_knows_what_is_carried() {
    let mut world = running();
    lose(&mut world, &run(1, 1, "w1", 1), kept(7, 0, 0));
    let before = world.brain.job(job(1)).expect("it waits").row;
    assert!(before.carried.is_some());
    world.restart();
    assert_eq!(world.brain.job(job(1)).expect("it waits").row, before);
}

/// The estimate of a job that comes after a carried one which ended with these figures.
fn estimated_after(carried: RunEnd) -> Option<Eta> {
    let mut world = running();
    for n in 100..140 {
        let opened = open(&world.submit(n)).run;
        world.now = world.now + 1_000;
        let figures = RunEnd { prefill_time_ms: 20, decode_time_ms: 980, ..end(10, StopReason::Eos) };
        world.event(Event::StreamEnded { run: opened, end: figures });
        WORKERS.iter().skip(1).for_each(|name| drop(world.beat(name, vec![])));
        world.beat("w1", vec![Run { job_id: job(1), attempt: Attempt(1), ended: false }]);
    }
    lose(&mut world, &run(1, 1, "w1", 1), kept(7, 0, 0));
    let next = open(&world.pass(2_000)).run;
    world.event(Event::FirstToken(next.clone()));
    world.event(Event::StreamEnded { run: next, end: carried });
    world.submit(900);
    let eta = world.brain.eta(job(900), world.now);
    assert!(eta.is_some(), "the runs before are known");
    eta
}

#[test]
fn rates_are_not_learnt_from_a_run_that_two_workers_made() {
    let at = |decode_time_ms| RunEnd { decode_time_ms, ..end(4_000, StopReason::Eos) };
    assert_eq!(estimated_after(at(1)), estimated_after(at(600_000)));
}

#[test]
fn a_restart_of_the_same_build_under_the_same_id_is_exact_and_of_another_is_not() {
    for (version, exact) in [("0", true), ("1", false)] {
        let mut world = World::new();
        world.ready("w1", 1);
        world.event(Event::Submit(Submission { retry: RetryMode::Continue, ..submission(1) }));
        world.event(Event::FirstToken(run(1, 1, "w1", 1)));
        let again = WorkerFacts { instance: instance(77), version: version.to_owned(), ..facts("w1", 1) };
        let step = world.register(again, WorkerStatus::Ready, vec![]);
        let lost = run(1, 1, "w1", 1);
        assert!(acts(&step).contains(&Action::Salvage(lost.clone())), "{step:?}");
        world.event(Event::Salvaged { run: lost, kept: kept(7, 0, 0) });
        let seams = open(&world.pass(2_000)).goes_on.expect("it goes on").seams;
        assert_eq!(seams, [seam(7, "w1", "w1", 7, exact)]);
    }
}
