//! The orchestrator's shell in small: take what has arrived, decide, commit, act.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use api_types::{JobId, TaskEvent, WorkerId};
use orchestrator_core::{Action, Event, GoOn, OpenStream, Orchestrator, RequestId, RunKey, Step, Write};

use crate::bugs::Bug;
use crate::faults::CrashPoint;
use crate::journal::Journal;
use crate::pools::Ask;
use crate::relay::Relay;
use crate::scripts::Watched;
use crate::world::{Happening, World};

/// An event of a job's stream as readers get it; its id is its place in the log.
#[derive(Debug, Clone, PartialEq)]
pub enum Logged {
    /// A worker began.
    Started { attempt: u32, start: u64 },
    /// One token, whose value tells which run made it.
    Token { i: u32, value: u64 },
    /// `queued`, `end` or `error`.
    Other(TaskEvent),
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A client that submitted.
    Submitter(usize),
    /// A client that cancelled.
    Canceller(JobId),
    /// A worker process, by worker and start.
    Worker(usize, u64),
    /// Nobody any more.
    Nobody,
}

/// The orchestrator's process: all of it is gone after a crash.
#[derive(Debug)]
pub struct Daemon {
    /// The brain.
    pub brain: Orchestrator,
    /// What has arrived and is not decided yet.
    pub mailbox: VecDeque<Event>,
    /// Open streams from workers.
    pub relays: BTreeMap<RunKey, Relay>,
    /// The logs of jobs that have not ended, and of ended ones that are not on disk.
    pub logs: BTreeMap<JobId, Vec<Logged>>,
    /// Who waits for which answer.
    pub waiting: BTreeMap<RequestId, Caller>,
    /// Which clients read which job.
    pub readers: BTreeMap<JobId, BTreeSet<usize>>,
    /// How runs that were handed out go on, where they do.
    pub goes_on: BTreeMap<RunKey, GoOn>,
    /// Events that readers may have had before this process, of jobs that go on elsewhere.
    pub reach: BTreeMap<JobId, usize>,
    /// What is planted.
    pub bug: Option<Bug>,
    journal: Journal,
    /// What the disk refused, and when it is tried again.
    pub held: Option<(Step, u64)>,
    committing: Option<Step>,
    woken_at: Option<u64>,
}

impl Daemon {
    /// A process that has just recovered this brain.
    pub fn new(
        brain: Orchestrator,
        logs: BTreeMap<JobId, Vec<Logged>>,
        reach: BTreeMap<JobId, usize>,
        bug: Option<Bug>,
    ) -> Self {
        Self {
            reach,
            bug,
            journal: Journal::new(&brain, bug),
            brain,
            mailbox: VecDeque::new(),
            relays: BTreeMap::new(),
            logs,
            goes_on: BTreeMap::new(),
            waiting: BTreeMap::new(),
            readers: BTreeMap::new(),
            held: None,
            committing: None,
            woken_at: None,
        }
    }

    /// Whether what was decided is on disk.
    pub const fn is_settled(&self) -> bool {
        self.held.is_none() && self.committing.is_none()
    }

    /// A job's log as it will be when `step` has been acted on up to the job's end, without its last
    /// event. What a step releases must be in the same transaction as the job's end.
    pub fn log_at_end(&self, step: &Step, job_id: JobId) -> Vec<Logged> {
        let mut log = self.logs.get(&job_id).cloned().unwrap_or_default();
        let mut held: BTreeMap<&RunKey, &[Logged]> = self
            .relays
            .iter()
            .filter(|(run, _)| run.job_id == job_id)
            .map(|(run, relay)| (run, relay.held.as_slice()))
            .collect();
        for action in &step.actions {
            match action {
                Action::Publish { job_id: id, event } if *id == job_id => {
                    log.push(Logged::Other(event.clone()));
                }
                Action::PassStream(run) if run.job_id == job_id => {
                    log.extend_from_slice(held.remove(run).unwrap_or_default());
                }
                Action::DropStream(run) => drop(held.remove(run)),
                Action::OpenStream(OpenStream { run, .. }) | Action::ResumeStream { run, .. }
                    if self.relays.get(run).is_some_and(|relay| relay.broken) =>
                {
                    held.remove(run);
                }
                Action::EndJob { job_id: id, release_held, .. } if *id == job_id => {
                    if *release_held {
                        held.values().for_each(|held| log.extend_from_slice(held));
                    }
                    return log;
                }
                _ => {}
            }
        }
        log
    }
}

impl World {
    /// What the living orchestrator did can be had again from its journal.
    pub fn check_journal(&mut self) {
        let wrong = self.daemon.as_ref().and_then(|daemon| daemon.journal.replay());
        self.checks.replayed(wrong);
    }

