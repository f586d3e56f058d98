//! When a job may end: what is told, what is refused, what is learnt.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

#[path = "world/pools.rs"]
mod pools;

use std::sync::Arc;

use api_types::event::{Eta, RunEnd};
use api_types::task::{Placement, Priority, TaskStatus};
use api_types::worker::{JSON_SCHEMA, WorkerStatus};
use api_types::{ErrorCode, StopReason, TaskEvent};
use orchestrator_core::estimate::outcome;
use orchestrator_core::policy::{
    Admission, Hook, JobFacts, Policy, PolicyChange, PolicyFailure, PolicyText, QueueFacts, Scripts,
};
use orchestrator_core::{Action, Answer, Event, Run, RunKey, Step, Submission, Time, Write, latest_start};
use pools::{Pools, spawned};
use world::{World, answer, job, opened, submission};

/// 100 tokens in and 50 out of 100; a second in all.
fn figures() -> RunEnd {
    RunEnd {
        tokens_in: 100,
        tokens_out: 50,
        queue_time_ms: 0,
        prefill_time_ms: 20,
        decode_time_ms: 980,
        stop_reason: StopReason::Eos,
        seed: None,
        tokens_cached: None,
    }
}

fn sized(n: u128) -> Submission {
    Submission { prompt_bytes: 400, max_tokens: Some(100), ..submission(n) }
}

fn end_run(world: &mut World, run: RunKey) -> Step {
    world.now = world.now + 1_000;
    world.event(Event::StreamEnded { run, end: figures() })
}

/// Runs so many jobs, one after the other, a second each.
fn learn(world: &mut World, jobs: u128) {
    for n in 0..jobs {
        let step = world.event(Event::Submit(sized(10_000 + n)));
        let run = opened(&step).pop().expect("a free slot");
        end_run(world, run);
        world.beat("w1", vec![]);
    }
}

fn told(step: &Step) -> Option<Eta> {
    match answer(step) {
        Answer::Accepted { eta, .. } => eta,
        other => panic!("{other:?}"),
    }
}

fn refused(step: &Step) -> api_types::ErrorDetail {
    match answer(step) {
        Answer::Refused(error) => error,
        other => panic!("{other:?}"),
    }
}

fn about(eta: Option<Eta>, p50: u64) {
    let eta = eta.expect("known");
    assert!(eta.p50.abs_diff(p50) <= p50 / 20 && eta.p90 >= eta.p50, "{eta:?} is not about {p50}");
}

/// Holds batch jobs for eight hours.
#[derive(Debug)]
struct Holds;

const EIGHT_HOURS: u64 = 8 * 3_600_000;

impl Scripts for Holds {
    fn compile(&self, _: &str, _: &str) -> Result<Arc<dyn Policy>, PolicyFailure> {
        Ok(Arc::new(Self))
    }
}

impl Policy for Holds {
    fn describe(&self) -> &str {
        "holds"
    }

    fn has(&self, hook: Hook) -> bool {
        hook == Hook::Admit
    }

    fn admit(&self, job: &JobFacts<'_>, _: &QueueFacts) -> Result<Admission, PolicyFailure> {
        let held = job.priority == Priority::Batch;
        Ok(if held { Admission::Hold(EIGHT_HOURS) } else { Admission::Admit })
    }
}

/// A world that has learnt, and in which batch jobs are held.
fn holding() -> World {
    let mut world = World::new();
    world.brain.use_scripts(Arc::new(Holds));
    let request = world.request();
    let text = PolicyText { source: Some("holds".into()), ..PolicyText::built_in() };
    world.event(Event::SetPolicy { request, change: PolicyChange::Live(text) });
    world.ready("w1", 1);
    learn(&mut world, 60);
    world
}

fn held(n: u128) -> Submission {
    Submission { priority: Priority::Batch, ..sized(n) }
}

