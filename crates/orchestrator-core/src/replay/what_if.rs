//! The recorded jobs under another policy.
//!
//! What came from outside (jobs, cancellations, readers, workers and their silences) comes again at
//! the recorded times. What followed from placements is modelled: a run takes as long as that job's
//! run took in the record, whichever worker it goes to now, and longer than it was seen to where it
//! was cut off. Failures of runs are not repeated, and workers appear when they did, not when the other
//! policy would have asked for them.

use std::collections::{BTreeMap, BTreeSet};

use api_types::{Attempt, JobId, StopReason, WorkerId};

use crate::event::{Event, RequestId, Run, RunKey};
use crate::journal::{Entry, Input, Segment, Unreadable, entries};
use crate::orchestrator::Orchestrator;
use crate::policy::PolicyChange;
use crate::replay::recorded::{Life, Lives, Service};
use crate::replay::{Unfinished, handle};
use crate::step::{Action, Step};
use crate::time::Time;
use crate::worker::Worker;

/// A worker stops a run this many milliseconds after it was told to.
const STOP_MS: u64 = 5;
/// How long the jobs that are left at the end of the record may take, in milliseconds.
const TAIL_MS: u64 = 3_600_000;

/// The recorded jobs in both worlds.
#[derive(Debug, Clone, PartialEq)]
pub struct WhatIf {
    /// In the order of their ids.
    pub jobs: Vec<Compared>,
    /// Failures of the other policy.
    pub policy_failures: u64,
}

/// One job, as it was and as it would have been. `None` where it was refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// The job.
    pub job_id: JobId,
    /// What happened.
    pub before: Option<Life>,
    /// What would have happened.
    pub after: Option<Life>,
    /// Whether it had not ended when the record did, and stood there as it would have stood: what
    /// follows the record tells on in both worlds.
    pub goes_on: bool,
}

/// Inputs between two questions whether to go on.
const INPUTS_AT_ONCE: usize = 256;

/// Replays the segments after a snapshot as they were and once more with a change of policy.
/// `restore` gives the brain of the snapshot, twice. `go_on` is asked now and then.
///
/// # Errors
/// When an entry or the snapshot cannot be read, or `go_on` says no.
pub fn what_if<'a>(
    restore: impl Fn() -> Result<Orchestrator, Unreadable>,
    segments: impl IntoIterator<Item = &'a Segment>,
    change: PolicyChange,
    go_on: impl Fn() -> bool,
) -> Result<WhatIf, Unfinished> {
    let ask = || if go_on() { Ok(()) } else { Err(Unfinished::Stopped) };
    let mut recorded = restore()?;
    let mut before = Lives::of(&recorded);
    let mut inputs = Vec::new();
    for segment in segments {
        ask()?;
        for entry in entries(&segment.entries) {
            let entry = entry?;
            let known = known_job(&entry.input).is_none_or(|job_id| recorded.jobs.contains_key(&job_id));
            let Some(step) = handle(&mut recorded, entry.clone()) else { continue };
            before.note(&entry, &step);
            if known {
                inputs.push(entry);
            }
        }
    }
    before.close(recorded.seen);
    let mut world = World::new(restore()?, &before);
    let from = inputs.first().map_or(world.brain.seen, |entry| entry.at);
    world.tell(Event::SetPolicy { request: RequestId(0), change }, from);
    for (taken, entry) in inputs.into_iter().enumerate() {
        if taken.is_multiple_of(INPUTS_AT_ONCE) {
            ask()?;
        }
        world.take(entry);
    }
    world.advance(recorded.seen);
    let alike = world.alike(&recorded);
    let (after, policy_failures) = world.finish(&alike, ask)?;
    let ids: BTreeSet<JobId> = before.jobs.keys().chain(after.jobs.keys()).copied().collect();
    let compare = |job_id: JobId| Compared {
        job_id,
        before: before.jobs.get(&job_id).cloned(),
        // What the tail says of a job of which the record tells on is not so.
        after: if alike.contains(&job_id) { before.jobs.get(&job_id) } else { after.jobs.get(&job_id) }
            .cloned(),
        goes_on: alike.contains(&job_id),
    };
    Ok(WhatIf { jobs: ids.into_iter().map(compare).collect(), policy_failures })
}