    /// Puts an event into the mailbox and wakes the driver.
    pub fn deliver(&mut self, event: Event) {
        let Some(daemon) = &mut self.daemon else { return };
        daemon.mailbox.push_back(event);
        let delay = self.rng.between(0, 2);
        self.after(delay, Happening::DriverTurn(self.life));
    }

    /// One turn of the driver's loop.
    pub fn driver_turn(&mut self) {
        if self.now < self.daemon_stopped_until {
            let until = self.daemon_stopped_until - self.now;
            return self.after(until, Happening::DriverTurn(self.life));
        }
        let Some(daemon) = &mut self.daemon else { return };
        if daemon.committing.is_some() {
            return;
        }
        let batch: Vec<Event> = daemon.mailbox.drain(..).collect();
        let (mut step, again_at) = daemon.held.take().unwrap_or_default();
        for event in batch {
            self.decide(event, &mut step);
        }
        self.decide_timeout(&mut step);
        match &mut self.daemon {
            Some(daemon) if self.now < again_at => daemon.held = Some((step, again_at)),
            _ => self.run_step(step),
        }
        self.arm();
    }

    /// Hands an event to the brain, and adds what comes of it to the step.
    pub fn decide(&mut self, event: Event, step: &mut Step) {
        let now = self.time();
        let event = self.misread_room(event);
        if let Some(answer) = self.answered_with_the_left(&event) {
            return self.decided(answer, step);
        }
        let Some(daemon) = &mut self.daemon else { return };
        let reported = reported_run(&event);
        let row_of = |brain: &Orchestrator, run: &RunKey| brain.job(run.job_id).map(|standing| standing.row);
        let before = reported.as_ref().and_then(|run| row_of(&daemon.brain, run));
        let event = if self.bug == Some(Bug::StaleAttemptAccepted) {
            as_current(event, &daemon.brain)
        } else {
            event
        };
        self.checks.heard(&event, now);
        if self.bug == Some(Bug::DrainIgnored) && matches!(event, Event::DrainWorker { .. }) {
            return;
        }
        self.trace.note(&event);
        daemon.journal.event(&event, now);
        let more = daemon.brain.handle_event(event, now);
        let wrong = daemon.journal.decided(&daemon.brain, &more);
        if let Some(run) = reported {
            let after = row_of(&daemon.brain, &run);
            self.checks.stale_report(&run, before.as_ref(), after.as_ref());
        }
        self.counts.events += 1;
        self.checks.replayed(wrong);
        self.decided(more, step);
    }

    /// What the brain decided is looked at and becomes part of the step.
    fn decided(&mut self, more: Step, step: &mut Step) {
        let more = self.tampered(more);
        if let Some(daemon) = &self.daemon {
            self.checks.indexed(&daemon.brain);
        }
        self.check_reasons(&more);
        self.checks.decided(&more, self.time());
        self.check_supply(&more);
        self.steps.iter_mut().for_each(|steps| steps.push(more.clone()));
        self.take_in(more, step);
    }

    /// Adds to the step; what lost runs have left is told at once, as the driver does.
    fn take_in(&mut self, more: Step, step: &mut Step) {
        let lost = more.actions.iter().filter_map(|action| match action {
            Action::Salvage(run) => Some(run.clone()),
            _ => None,
        });
        let lost: Vec<RunKey> = lost.collect();
        if let Some(daemon) = &self.daemon {
            self.checks.live_news(&daemon.brain, &more);
        }
        self.freeze_ending(&more);
        step.writes.extend(more.writes);
        step.actions.extend(more.actions);
        for run in lost {
            let Some(daemon) = &self.daemon else { return };
            let event = daemon.salvaged(step, &run);
            self.decide(event, step);
        }
    }

    fn decide_timeout(&mut self, step: &mut Step) {
        let now = self.time();
        let Some(daemon) = &mut self.daemon else { return };
        if daemon.brain.poll_timeout().is_some_and(|at| at <= now) {
            daemon.journal.timeout(now);
            let more = daemon.brain.handle_timeout(now);
            let wrong = daemon.journal.decided(&daemon.brain, &more);
            self.checks.replayed(wrong);
            self.counts.timeouts += 1;
            self.decided(more, step);
        }
    }

    /// Wakes the driver when the brain wants it.
    fn arm(&mut self) {
        let now = self.time();
        let Some(daemon) = &mut self.daemon else { return };
        let due = daemon.brain.poll_timeout().map(|at| self.now + at.since(now));
        if let Some(at) = due.filter(|_| due != daemon.woken_at) {
            daemon.woken_at = due;
            self.after(at - self.now, Happening::DriverTurn(self.life));
        }
    }