#[test]
fn a_hold_is_part_of_the_estimate_and_of_what_a_deadline_is_judged_by() {
    let mut world = holding();
    let eta = told(&world.event(Event::Submit(held(1)))).expect("known");
    assert!(eta.p50 >= EIGHT_HOURS && eta.p90 <= EIGHT_HOURS + 10_000, "{eta:?}");
    let why = world.brain.why(job(1), world.now).expect("it waits").summary;
    assert!(why.contains("holds it for another 8 h 00 min, until 1970-01-01T08:"), "{why}");
    let with = |n, ms| Event::Submit(Submission { deadline_ms: Some(ms), ..held(n) });
    let error = refused(&world.event(with(2, EIGHT_HOURS)));
    assert_eq!((error.code, error.retriable), (ErrorCode::DeadlineUnmet, false));
    assert!(error.message.contains("holds the job for 28800000 ms"), "{}", error.message);
    let error = refused(&world.event(with(3, EIGHT_HOURS + 100)));
    assert_eq!((error.code, error.retriable), (ErrorCode::DeadlineUnmet, false), "it needs a second more");
    assert!(told(&world.event(with(4, EIGHT_HOURS + 3_600_000))).is_some());
    about(told(&world.event(Event::Submit(sized(5)))), 1_000);
    world.now = world.now + 500;
    let left = world.brain.eta(job(1), world.now).expect("known");
    assert_eq!((left.p50, left.p90), (eta.p50 - 500, eta.p90 - 500), "it counts down");
}

#[test]
fn a_held_job_is_in_nobodys_way_and_its_hold_teaches_nothing() {
    let mut world = holding();
    (1..=5).for_each(|n| drop(world.event(Event::Submit(held(n)))));
    about(told(&world.event(Event::Submit(sized(6)))), 1_000);
    about(told(&world.event(Event::Submit(sized(7)))), 2_000);
    world.event(Event::Cancel { request: None, job_id: job(7) });
    end_run(&mut world, world::run(6, 1, "w1", 1));
    world.now = world.now + EIGHT_HOURS;
    world.ready("w1", 1);
    let mut next = opened(&world.pass(0)).pop();
    while let Some(run) = next.take() {
        next = opened(&end_run(&mut world, run)).pop();
    }
    let rows: Vec<_> = (1..=5).map(|n| world.brain.job(job(n)).expect("remembered").row).collect();
    assert!(rows.iter().all(|row| row.status == TaskStatus::Completed), "{rows:?}");
    assert!(outcome(&rows[0]).expect("an outcome").inside_p90, "{:?}", rows[0]);
    let calm = told(&world.event(Event::Submit(sized(20)))).expect("known");
    assert!(calm.p90 < 10_000, "{calm:?}");
}

#[test]
fn nothing_is_made_up_before_anything_was_seen() {
    let mut world = World::new();
    let known_model = |n| Submission { deadline_ms: Some(1), ..sized(n) };
    world.ready("w1", 1);
    let step = world.event(Event::Submit(known_model(1)));
    assert_eq!(told(&step), None, "and a deadline that cannot be judged admits");
    assert_eq!(world.brain.eta(job(1), world.now), None);
}

#[test]
fn the_end_is_told_at_submission_with_the_work_that_lies_ahead() {
    let mut world = World::new();
    world.ready("w1", 1);
    learn(&mut world, 60);
    about(told(&world.event(Event::Submit(sized(1)))), 1_000);
    about(told(&world.event(Event::Submit(sized(2)))), 2_000);
    let step = world.event(Event::Submit(sized(3)));
    about(told(&step), 3_000);
    let queued = step.actions.iter().find_map(|action| match action {
        Action::Publish { event: TaskEvent::Queued { eta_ms, .. }, .. } => *eta_ms,
        _ => None,
    });
    assert_eq!(queued, told(&step), "the stream's first event says the same");
    world.now = world.now + 500;
    about(world.brain.eta(job(1), world.now), 500);
    about(world.brain.eta(job(3), world.now), 2_500);
    let restricted = Placement { worker: Some(world::worker("w1")), ..Placement::default() };
    let step = world.event(Event::Submit(Submission { placement: restricted, ..sized(4) }));
    about(told(&step), 3_500);
}

