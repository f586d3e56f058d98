//! Recorded jobs under another policy.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use api_types::StopReason;
use api_types::task::Priority;
use api_types::worker::WorkerStatus;
use orchestrator_core::journal::{Recorder, Segment};
use orchestrator_core::policy::{
    Admission, Hook, JobFacts, Policy, PolicyChange, PolicyFailure, PolicyText, QueueFacts, Scripts,
};
use orchestrator_core::replay::{report, verify, what_if};
use orchestrator_core::{Action, Event, Orchestrator, RequestId, RunKey, Submission, Time};
use world::{World, end, facts, submission};

const JOBS: u128 = 60;
const HELD_MS: u64 = 20_000;

/// Lets batch jobs in only after a while.
#[derive(Debug)]
struct HoldBatch;

impl Policy for HoldBatch {
    fn describe(&self) -> &'static str {
        "batch jobs wait"
    }

    fn has(&self, hook: Hook) -> bool {
        hook == Hook::Admit
    }

    fn admit(&self, job: &JobFacts<'_>, _: &QueueFacts) -> Result<Admission, PolicyFailure> {
        Ok(if job.priority == Priority::Batch { Admission::Hold(HELD_MS) } else { Admission::Admit })
    }
}

/// A language whose only word is the policy above.
#[derive(Debug)]
struct OneWord;

impl Scripts for OneWord {
    fn compile(&self, _: &str, _: &str) -> Result<Arc<dyn Policy>, PolicyFailure> {
        Ok(Arc::new(HoldBatch))
    }
}

/// Sixty jobs on two workers, as a journal.
struct Recorded {
    snapshot: Vec<u8>,
    segment: Segment,
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

fn record() -> Recorded {
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
        let at = start + 37 + 523 * n as u64;
        session.plan(at, Event::Submit(Submission { priority, ..submission(n) }));
        if n % 10 == 9 {
            let cancel =
                Event::Cancel { request: Some(RequestId(90_000 + n as u64)), job_id: world::job(n - 4) };
            session.plan(at + 11, cancel);
        }
    }
    for beat in 1..=40 {
        session.run_until(start + beat * 3_000);
        session.beat("a");
        session.beat("bb");
    }
    let segment = session.recorder.take().expect("inputs");
    Recorded { snapshot, segment }
}

fn restore(recorded: &Recorded) -> impl Fn() -> Result<Orchestrator, orchestrator_core::journal::Unreadable> {
    move || {
        let mut brain = Orchestrator::restore(&recorded.snapshot)?;
        brain.use_scripts(Arc::new(OneWord));
        Ok(brain)
    }
}

#[test]
fn the_policy_that_was_in_force_gives_the_waits_that_were() {
    let recorded = record();
    let again = verify(restore(&recorded)().expect("a brain"), [&recorded.segment]).expect("entries");
    assert!(again.is_identical(), "{again:?}");
    let change = PolicyChange::Live(PolicyText::built_in());
    let found = what_if(restore(&recorded), [&recorded.segment], change).expect("entries");
    assert_eq!(found.jobs.len(), JOBS as usize);
    assert!(
        found.jobs.iter().any(|job| job.before.as_ref().is_some_and(|life| life.wait_ms() > Some(5_000)))
    );
    for job in &found.jobs {
        assert_eq!(job.before, job.after, "{}", job.job_id);
    }
}

#[test]
fn another_policy_gives_other_waits_to_the_same_jobs() {
    let recorded = record();
    let text =
        PolicyText { name: "hold-batch".to_owned(), source: Some("hold".into()), sha256: String::new() };
    let found = what_if(restore(&recorded), [&recorded.segment], PolicyChange::Live(text)).expect("entries");
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