    /// Commits, then acts; a crash may strike at either side.
    pub fn run_step(&mut self, step: Step) {
        if step.actions.is_empty() && step.writes.is_empty() {
            return;
        }
        self.trace.note(&step);
        if step.writes.is_empty() {
            return self.act_all(step);
        }
        if self.bug == Some(Bug::ActBeforeCommit) {
            self.act_all(step.clone());
        }
        if let Some((CrashPoint::BeforeCommit, back)) = self.crash_next {
            return self.crash_daemon(back);
        }
        let delay = self.rng.between(0, 6);
        if let Some(daemon) = &mut self.daemon {
            daemon.committing = Some(step);
            self.after(delay, Happening::Commit(self.life));
        }
    }

    /// From the decision to end a job or to let it go on elsewhere on, nothing more is passed on for
    /// it: what readers got and what is kept must be the same.
    fn freeze_ending(&mut self, step: &Step) {
        let Some(daemon) = &mut self.daemon else { return };
        for action in &step.actions {
            let settled = match action {
                Action::EndJob { job_id, .. } => Some(*job_id),
                Action::Salvage(run) => Some(run.job_id),
                _ => None,
            };
            if let Some(job_id) = settled {
                let of_job = daemon.relays.iter_mut().filter(|(run, _)| run.job_id == job_id);
                of_job.for_each(|(_, relay)| relay.frozen = true);
            }
        }
    }

    /// The transaction is on disk.
    pub fn commit(&mut self) {
        let Some(daemon) = &mut self.daemon else { return };
        let Some(step) = daemon.committing.take() else { return };
        let Some(step) = self.what_the_disk_takes(step) else { return };
        let Some(daemon) = &mut self.daemon else { return };
        let queued = first_events(&step);
        let daemon = &*daemon;
        let kept = |job_id: JobId, last: &TaskEvent| {
            let mut log = daemon.log_at_end(&step, job_id);
            log.push(Logged::Other(last.clone()));
            log
        };
        let checkpoints = daemon.checkpoints(&step);
        let lost = usize::from(self.bug == Some(Bug::LastWriteLost) && step.writes.len() > 1);
        let writes = &step.writes[..step.writes.len() - lost];
        self.store.commit(writes, &queued, &kept, &mut self.checks);
        self.store.save_logs(checkpoints);
        self.committed_at = self.committed_at.max(self.time());
        self.counts.commits += 1;
        if let Some((CrashPoint::AfterCommit, back)) = self.crash_next {
            return self.crash_daemon(back);
        }
        if self.bug != Some(Bug::ActBeforeCommit) {
            self.act_all(step);
        }
        self.after(0, Happening::DriverTurn(self.life));
    }

    fn act_all(&mut self, step: Step) {
        for (done, action) in step.actions.into_iter().enumerate() {
            if let Some((CrashPoint::AmongActions(n), back)) = self.crash_next
                && n <= done as u64
            {
                return self.crash_daemon(back);
            }
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Answer { request, answer } => self.answer(request, answer),
            Action::Publish { job_id, event } => self.publish(job_id, event),
            // Looked at when it was decided.
            Action::PublishLive { .. } => {}
            Action::OpenStream(OpenStream { run, goes_on, .. }) => {
                self.checks.opened(&run);
                if let (Some(daemon), Some(goes_on)) = (&mut self.daemon, goes_on) {
                    daemon.goes_on.insert(run.clone(), goes_on);
                }
                let passing = self.bug == Some(Bug::PassBeforeRunning);
                self.open_relay(run, 0, passing, true);
            }
            Action::ResumeStream { run, delay_ms, passed, .. } => {
                self.open_relay(run, delay_ms, passed, false);
            }
            Action::PassStream(run) => self.pass_stream(&run),
            Action::DropStream(run) => self.drop_stream(&run),
            // Its part was done with the commit.
            Action::Salvage(_) => {}
            Action::StopRun { run, .. } => self.send_to_worker(&run, Happening::StopArrives),
            Action::AckRun { run, .. } => self.send_to_worker(&run, Happening::AckArrives),
            Action::EndJob { job_id, release_held, last_event } => {
                self.end_log(job_id, release_held, last_event);
            }
            Action::ProbeWorker { worker_id, .. } => self.probe(&worker_id),
            Action::AskPool { pool, ask } => self.ask_pool(&pool.pool_id, Ask::Room(ask)),
            Action::SpawnWorker { pool, worker_id, model } => {
                self.ask_pool(&pool.pool_id, Ask::Spawn(worker_id, model));
            }
            Action::StopWorker { pool, worker_id } => self.ask_pool(&pool.pool_id, Ask::Stop(worker_id)),
            Action::Notify(notice) => self.counts.notice(&notice),
        }
    }