#[test]
fn a_run_over_its_time_is_never_said_to_end_now_neither_to_its_own_reader_nor_to_those_behind_it() {
    let mut world = World::new();
    world.ready("w1", 1);
    learn(&mut world, 60);
    let run = opened(&world.event(Event::Submit(sized(1)))).pop().expect("a free slot");
    world.event(Event::Submit(sized(2)));
    world.event(Event::Submit(sized(3)));
    let mut before = Eta { p50: 0, p90: 0 };
    for seconds in [5_000, 5_000, 20_000] {
        hold(&mut world, &run, seconds);
        let [own, next, last] = [1, 2, 3].map(|n| world.brain.eta(job(n), world.now).expect("known"));
        assert!(own.p50 > before.p50 && own.p90 > before.p90, "it shows no sign of ending: {own:?}");
        let lasted = world.now.since(Time(world::START + 60_000));
        assert!(own.p50 >= lasted / 10 && own.p90 >= lasted / 3, "{own:?} after {lasted}");
        assert!(next.p50 >= 950 + lasted / 5 && last.p50 >= next.p50 + 900, "{next:?} {last:?}");
        before = own;
    }
    end_run(&mut world, run);
    about(world.brain.eta(job(3), world.now), 2_000);
}

#[test]
fn a_deadline_that_cannot_be_kept_is_refused_with_the_estimate() {
    let mut world = World::new();
    world.ready("w1", 1);
    learn(&mut world, 60);
    (1..=4).for_each(|n| drop(world.event(Event::Submit(sized(n)))));
    let with = |n, ms| Event::Submit(Submission { deadline_ms: Some(ms), ..sized(n) });
    let step = world.event(with(5, 3_000));
    let error = refused(&step);
    assert_eq!((error.code, error.code.http_status()), (ErrorCode::DeadlineUnmet, 422));
    let details = error.details.expect("details");
    assert_eq!((&details["deadline_ms"], &details["queue_depth"]), (&3_000.into(), &3.into()));
    assert!(details["eta_ms"]["p90"].as_u64().is_some_and(|p90| p90 > 3_000), "{details}");
    assert!(error.retriable && error.retry_after_ms.is_some(), "the queue is too long now, not the job");
    assert!(error.hint.is_some() && step.writes.is_empty(), "no work was spent, nothing was written");
    let hopeless = refused(&world.event(with(7, 500)));
    assert!(!hopeless.retriable && hopeless.retry_after_ms.is_none(), "it needs a second whatever the queue");
    let row_of = |step: &Step| match &step.writes[..] {
        [Write::InsertJob(row), ..] => row.clone(),
        other => panic!("{other:?}"),
    };
    let row = row_of(&world.event(with(6, 60_000)));
    let start = latest_start(&row).expect("a deadline");
    let service = row.deadline.expect("a deadline").since(start);
    assert!((950..=1_050).contains(&service), "its service is taken off the deadline: {service}");
}

#[test]
fn a_deadline_that_the_prompt_alone_misses_is_refused_however_little_is_known_of_such_answers() {
    let mut world = World::new();
    world.ready("w1", 1);
    learn(&mut world, 25);
    // One of them is allowed a longer answer: of this range of `max_tokens` little is known.
    let long = |n, ms| Submission { max_tokens: Some(800), deadline_ms: ms, ..sized(n) };
    let run = opened(&world.event(Event::Submit(long(1, None)))).pop().expect("a free slot");
    end_run(&mut world, run);
    world.beat("w1", vec![]);
    let error = refused(&world.event(Event::Submit(long(2, Some(5)))));
    assert_eq!((error.code, error.retriable), (ErrorCode::DeadlineUnmet, false));
    let details = error.details.expect("details");
    assert!(details["least_ms"].as_u64().is_some_and(|least| (6..=20).contains(&least)), "{details}");
    let unbounded = Submission { max_tokens: None, deadline_ms: Some(5), ..sized(3) };
    let error = refused(&world.event(Event::Submit(unbounded)));
    assert_eq!(error.code, ErrorCode::DeadlineUnmet, "no answer without a bound was ever seen");
    for n in 4..=5 {
        assert!(told(&world.event(Event::Submit(long(n, Some(100))))).is_some(), "that is not known well");
    }
    for _ in 0..13 {
        world.pass(5_000);
        world.beat("w1", vec![]);
    }
    let probe = world.event(Event::Submit(long(6, Some(5))));
    assert!(told(&probe).is_some(), "the machine may have become faster: {probe:?}");
}

