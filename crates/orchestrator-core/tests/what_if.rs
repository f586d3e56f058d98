//! Recorded jobs under another policy.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use api_types::StopReason;
use api_types::task::{Priority, TaskStatus};
use api_types::worker::WorkerStatus;
use orchestrator_core::journal::{Digest, Recorder, Segment};
use orchestrator_core::policy::{
    Admission, Hook, JobFacts, Policy, PolicyChange, PolicyFailure, PolicyText, QueueFacts, Scripts,
};
use orchestrator_core::replay::{Chapters, Compared, Joined, Unfinished, report, verify, what_if};
use orchestrator_core::{Action, Event, Orchestrator, RequestId, RunKey, Submission, Time};
use world::{World, end, facts, submission};

const JOBS: u128 = 60;
const HELD_MS: u64 = 20_000;

/// Lets batch jobs in only after a while, or not at all.
#[derive(Debug)]
struct NoBatch {
    refuses: bool,
}

impl Policy for NoBatch {
    fn describe(&self) -> &'static str {
        "batch jobs wait or are refused"
    }

    fn has(&self, hook: Hook) -> bool {
        hook == Hook::Admit
    }

    fn admit(&self, job: &JobFacts<'_>, _: &QueueFacts) -> Result<Admission, PolicyFailure> {
        Ok(match job.priority {
            Priority::Interactive => Admission::Admit,
            Priority::Batch if self.refuses => Admission::Refuse("not here".to_owned()),
            Priority::Batch => Admission::Hold(HELD_MS),
        })
    }
}

/// A language that knows the policy above only.
#[derive(Debug)]
struct TwoWords;

impl Scripts for TwoWords {
    fn compile(&self, _: &str, source: &str) -> Result<Arc<dyn Policy>, PolicyFailure> {
        Ok(Arc::new(NoBatch { refuses: source == "refuse" }))
    }
}

/// A chapter of a journal.
struct Recorded {
    snapshot: Vec<u8>,
    segment: Segment,
}

const fn empty() -> Segment {
    Segment { from: Time(0), entries: Vec::new(), digest: Digest { hash: 0, placements: 0 } }
}

/// Sixty jobs on two workers.
#[derive(Default)]
struct Traffic {
    /// Milliseconds between two jobs.
    apart: u64,
    /// Of every fourth job.
    deadline_ms: Option<u64>,
    /// The beats at which a new chapter begins, and whether with a restart of the orchestrator.
    chapters: &'static [(u64, bool)],
}

struct Session {
    world: World,
    recorder: Recorder,
    agenda: BTreeMap<(u64, u64), Event>,
    planned: u64,
}

impl Session {
    fn plan(&mut self, at: u64, event: Event) {
        self.planned += 1;
        self.agenda.insert((at, self.planned), event);
    }

    fn tell(&mut self, event: Event) {
        self.recorder.event(&event, self.world.now).expect("written");
        let step = self.world.event(event);
        self.recorder.decided(&step).expect("written");
        for action in &step.actions {
            match action {
                Action::OpenStream(open) => self.serve(&open.run),
                Action::StopRun { run, .. } => self.stop(run),
                _ => {}
            }
        }
    }

    /// A run takes as long as its job's number says.
    fn serve(&mut self, run: &RunKey) {
        let n = run.job_id.uuid().as_u128() as u64;
        let (prefill, decode) = (41 + n * 7 % 90, 613 + n * 131 % 2_111);
        let now = self.world.now.0;
        self.plan(now + prefill, Event::FirstToken(run.clone()));
        let ended = Event::StreamEnded { run: run.clone(), end: end(5, StopReason::Eos) };
        self.plan(now + prefill + decode, ended);
    }

    /// A run that is told to stop does so five milliseconds later.
    fn stop(&mut self, run: &RunKey) {
        let of_run = |event: &Event| matches!(event, Event::FirstToken(other) | Event::StreamEnded { run: other, .. } if other == run);
        self.agenda.retain(|_, event| !of_run(event));
        let ended = Event::StreamEnded { run: run.clone(), end: end(1, StopReason::Cancelled) };
        self.plan(self.world.now.0 + 5, ended);
    }

    fn beat(&mut self, name: &str) {
        let worker_id = world::worker(name);
        let row = self.world.brain.worker_row(&worker_id).expect("registered").clone();
        let request = self.world.request();
        let runs = self.world.jobs.values().filter_map(|job| {
            let attempt = job.attempt.as_ref().filter(|attempt| attempt.worker_id == worker_id)?;
            let going = !job.status.is_terminal();
            going.then_some(orchestrator_core::Run {
                job_id: job.job_id,
                attempt: attempt.attempt,
                ended: false,
            })
        });
        let runs = runs.collect();
        self.tell(Event::WorkerHeartbeat {
            request,
            worker_id,
            incarnation: row.incarnation,
            instance: row.facts.instance,
            status: WorkerStatus::Ready,
            runs,
            free_memory_bytes: Some(1 << 30),
            prefixes: None,
        });
    }