    fn send_to_worker(&mut self, run: &RunKey, happening: fn(usize, RunKey) -> Happening) {
        let worker = self.worker_index(&run.worker_id);
        if self.is_reachable(worker) && !self.loses_message() {
            let delay = self.latency();
            self.after(delay, happening(worker, run.clone()));
        }
    }

    fn probe(&mut self, worker_id: &WorkerId) {
        let worker = self.worker_index(worker_id);
        if self.is_reachable(worker) {
            self.beat(worker);
        }
    }

    fn publish(&mut self, job_id: JobId, event: TaskEvent) {
        if let Some(daemon) = &mut self.daemon {
            daemon.logs.entry(job_id).or_default().push(Logged::Other(event));
        }
        self.wake_readers(job_id);
    }

    /// The job's end is on disk: its readers get the rest.
    fn end_log(&mut self, job_id: JobId, release_held: bool, last_event: TaskEvent) {
        if let Some(daemon) = &mut self.daemon {
            let runs: Vec<RunKey> =
                daemon.relays.keys().filter(|run| run.job_id == job_id).cloned().collect();
            let log = daemon.logs.entry(job_id).or_default();
            for run in runs {
                let relay = daemon.relays.remove(&run);
                if release_held {
                    log.extend(relay.into_iter().flat_map(|relay| relay.held));
                }
            }
            if self.bug == Some(Bug::EndTwice) {
                log.push(Logged::Other(last_event.clone()));
            }
            log.push(Logged::Other(last_event));
            if let Some(stored) = self.store.jobs.get(&job_id) {
                self.checks.ended_alike(job_id, log, &stored.events);
            }
        }
        self.wake_readers(job_id);
    }

    /// The process is gone, with everything in it.
    pub fn crash_daemon(&mut self, back_after_ms: u64) {
        self.crash_next = None;
        if let Some(daemon) = self.daemon.take() {
            self.checks.replayed(daemon.journal.replay());
            self.counts.crashes += 1;
            self.counts.faults += 1;
            self.take_back_spawns();
            self.checks.daemon_gone();
            self.life += 1;
            self.after(back_after_ms, Happening::StartDaemon(self.life));
        }
    }

    /// A new process reads the rows and goes on.
    pub fn start_daemon(&mut self) {
        self.set_clock();
        let now = self.time();
        let restless = self.bug == Some(Bug::RestlessScript);
        let scripts = Arc::new(Watched::new(self.plan.watchdog_every, restless));
        let rows = self.store.rows(self.bug);
        self.checks.spawns.restart(rows.spawns.iter());
        let (brain, step) = Orchestrator::recover_with(self.settings(), rows, scripts, now);
        let (logs, reach) = self.logs_on_disk();
        self.checks.recovered(&brain, &self.store.jobs);
        self.daemon = Some(Daemon::new(brain, logs, reach, self.bug));
        // A policy that fails in this very step gives way, which is yet to be written.
        if !step.writes.iter().any(|write| matches!(write, Write::PutPolicies(_))) {
            self.check_rows();
        }
        let mut all = Step::default();
        self.decided(step, &mut all);
        self.run_step(all);
        self.arm();
        self.after(0, Happening::DriverTurn(self.life));
    }
}

fn first_events(step: &Step) -> BTreeMap<JobId, TaskEvent> {
    let published = step.actions.iter().filter_map(|action| match action {
        Action::Publish { job_id, event } => Some((*job_id, event.clone())),
        _ => None,
    });
    published.collect()
}

/// The run that a report is about.
fn reported_run(event: &Event) -> Option<RunKey> {
    match event {
        Event::FirstToken(run)
        | Event::StreamEnded { run, .. }
        | Event::StreamFailed { run, .. }
        | Event::StreamBroken { run, .. } => Some(run.clone()),
        _ => None,
    }
}

/// The planted bug: what an old attempt reports is taken as news of the current one.
fn as_current(event: Event, brain: &Orchestrator) -> Event {
    let current = |run: RunKey| {
        let attempt = brain.job(run.job_id).and_then(|standing| standing.row.attempt);
        attempt.map_or(run.clone(), |attempt| RunKey {
            job_id: run.job_id,
            attempt: attempt.attempt,
            worker_id: attempt.worker_id,
            incarnation: attempt.incarnation,
        })
    };
    match event {
        Event::FirstToken(run) => Event::FirstToken(current(run)),
        Event::StreamEnded { run, end } => Event::StreamEnded { run: current(run), end },
        Event::StreamFailed { run, error } => Event::StreamFailed { run: current(run), error },
        other => other,
    }
}