#[test]
fn little_known_prompts_refuse_nobody() {
    let mut world = World::new();
    world.ready("w1", 1);
    learn(&mut world, 7);
    assert!(told(&world.event(Event::Submit(Submission { deadline_ms: Some(1), ..sized(1) }))).is_some());
}

#[test]
fn a_waiting_job_that_cannot_end_in_time_any_more_is_not_run() {
    let mut world = World::new();
    world.ready("w1", 1);
    learn(&mut world, 60);
    let first = opened(&world.event(Event::Submit(sized(1)))).pop().expect("a free slot");
    world.event(Event::Submit(Submission { deadline_ms: Some(5_000), ..sized(2) }));
    // The first one takes four times as long as ever before.
    world.now = world.now + 3_500;
    world.beat("w1", vec![]);
    let step = end_run(&mut world, first);
    assert!(opened(&step).is_empty());
    let row = step.writes.iter().find_map(|write| match write {
        Write::EndJob { row, .. } if row.job_id == job(2) => Some(row.clone()),
        _ => None,
    });
    let row = row.expect("it ended");
    let error = row.error.as_ref().expect("an error");
    assert_eq!((row.status, error.code), (TaskStatus::Failed, ErrorCode::DeadlineExceeded));
    assert_eq!(error.code.http_status(), 504);
    assert_eq!(outcome(&row).map(|outcome| outcome.inside_p90), Some(false), "its estimate did not hold");
}

#[test]
fn what_was_learnt_survives_a_restart() {
    let mut world = World::new();
    world.ready("w1", 1);
    learn(&mut world, 80);
    assert!(world.estimates.is_some(), "it is written now and then");
    world.restart();
    world.beat("w1", vec![]);
    about(told(&world.event(Event::Submit(sized(1)))), 1_000);
}

#[test]
fn what_one_run_taught_is_written_within_a_minute_and_can_be_at_a_stop() {
    let mut world = World::new();
    world.ready("w1", 1);
    assert_eq!(world.brain.unsaved_estimates(), None, "nothing was learnt yet");
    learn(&mut world, 1);
    let Some(Write::PutEstimates(at_stop)) = world.brain.unsaved_estimates() else { panic!("unsaved") };
    assert_eq!(world.estimates, None);
    let puts = |step: &Step| step.writes.iter().filter(|w| matches!(w, Write::PutEstimates(_))).count();
    let written: usize = (0..20)
        .map(|_| {
            let step = world.pass(3_000);
            world.beat("w1", vec![]);
            puts(&step)
        })
        .sum();
    assert_eq!((written, world.estimates.as_ref()), (1, Some(&*at_stop)));
    assert_eq!(world.brain.unsaved_estimates(), None, "and then nothing is left to write");
    world.restart();
    world.beat("w1", vec![]);
    about(told(&world.event(Event::Submit(sized(1)))), 1_000);
}

#[test]
fn how_long_a_load_took_is_written_within_a_minute_too() {
    let mut world = World::new();
    world.register(world::facts("w1", 1), WorkerStatus::Loading, vec![]);
    world.now = world.now + 4_000;
    world.register(world::facts("w1", 1), WorkerStatus::Ready, vec![]);
    for _ in 0..20 {
        world.pass(3_000);
        world.beat("w1", vec![]);
    }
    let learnt = world.estimates.as_ref().expect("written");
    assert_eq!(learnt.rates.load("small", "").map(|took| (took.ms, took.runs)), Some((4_000.0, 1)));
}