    fn run_until(&mut self, until: u64) {
        loop {
            let alarm = self.world.brain.poll_timeout().map(|at| at.0);
            let due = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let Some(at) = [alarm, due].into_iter().flatten().min().filter(|at| *at <= until) else { break };
            self.world.now = Time(at.max(self.world.now.0));
            if due == Some(at)
                && let Some((_, event)) = self.agenda.pop_first()
            {
                self.tell(event);
            } else {
                self.recorder.timeout(self.world.now).expect("written");
                let step = self.world.brain.handle_timeout(self.world.now);
                self.world.commit(&step);
                self.recorder.decided(&step).expect("written");
            }
        }
        self.world.now = Time(until);
    }
}

impl Session {
    /// Ends a chapter and begins the next.
    fn turn_page(&mut self, restarts: bool, chapter: &mut Recorded) -> Recorded {
        chapter.segment = self.recorder.take().expect("inputs");
        if restarts {
            self.world.restart();
        }
        self.recorder.begin();
        Recorded { snapshot: self.world.brain.snapshot().expect("written"), segment: empty() }
    }
}

fn record(traffic: &Traffic) -> Vec<Recorded> {
    let mut world = World::new();
    for name in ["a", "bb"] {
        world.register(facts(name, 1), WorkerStatus::Ready, vec![]);
    }
    let snapshot = world.brain.snapshot().expect("written");
    let mut session = Session { world, recorder: Recorder::default(), agenda: BTreeMap::new(), planned: 0 };
    session.recorder.begin();
    let start = session.world.now.0;
    for n in 0..JOBS {
        let priority = if n % 3 == 0 { Priority::Batch } else { Priority::Interactive };
        let deadline_ms = traffic.deadline_ms.filter(|_| n % 4 == 0);
        let at = start + 37 + traffic.apart * n as u64;
        // Of runs as long as these too little is known to refuse their deadlines.
        let max_tokens = Some(if deadline_ms.is_some() { 400 } else { 16 });
        session.plan(at, Event::Submit(Submission { priority, deadline_ms, max_tokens, ..submission(n) }));
        if n % 10 == 9 {
            let cancel =
                Event::Cancel { request: Some(RequestId(90_000 + n as u64)), job_id: world::job(n - 4) };
            session.plan(at + 11, cancel);
        }
    }
    let mut recorded = vec![Recorded { snapshot, segment: empty() }];
    for beat in 1..=40 {
        session.run_until(start + beat * 3_000);
        if let Some((_, restarts)) = traffic.chapters.iter().find(|(at, _)| *at == beat) {
            let chapter = recorded.last_mut().expect("a chapter");
            let next = session.turn_page(*restarts, chapter);
            recorded.push(next);
        }
        session.beat("a");
        session.beat("bb");
    }
    recorded.last_mut().expect("a chapter").segment = session.recorder.take().expect("inputs");
    recorded
}

/// All chapters under another policy.
fn joined(recorded: &[Recorded], change: &PolicyChange) -> Joined {
    let mut chapters = Chapters::default();
    for chapter in recorded {
        let found = what_if(restore(chapter), [&chapter.segment], change.clone(), || true);
        chapters.add(found.expect("entries"));
    }
    chapters.since(Time(0))
}

fn built_in() -> PolicyChange {
    PolicyChange::Live(PolicyText::built_in())
}

fn script(source: &str) -> PolicyChange {
    let text = PolicyText { name: source.to_owned(), source: Some(source.into()), sha256: String::new() };
    PolicyChange::Live(text)
}

fn restore(recorded: &Recorded) -> impl Fn() -> Result<Orchestrator, orchestrator_core::journal::Unreadable> {
    move || {
        let mut brain = Orchestrator::restore(&recorded.snapshot)?;
        brain.use_scripts(Arc::new(TwoWords));
        Ok(brain)
    }
}

fn assert_alike(found: &Joined) {
    for job in &found.jobs {
        assert_eq!(job.before, job.after, "{}", job.job_id);
    }
}

fn ended_as(status: TaskStatus) -> impl Fn(&&Compared) -> bool {
    move |job| {
        let life = job.before.as_ref();
        life.is_some_and(|life| {
            life.dispatched_at.is_some() && life.ended.is_some_and(|(_, as_)| as_ == status)
        })
    }
}