/// The job that readers came to or left: their leaving after its end means nothing for another end.
const fn known_job(input: &Input) -> Option<JobId> {
    match input {
        Input::Event(Event::ReadersChanged { job_id, .. }) => Some(*job_id),
        Input::Event(_) | Input::Timeout | Input::Cut(_) => None,
    }
}

/// What a modelled worker does next.
#[derive(Debug)]
enum Due {
    FirstToken(RunKey),
    Ended(RunKey),
    Stopped(RunKey),
}

/// The brain under the other policy, and the workers it believes in.
struct World<'a> {
    brain: Orchestrator,
    lives: Lives,
    record: &'a Lives,
    /// For jobs that never ran in the record.
    typical: Option<Service>,
    agenda: BTreeMap<(Time, u64), Due>,
    sequence: u64,
    going: BTreeMap<WorkerId, BTreeSet<(JobId, Attempt)>>,
    /// Runs that were open when the record began; what is recorded of them holds here too.
    from_before: BTreeSet<(JobId, Attempt)>,
}

impl<'a> World<'a> {
    fn new(brain: Orchestrator, record: &'a Lives) -> Self {
        let mut going: BTreeMap<WorkerId, BTreeSet<(JobId, Attempt)>> = BTreeMap::new();
        for run in brain.jobs.values().filter_map(|job| job.run()) {
            going.entry(run.worker_id).or_default().insert((run.job_id, run.attempt));
        }
        Self {
            lives: Lives::of(&brain),
            from_before: going.values().flatten().copied().collect(),
            brain,
            record,
            typical: record.typical(),
            agenda: BTreeMap::new(),
            sequence: 0,
            going,
        }
    }

    /// Takes one recorded input, after everything that is due before it.
    fn take(&mut self, entry: Entry) {
        self.advance(entry.at);
        let Input::Event(event) = entry.input else { return };
        if let Some(event) = self.as_it_would_be(event) {
            self.tell(event, entry.at);
        }
    }

    /// An event from outside, with what a worker would say now in place of what it said; `None` for
    /// what followed from a placement that may not be made.
    fn as_it_would_be(&self, event: Event) -> Option<Event> {
        if let Some(run) = run_of(&event) {
            return self.from_before.contains(&(run.job_id, run.attempt)).then_some(event);
        }
        if matches!(event, Event::SetPolicy { .. }) {
            return None;
        }
        Some(self.with_runs(event))
    }

    /// What a worker says of itself, with the runs that it has here.
    fn with_runs(&self, mut event: Event) -> Event {
        if let Event::WorkerReady { facts, runs, .. } = &mut event {
            *runs = self.runs_of(&facts.worker_id);
        }
        if let Event::WorkerHeartbeat { worker_id, runs, prefixes, .. } = &mut event {
            *runs = self.runs_of(worker_id);
            // What workers kept followed from the placements on record; here it follows from these.
            *prefixes = None;
        }
        event
    }

    /// A heartbeat of every worker that is not gone.
    fn signs_of_life(&self) -> Vec<Event> {
        let living = self.brain.registry.all().filter(|worker| worker.gone.is_none());
        let beat = |worker: &Worker| {
            let facts = &worker.row.facts;
            Some(Event::WorkerHeartbeat {
                request: RequestId(0),
                worker_id: facts.worker_id.clone(),
                incarnation: worker.row.incarnation,
                instance: facts.instance,
                status: worker.status?,
                runs: self.runs_of(&facts.worker_id),
                free_memory_bytes: Some(worker.free_memory_bytes),
                prefixes: None,
            })
        };
        living.filter_map(beat).collect()
    }

    fn runs_of(&self, worker_id: &WorkerId) -> Vec<Run> {
        let going = self.going.get(worker_id).into_iter().flatten();
        going.map(|(job_id, attempt)| Run { job_id: *job_id, attempt: *attempt, ended: false }).collect()
    }

    /// Does what is due up to a time.
    fn advance(&mut self, until: Time) {
        loop {
            let alarm = self.brain.poll_timeout();
            let due = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let Some(at) = [alarm, due].into_iter().flatten().min().filter(|at| *at <= until) else { return };
            let at = at.max(self.brain.seen);
            if due.is_some_and(|due| due <= at) {
                self.work(at);
            } else {
                let step = self.brain.handle_timeout(at);
                self.act(&step, at);
            }
        }
    }