#[test]
fn readers_of_waiting_jobs_hear_how_the_queue_moves_once_a_second_and_nobody_else_does() {
    let mut world = World::new();
    world.ready("w1", 1);
    learn(&mut world, 60);
    let running = opened(&world.event(Event::Submit(sized(1)))).pop().expect("a free slot");
    for n in 2..=4 {
        world.event(Event::Submit(sized(n)));
    }
    world.event(Event::ReadersChanged { job_id: job(4), readers: 1 });
    let live = |step: &Step| -> Vec<(api_types::JobId, u64)> {
        let news = step.actions.iter().filter_map(|action| match action {
            Action::PublishLive { event: TaskEvent::Queued { job_id, queue_position, eta_ms }, .. } => {
                assert!(eta_ms.is_some());
                Some((*job_id, *queue_position))
            }
            _ => None,
        });
        news.collect()
    };
    assert_eq!(live(&world.pass(1_000)), [(job(4), 2)]);
    end_run(&mut world, running);
    assert_eq!(live(&world.pass(1_000)), [(job(4), 1)]);
    world.event(Event::ReadersChanged { job_id: job(4), readers: 0 });
    assert_eq!(live(&world.pass(2_000)), []);
}

#[test]
fn a_place_in_the_queue_is_the_same_wherever_it_is_told() {
    let mut world = World::new();
    world.ready("w1", 1);
    let in_session = |n, name: &str| Submission {
        session_id: Some(name.parse().expect("an id")),
        is_read: true,
        ..submission(n)
    };
    (1..=4).for_each(|n| drop(world.event(Event::Submit(in_session(n, "long")))));
    let step = world.event(Event::Submit(in_session(5, "short")));
    let Answer::Accepted { queue_position, .. } = answer(&step) else { panic!("{step:?}") };
    assert_eq!(queue_position, 1, "the sessions take turns");
    let told = |step: &Step| -> Vec<u64> {
        let news = step.actions.iter().filter_map(|action| match action {
            Action::Publish { job_id, event: TaskEvent::Queued { queue_position, .. } }
            | Action::PublishLive { job_id, event: TaskEvent::Queued { queue_position, .. } }
                if *job_id == job(5) =>
            {
                Some(*queue_position)
            }
            _ => None,
        });
        news.collect()
    };
    assert_eq!((told(&step), told(&world.pass(1_000))), (vec![1], vec![1]));
}

#[test]
fn a_worker_that_reads_its_model_is_waited_for_as_long_as_such_a_load_took() {
    let mut world = World::new();
    let load = |world: &mut World, name: &str, status| world.register(world::facts(name, 1), status, vec![]);
    load(&mut world, "w1", WorkerStatus::Loading);
    world.now = world.now + 4_000;
    load(&mut world, "w1", WorkerStatus::Ready);
    learn(&mut world, 60);
    world.event(Event::WorkerFailed {
        request: None,
        worker_id: world::worker("w1"),
        instance: world::facts("w1", 1).instance,
        error: api_types::ErrorDetail::new(ErrorCode::ShuttingDown, "stopped"),
    });
    load(&mut world, "worker-2", WorkerStatus::Loading);
    world.now = world.now + 1_000;
    let eta = told(&world.event(Event::Submit(sized(1)))).expect("known");
    assert!(eta.p50.abs_diff(4_000) <= 200, "3 s of loading and 1 s of service: {eta:?}");
}

/// `figures` of a run that takes so many times as long.
fn slow(times: u64) -> RunEnd {
    RunEnd { prefill_time_ms: 20 * times, decode_time_ms: 980 * times, ..figures() }
}

/// Time passes while a worker holds this run and says so.
fn hold(world: &mut World, run: &RunKey, ms: u64) -> Step {
    let held = || vec![Run { job_id: run.job_id, attempt: run.attempt, ended: false }];
    let mut all = Step::default();
    for _ in 0..ms / 1_000 {
        let step = world.pass(1_000);
        all.writes.extend(step.writes);
        world.beat("w1", held());
    }
    all
}