#[test]
fn the_policy_that_was_in_force_gives_the_waits_that_were() {
    let recorded = record(&Traffic { apart: 523, ..Traffic::default() });
    let [chapter] = recorded.as_slice() else { panic!("one chapter") };
    let again = verify(restore(chapter)().expect("a brain"), [&chapter.segment]).expect("entries");
    assert!(again.is_identical(), "{again:?}");
    let found = joined(&recorded, &built_in());
    assert_eq!(found.jobs.len(), JOBS as usize);
    assert!(
        found.jobs.iter().any(|job| job.before.as_ref().is_some_and(|life| life.wait_ms() > Some(5_000)))
    );
    assert_alike(&found);
}

#[test]
fn a_job_that_lives_on_in_another_chapter_is_one_job() {
    let whole = joined(&record(&Traffic { apart: 523, ..Traffic::default() }), &built_in());
    for chapters in [&[(3, false), (7, false)], &[(3, false), (7, true)]] {
        let recorded = record(&Traffic { apart: 523, chapters, ..Traffic::default() });
        assert_eq!(recorded.len(), 3);
        let found = joined(&recorded, &built_in());
        assert_eq!((found.jobs.len() as u64 + found.left_out, found.left_out), (JOBS as u64, 0));
        assert_alike(&found);
        let completed = |found: &Joined| found.jobs.iter().filter(ended_as(TaskStatus::Completed)).count();
        assert_eq!(completed(&found), completed(&whole), "a restart loses no run");
    }
}

#[test]
fn jobs_without_an_end_on_record_are_left_out_and_counted() {
    let mut recorded = record(&Traffic { apart: 523, chapters: &[(5, false)], ..Traffic::default() });
    recorded.truncate(1);
    let found = joined(&recorded, &built_in());
    assert!(found.left_out > 5, "{}", found.left_out);
    assert!(found.jobs.iter().all(|job| job.before.as_ref().is_some_and(|life| life.ended.is_some())));
    assert_alike(&found);
}

#[test]
fn a_run_that_its_deadline_cut_off_is_not_completed_by_the_same_policy() {
    let recorded = record(&Traffic { apart: 1_500, deadline_ms: Some(2_000), ..Traffic::default() });
    let found = joined(&recorded, &built_in());
    assert!(found.jobs.iter().filter(ended_as(TaskStatus::Failed)).count() >= 2, "some were cut off");
    assert_alike(&found);
}

#[test]
fn another_policy_gives_other_waits_to_the_same_jobs() {
    let recorded = record(&Traffic { apart: 523, ..Traffic::default() });
    let found = joined(&recorded, &script("hold"));
    let groups = report::groups(&found.jobs);
    let group = |name: &str| groups.iter().find(|group| group.group == name).expect("the group");
    let (batch, interactive) = (group("batch"), group("interactive"));
    assert_eq!(batch.before.jobs + interactive.before.jobs, JOBS as u64);
    assert_eq!(batch.after.jobs, batch.before.jobs, "nobody is refused");
    assert!(batch.after.p50_ms >= Some(HELD_MS), "{batch:?}");
    assert!(interactive.after.p90_ms <= interactive.before.p90_ms, "{interactive:?}");
    let worst = report::worst(&found.jobs);
    assert!(worst.first().is_some_and(|job| job.after_ms > job.before_ms), "{worst:?}");
}

#[test]
fn jobs_that_another_policy_refuses_are_told_as_refused() {
    let recorded = record(&Traffic { apart: 523, ..Traffic::default() });
    let found = joined(&recorded, &script("refuse"));
    let groups = report::groups(&found.jobs);
    let batch = groups.iter().find(|group| group.group == "batch").expect("the group");
    assert_eq!((batch.before.jobs, batch.before.refused), (JOBS as u64 / 3, 0));
    assert_eq!((batch.after.jobs, batch.after.refused), (0, JOBS as u64 / 3));
    let worst = report::worst(&found.jobs);
    assert!(worst.iter().filter(|job| job.refused_after).count() >= batch.before.completed as usize);
    assert!(worst.iter().all(|job| !job.refused_before && (!job.refused_after || job.after_ms.is_none())));
}

#[test]
fn a_replay_ends_soon_after_nobody_wants_it_any_more() {
    let recorded = record(&Traffic { apart: 523, ..Traffic::default() });
    let [chapter] = recorded.as_slice() else { panic!("one chapter") };
    let asked = Cell::new(0);
    let count = |enough: u32| {
        asked.set(0);
        let go_on = || asked.replace(asked.get() + 1) < enough;
        what_if(restore(chapter), [&chapter.segment], script("hold"), go_on)
    };
    count(u32::MAX).expect("entries");
    let all = asked.get();
    assert!(all >= 3, "asked {all} times: in the record, under the other policy, and beyond the record");
    for enough in 0..all {
        assert_eq!(count(enough), Err(Unfinished::Stopped));
        assert_eq!(asked.get(), enough + 1, "nothing is done after that");
    }
}