    /// The next thing a worker does.
    fn work(&mut self, at: Time) {
        match self.agenda.pop_first() {
            Some((_, Due::FirstToken(run))) if self.is_going(&run) => self.tell(Event::FirstToken(run), at),
            Some((_, Due::Ended(run))) => self.end_run(run, None, at),
            Some((_, Due::Stopped(run))) => self.end_run(run, Some(StopReason::Cancelled), at),
            Some((_, Due::FirstToken(_))) | None => {}
        }
    }

    fn is_going(&self, run: &RunKey) -> bool {
        self.going.get(&run.worker_id).is_some_and(|runs| runs.contains(&(run.job_id, run.attempt)))
    }

    fn end_run(&mut self, run: RunKey, stop_reason: Option<StopReason>, at: Time) {
        let was_going =
            self.going.get_mut(&run.worker_id).is_some_and(|runs| runs.remove(&(run.job_id, run.attempt)));
        let Some(service) = self.service(run.job_id).filter(|_| was_going) else { return };
        let mut end = service.end;
        end.stop_reason = stop_reason.unwrap_or(end.stop_reason);
        self.tell(Event::StreamEnded { run, end }, at);
    }

    fn service(&self, job_id: JobId) -> Option<Service> {
        self.record.service(job_id, self.typical.as_ref())
    }

    /// The jobs that live on at the end of the record and stand in both worlds alike.
    fn alike(&self, recorded: &Orchestrator) -> BTreeSet<JobId> {
        let is_alike = |job_id: &&JobId| {
            let life = self.lives.jobs.get(*job_id);
            life.is_some_and(|life| life.ended.is_none()) && life == self.record.jobs.get(*job_id)
        };
        recorded.jobs.keys().filter(is_alike).copied().collect()
    }

    fn tell(&mut self, event: Event, at: Time) {
        let submission = if let Event::Submit(submission) = &event { Some(submission.clone()) } else { None };
        let step = self.brain.handle_event(event, at);
        if let Some(submission) = submission {
            self.lives.submitted(&submission, &step, at);
        }
        self.act(&step, at);
    }

    fn act(&mut self, step: &Step, at: Time) {
        self.lives.acted(step, at);
        for action in &step.actions {
            if let Action::OpenStream(open) = action {
                self.begin(&open.run, at);
            }
            if let Action::StopRun { run, .. } = action {
                self.plan(at + STOP_MS, Due::Stopped(run.clone()));
            }
        }
    }

    /// A worker takes a run.
    fn begin(&mut self, run: &RunKey, at: Time) {
        let Some(service) = self.service(run.job_id) else { return };
        let (first, end) = (service.prefill_ms, service.prefill_ms + service.decode_ms);
        self.going.entry(run.worker_id.clone()).or_default().insert((run.job_id, run.attempt));
        self.plan(at + first, Due::FirstToken(run.clone()));
        self.plan(at + end, Due::Ended(run.clone()));
    }

    fn plan(&mut self, at: Time, due: Due) {
        self.sequence += 1;
        self.agenda.insert((at, self.sequence), due);
    }

    /// Lets what is left end, but for the jobs of which the record tells on; the workers that live at
    /// the end of the record live on.
    fn finish(
        mut self,
        alike: &BTreeSet<JobId>,
        ask: impl Fn() -> Result<(), Unfinished>,
    ) -> Result<(Lives, u64), Unfinished> {
        let mut now = self.brain.seen;
        let until = now + TAIL_MS;
        while self.brain.jobs.keys().any(|job_id| !alike.contains(job_id)) && now < until {
            ask()?;
            for beat in self.signs_of_life() {
                self.tell(beat, now);
            }
            now = now + api_types::worker::HEARTBEAT_MS;
            self.advance(now);
        }
        let standing = self.brain.policies();
        let failures =
            [&standing.live, &standing.demoted].iter().flat_map(|tally| tally.failures.values()).sum();
        Ok((self.lives, failures))
    }
}

/// The run that a report is about: what it says followed from a placement.
const fn run_of(event: &Event) -> Option<&RunKey> {
    if let Event::FirstToken(run)
    | Event::StreamEnded { run, .. }
    | Event::StreamFailed { run, .. }
    | Event::StreamBroken { run, .. }
    | Event::Salvaged { run, .. } = event
    {
        return Some(run);
    }
    None
}