fn in_ten_seconds(n: u128) -> Submission {
    Submission { deadline_ms: Some(10_000), ..sized(n) }
}

/// Runs jobs that take a minute each.
fn crawl(world: &mut World, jobs: u128) {
    for n in 0..jobs {
        let run = opened(&world.event(Event::Submit(sized(20_000 + n)))).pop().expect("a free slot");
        hold(world, &run, 60_000);
        world.event(Event::StreamEnded { run, end: slow(60) });
        world.beat("w1", vec![]);
    }
}

#[test]
fn one_slow_first_run_refuses_nobody() {
    let mut world = World::new();
    world.ready("w1", 1);
    crawl(&mut world, 1);
    let step = world.event(Event::Submit(in_ten_seconds(1)));
    assert!(told(&step).expect("known").p50 > 50_000, "it is told what to expect: {step:?}");
    let run = opened(&step).pop().expect("and is handed out all the same");
    end_run(&mut world, run);
    assert_eq!(world.status(1), TaskStatus::Completed);
}

#[test]
fn runs_that_their_deadline_cut_off_count_as_runs() {
    let mut world = World::new();
    world.ready("w1", 1);
    crawl(&mut world, 1);
    for n in 1..=7 {
        let run = opened(&world.event(Event::Submit(in_ten_seconds(n)))).pop().expect("let in");
        hold(&mut world, &run, 11_000);
        world.beat("w1", vec![]);
        assert_eq!(world.status(n), TaskStatus::Failed, "the deadline passed while it ran");
    }
    let error = refused(&world.event(Event::Submit(in_ten_seconds(8))));
    assert_eq!((error.code, error.retriable), (ErrorCode::DeadlineUnmet, false), "8 runs were too slow");
}

#[test]
fn what_a_well_known_rate_refuses_is_tried_from_time_to_time_and_let_in_when_it_turns_out_well() {
    let mut world = World::new();
    world.ready("w1", 1);
    crawl(&mut world, 8);
    assert_eq!(refused(&world.event(Event::Submit(in_ten_seconds(1)))).code, ErrorCode::DeadlineUnmet);
    let idle = |world: &mut World, ms: u64| {
        for _ in 0..ms / 5_000 {
            world.pass(5_000);
            world.beat("w1", vec![]);
        }
    };
    idle(&mut world, 195_000);
    assert_eq!(refused(&world.event(Event::Submit(in_ten_seconds(2)))).code, ErrorCode::DeadlineUnmet);
    idle(&mut world, 5_000);
    let probe = opened(&world.event(Event::Submit(in_ten_seconds(3)))).pop().expect("a probe");
    let beside = refused(&world.event(Event::Submit(in_ten_seconds(4))));
    assert_eq!(beside.code, ErrorCode::DeadlineUnmet, "one at a time");
    // The machine is as fast as it should be by now.
    end_run(&mut world, probe);
    world.beat("w1", vec![]);
    for n in 5..60 {
        let run =
            opened(&world.event(Event::Submit(in_ten_seconds(n)))).pop().expect("each lets the next in");
        end_run(&mut world, run);
        world.beat("w1", vec![]);
    }
    let calm = told(&world.event(Event::Submit(in_ten_seconds(60)))).expect("known");
    assert!(calm.p50 < 10_000, "by then it is expected to keep it: {calm:?}");
}

fn of_model(n: u128, model: &str) -> Submission {
    Submission { model: Some(model.to_owned()), ..sized(n) }
}

/// Ends the run of a job a second after it was handed out.
fn run_job(world: &mut World, step: &Step) {
    let run = opened(step).pop().expect("handed out");
    end_run(world, run);
}

#[test]
fn a_job_that_causes_a_cold_start_is_told_of_the_start_and_the_run() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("big", 300), ("other", 300)]);
    pools.slots = 1;
    let step = world.event(Event::Submit(of_model(1, "big")));
    assert_eq!(told(&step), None, "nothing was ever seen to run");
    let worker = spawned(&pools.answer_all(&mut world, &step)).pop().expect("a worker is asked for");
    world.now = world.now + 7_000;
    let step = pools.come_up(&mut world, &worker);
    run_job(&mut world, &step);
    let gone = |world: &mut World, pools: &mut Pools, worker| {
        let facts = world.brain.worker_row(worker).expect("registered").facts.clone();
        let error = api_types::ErrorDetail::new(ErrorCode::ShuttingDown, "stopped");
        world.event(Event::WorkerFailed {
            request: None,
            worker_id: worker.clone(),
            instance: facts.instance,
            error,
        });
        pools.stopped(world, worker)
    };
    gone(&mut world, &mut pools, &worker);
    let step = world.event(Event::Submit(of_model(2, "big")));
    about(told(&step), 8_000);
    about(world.brain.eta(job(2), world.now), 8_000);
    let worker = spawned(&pools.answer_all(&mut world, &step)).pop().expect("a worker is asked for");
    world.now = world.now + 3_000;
    about(world.brain.eta(job(2), world.now), 5_000);
    about(told(&world.event(Event::Submit(of_model(3, "big")))), 6_000);
    world.now = world.now + 37_000;
    let late = world.brain.eta(job(2), world.now).expect("known");
    assert!(late.p50 >= 10_000, "a start that takes far too long is not about to be over: {late:?}");
    let step = pools.come_up(&mut world, &worker);
    run_job(&mut world, &step);
    assert_eq!(world.status(2), TaskStatus::Completed);
}

#[test]
fn a_start_that_was_never_seen_is_taken_to_need_a_few_seconds_and_its_weights() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("big", 300), ("other", 300)]);
    let step = world.event(Event::Submit(of_model(1, "big")));
    let worker = spawned(&pools.answer_all(&mut world, &step)).pop().expect("a worker is asked for");
    let step = pools.come_up(&mut world, &worker);
    run_job(&mut world, &step);
    // 3 s, and 300 MiB at 300 MB a second; the run as another model's on this kind of device.
    let step = world.event(Event::Submit(of_model(4, "other")));
    let eta = told(&step).expect("known");
    assert!((4_048..=6_000).contains(&eta.p50), "{eta:?}");
    let hurried = Submission { deadline_ms: Some(1_000), ..of_model(5, "other") };
    assert!(told(&world.event(Event::Submit(hurried))).is_some(), "nothing is refused on what is assumed");
}

#[test]
fn who_may_not_run_everywhere_is_told_by_the_workers_that_may_take_it() {
    let mut world = World::new();
    world.ready("w1", 1);
    learn(&mut world, 60);
    let mut facts = world::facts("worker-2", 1);
    facts.capabilities.push(JSON_SCHEMA.to_owned());
    world.register(facts, WorkerStatus::Ready, vec![]);
    let placed = |placement: &Placement, n| Submission { placement: placement.clone(), ..sized(n) };
    let in_form = Placement { require: vec![JSON_SCHEMA.to_owned()], ..Placement::default() };
    let on_first = Placement { worker: Some(world::worker("w1")), ..Placement::default() };
    let nowhere = Placement { worker: Some(world::worker("nobody")), ..Placement::default() };
    let mut submit = |submission| told(&world.event(Event::Submit(submission)));
    about(submit(placed(&in_form, 1)), 1_000);
    about(submit(placed(&in_form, 2)), 2_000);
    about(submit(placed(&in_form, 3)), 3_000);
    about(submit(placed(&on_first, 4)), 1_000);
    let behind = submit(placed(&on_first, 5)).expect("known");
    assert!((1_900..=2_600).contains(&behind.p50), "those in front wait for the other worker: {behind:?}");
    assert_eq!(submit(placed(&nowhere, 6)), None, "nobody may take it");
    about(world.brain.eta(job(3), world.now), 3_000);
    end_run(&mut world, world::run(1, 1, "worker-2", 2));
    about(world.brain.eta(job(3), world.now), 2_000);
}
