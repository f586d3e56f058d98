//! A worker in small: slots, one log per run, an instance drawn at each start.

use std::collections::BTreeMap;

use api_types::event::RunEnd;
use api_types::task::RetryMode;
use api_types::worker::{Seam, WorkerFacts, WorkerStatus};
use api_types::{
    Attempt, ErrorCode, ErrorDetail, Incarnation, InstanceId, JobId, PROTOCOL, PoolId, StopReason, TaskEvent,
    WorkerId,
};
use orchestrator_core::{Answer, Event, GoOn, RequestId, Run, RunKey};
use uuid::Uuid;

use crate::bugs::Bug;
use crate::daemon::{Caller, Logged};
use crate::plan::{Fate, WorkerPlan};
use crate::pools::Home;
use crate::relay::overflow;
use crate::rng::mix;
use crate::world::{Happening, World};

/// The number of a sign of life that no worker gave.
pub const NOT_A_WORKER: RequestId = RequestId(0);

/// A job's try, as workers name it.
pub type RunId = (JobId, Attempt);

/// A machine with a worker on it.
#[derive(Debug)]
pub struct SimWorker {
    /// Its id, the same over all starts.
    pub id: WorkerId,
    /// What it is.
    pub plan: WorkerPlan,
    /// Its process, while there is one.
    pub process: Option<Process>,
    /// Until when its process stands still.
    pub stopped_until: u64,
    /// Until when nothing gets through to it or from it.
    pub cut_until: u64,
    /// Until when nothing gets through to it.
    pub deaf_until: u64,
    /// Until when nothing gets through from it.
    pub mute_until: u64,
    /// Where it lives, when a pool started it.
    pub home: Option<Home>,
}

/// One start of a worker.
#[derive(Debug)]
pub struct Process {
    /// Unique over all starts of all workers.
    pub start: u64,
    instance: InstanceId,
    incarnation: Option<Incarnation>,
    status: WorkerStatus,
    runs: BTreeMap<RunId, RunLog>,
    highest: BTreeMap<JobId, Attempt>,
    leaked: u32,
}

#[derive(Debug)]
struct RunLog {
    events: Vec<WorkerEvent>,
    ended: bool,
    tokens: u32,
    /// The index of the next token.
    next: u32,
    /// Seams that are to be logged yet.
    seams: Vec<Seam>,
    /// Whether the tokens are the same on every worker.
    alike: bool,
    fate: Fate,
}

/// An entry of a run's log.
#[derive(Debug, Clone)]
pub enum WorkerEvent {
    /// Goes into the job's log.
    Log(Logged),
    /// The run ended.
    End(RunEnd),
    /// The run failed.
    Error(ErrorDetail),
    /// Not the protocol.
    Garbage,
}

/// What a connection to a worker meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nobody listens.
    Gone,
    /// No answer.
    Silent,
    /// An answer.
    Open,
}

impl SimWorker {
    /// A machine on which nothing runs yet.
    pub const fn new(id: WorkerId, plan: WorkerPlan) -> Self {
        let (stopped_until, cut_until, deaf_until, mute_until) = (0, 0, 0, 0);
        Self { id, plan, process: None, stopped_until, cut_until, deaf_until, mute_until, home: None }
    }

    /// Whether its process reads the model.
    pub fn is_loading(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.status == WorkerStatus::Loading)
    }

    /// Whether it is at work on a run.
    pub fn is_running(&self, run: RunId) -> bool {
        let found = self.process.as_ref().and_then(|process| process.runs.get(&run));
        found.is_some_and(|run| !run.ended)
    }

    /// What a connection meets at `now`.
    pub const fn reach(&self, now: u64) -> Reach {
        // A connection needs both directions.
        if now < self.cut_until || now < self.deaf_until || now < self.mute_until {
            return Reach::Silent;
        }
        match self.process {
            None => Reach::Gone,
            Some(_) if now < self.stopped_until => Reach::Silent,
            Some(_) => Reach::Open,
        }
    }

    /// The rest of a run's log, if this start still has it.
    pub fn events_from(&self, start: u64, run: RunId, cursor: usize) -> Option<Vec<WorkerEvent>> {
        let process = self.process.as_ref().filter(|process| process.start == start)?;
        Some(process.runs.get(&run)?.events.get(cursor..)?.to_vec())
    }

    fn facts(&self, instance: InstanceId, pool_id: Option<PoolId>) -> WorkerFacts {
        WorkerFacts {
            worker_id: self.id.clone(),
            instance,
            evictable: pool_id.is_some(),
            pool_id,
            uri: format!("http://{}", self.id),
            model: self.plan.model.to_owned(),
            model_ref: None,
            backend: if self.home.is_some() { "cpu" } else { "fake" }.to_owned(),
            devices: Vec::new(),
            slots: self.plan.slots,
            context_length: 4_096,
            vram_bytes: 0,
            ram_bytes: 0,
            quantization: None,
            tokenizer: None,
            capabilities: vec![api_types::worker::PREFIX_CACHE.to_owned()],
            engine: String::new(),
            version: String::new(),
            protocol: PROTOCOL,
        }
    }
}

impl RunLog {
    /// Adds an event, and before it the seams whose place this is.
    fn log(&mut self, event: WorkerEvent) {
        let due = |seam: &Seam| seam.at <= self.next || self.ended;
        let (due, left): (Vec<Seam>, Vec<Seam>) = std::mem::take(&mut self.seams).into_iter().partition(due);
        self.seams = left;
        for Seam { from_worker, to_worker, i, exact, .. } in due {
            let seam = TaskEvent::Seam { from_worker, to_worker, i, exact };
            self.events.push(WorkerEvent::Log(Logged::Other(seam)));
        }
        self.next += u32::from(matches!(event, WorkerEvent::Log(Logged::Token { .. })));
        self.events.push(event);
    }
}

impl Process {
    fn active(&self) -> u32 {
        self.leaked + self.runs.values().filter(|run| !run.ended).count() as u32
    }

    fn listed(&self) -> Vec<Run> {
        let list = self.runs.iter();
        list.map(|(&(job_id, attempt), run)| Run { job_id, attempt, ended: run.ended }).collect()
    }
}

/// The value of a token: it tells which run of which process made it.
pub fn token_value(job_id: JobId, attempt: u32, start: u64, i: u32) -> u64 {
    mix(job_id.uuid().as_u128() as u64 ^ u64::from(attempt) << 48 ^ start << 32 ^ u64::from(i))
}

impl World {
    /// The place of a worker in the plan.
    pub fn worker_index(&self, id: &WorkerId) -> usize {
        self.workers.iter().position(|worker| worker.id == *id).unwrap_or_default()
    }

    /// Whether a message to or from this worker gets through now.
    pub fn is_reachable(&self, worker: usize) -> bool {
        self.workers[worker].reach(self.now) == Reach::Open
    }

    /// Whether what this worker says arrives, even if it hears nothing.
    fn is_heard(&self, worker: usize) -> bool {
        let machine = &self.workers[worker];
        let until = machine.cut_until.max(machine.stopped_until).max(machine.mute_until);
        machine.process.is_some() && self.now >= until
    }

    /// The planted bug: whoever has registered is believed to live for as long as it is connected.
    pub fn forgive_silence(&mut self) {
        if self.bug != Some(Bug::SilenceForgiven) {
            return;
        }
        for worker in 0..self.workers.len() {
            let registered = self.sign_of_life(worker, NOT_A_WORKER);
            if let Some(event @ Event::WorkerHeartbeat { .. }) = registered {
                self.deliver(event);
            }
        }
    }

    /// Starts a worker's process, unless it has one, or a pool would have to be asked for it.
    pub fn start_worker(&mut self, worker: usize) {
        if self.workers[worker].process.is_none() && self.workers[worker].home.is_none() {
            self.begin_process(worker);
        }
    }

    /// Starts a worker's process.
    pub fn begin_process(&mut self, worker: usize) {
        self.starts += 1;
        let start = self.starts;
        let drawn = if self.bug == Some(Bug::NoIncarnation) { worker as u64 } else { 1_000 + start };
        self.workers[worker].process = Some(Process {
            start,
            instance: InstanceId(Uuid::from_u128(u128::from(drawn))),
            incarnation: None,
            status: WorkerStatus::Loading,
            runs: BTreeMap::new(),
            highest: BTreeMap::new(),
            leaked: 0,
        });
        let load_ms = self.workers[worker].plan.load_ms;
        self.after(load_ms, Happening::WorkerLoaded { worker, start });
        self.after(1, Happening::Beat { worker, start });
    }

    /// The process of this start, if it is still the one.
    fn process(&mut self, worker: usize, start: u64) -> Option<&mut Process> {
        self.workers[worker].process.as_mut().filter(|process| process.start == start)
    }

    /// Ends a worker's process at once.
    pub fn kill_worker(&mut self, worker: usize) {
        let Some(process) = self.workers[worker].process.take() else { return };
        self.workers[worker].stopped_until = 0;
        self.counts.worker_deaths += 1;
        if process.status == WorkerStatus::Loading {
            self.tell_spawned(worker, Some(ErrorDetail::new(ErrorCode::SpawnFailed, "scripted")));
        }
        self.break_streams_of(worker, process.start);
    }

    /// Ends a process that is still loading.
    pub fn die_loading(&mut self, worker: usize, start: u64) {
        if self.process(worker, start).is_some() && self.workers[worker].is_loading() {
            self.kill_worker(worker);
        }
    }

    /// Breaks the streams from a worker that lives on. Whether there are any.
    pub fn break_streams(&mut self, worker: usize) -> bool {
        let start = self.workers[worker].process.as_ref().map(|process| process.start);
        start.is_some_and(|start| self.break_streams_of(worker, start))
    }

    fn break_streams_of(&mut self, worker: usize, start: u64) -> bool {
        let Some(daemon) = &self.daemon else { return false };
        let id = &self.workers[worker].id;
        let broken: Vec<_> = daemon
            .relays
            .iter()
            .filter(|(run, relay)| run.worker_id == *id && relay.start == Some(start))
            .map(|(run, relay)| (run.clone(), relay.conn))
            .collect();
        let any = !broken.is_empty();
        for (run, conn) in broken {
            let delay = self.latency();
            let cause = orchestrator_core::BrokenCause::Unreachable;
            self.after(delay, Happening::RelayBreak { life: self.life, conn, run, cause });
        }
        any
    }

    /// The model is read.
    pub fn worker_loaded(&mut self, worker: usize, start: u64) {
        if let Some(process) = self.process(worker, start) {
            process.status = WorkerStatus::Ready;
            self.beat(worker);
            self.tell_spawned(worker, None);
        }
    }

    /// The regular sign of life.
    pub fn beat_regularly(&mut self, worker: usize, start: u64) {
        if self.process(worker, start).is_some() {
            self.after(3_000, Happening::Beat { worker, start });
            self.leave_if_drained(worker);
            self.beat(worker);
        }
    }

    /// Introduces itself, or shows that it lives.
    pub fn beat(&mut self, worker: usize) {
        if !self.is_heard(worker) || self.daemon.is_none() {
            return;
        }
        let copies = if self.loses_message() { 0 } else { 1 + u64::from(self.doubles_message()) };
        for _ in 0..copies {
            let delay = if self.doubles_message() { self.rng.between(100, 4_000) } else { self.latency() };
            let request = self.draw_request();
            let Some(event) = self.sign_of_life(worker, request) else { return };
            let start = self.workers[worker].process.as_ref().map_or(0, |process| process.start);
            self.send_to_daemon(delay, event, request, Caller::Worker(worker, start));
        }
    }

    fn sign_of_life(&self, worker: usize, request: RequestId) -> Option<Event> {
        let machine = &self.workers[worker];
        let process = machine.process.as_ref()?;
        let pool_id = machine.home.map(|home| self.pools[home.pool].id.clone());
        let facts = || Box::new(machine.facts(process.instance, pool_id));
        let (status, runs) = (process.status, process.listed());
        Some(match process.incarnation {
            None => Event::WorkerReady { request, facts: facts(), status, runs, secret: None },
            Some(incarnation) => Event::WorkerHeartbeat {
                request,
                worker_id: machine.id.clone(),
                incarnation,
                instance: process.instance,
                status,
                runs,
                free_memory_bytes: None,
                prefixes: None,
            },
        })
    }

    /// The orchestrator's answer to a sign of life.
    pub fn worker_reply(&mut self, worker: usize, start: u64, answer: Answer) {
        let Some(process) = self.process(worker, start) else { return };
        match answer {
            Answer::Registered { incarnation, drop_runs } => {
                process.incarnation = Some(incarnation);
                self.drop_runs(worker, &drop_runs);
            }
            Answer::Heartbeat { drop_runs, drain } => {
                if drain {
                    process.status = WorkerStatus::Draining;
                }
                self.drop_runs(worker, &drop_runs);
                self.leave_if_drained(worker);
            }
            Answer::Refused(error) if error.details.is_some() => {
                self.kill_worker(worker);
                self.after(1_000, Happening::StartWorker(worker));
            }
            Answer::Refused(_) => {
                process.incarnation = None;
                self.beat(worker);
            }
            Answer::Accepted { .. } | Answer::Cancelled { .. } | Answer::Done => {}
        }
    }

    fn drop_runs(&mut self, worker: usize, runs: &[Run]) {
        for run in runs {
            self.stop_run(worker, (run.job_id, run.attempt));
            if let Some(process) = &mut self.workers[worker].process {
                process.runs.remove(&(run.job_id, run.attempt));
            }
        }
    }

    /// A drained worker ends once its runs have; it comes back as a new start.
    fn leave_if_drained(&mut self, worker: usize) {
        let Some(process) = &self.workers[worker].process else { return };
        if process.status == WorkerStatus::Draining && process.active() == 0 {
            let event = Event::WorkerFailed {
                request: None,
                worker_id: self.workers[worker].id.clone(),
                instance: process.instance,
                error: ErrorDetail::new(ErrorCode::WorkerDraining, "drained"),
            };
            let delay = self.latency();
            if self.rng.chance(50) {
                self.after(delay, Happening::Report { life: self.life, event: Box::new(event) });
            }
            self.kill_worker(worker);
            let delay = self.rng.between(100, 5_000);
            self.after(delay, Happening::StartWorker(worker));
        }
    }

    /// `/execute`: the start that runs it, or the refusal.
    pub fn execute(&mut self, worker: usize, run: &RunKey) -> Result<u64, Option<ErrorCode>> {
        let id = (run.job_id, run.attempt);
        let slots = self.workers[worker].plan.slots;
        let checks_incarnation = self.bug != Some(Bug::NoIncarnation);
        let Some(process) = &mut self.workers[worker].process else { return Err(None) };
        if checks_incarnation && process.incarnation != Some(run.incarnation) {
            return Err(Some(ErrorCode::StaleIncarnation));
        }
        let again = self.bug == Some(Bug::RunTwice);
        if process.runs.contains_key(&id) && !again {
            return Ok(process.start);
        }
        match process.highest.get(&run.job_id) {
            Some(highest) if *highest > run.attempt => return Err(Some(ErrorCode::StaleAttempt)),
            Some(highest) if *highest == run.attempt && !again => return Err(Some(ErrorCode::AttemptGone)),
            _ => {}
        }
        match process.status {
            WorkerStatus::Loading => return Err(Some(ErrorCode::WorkerLoading)),
            WorkerStatus::Draining => return Err(Some(ErrorCode::WorkerDraining)),
            WorkerStatus::Ready | WorkerStatus::Failed => {}
        }
        if process.active() >= slots {
            return Err(Some(ErrorCode::AllSlotsBusy));
        }
        process.highest.insert(run.job_id, run.attempt);
        let start = process.start;
        self.checks.executed(run, start);
        self.begin_run(worker, start, id);
        Ok(start)
    }

    /// What the orchestrator sends with a run that goes on where another stopped.
    fn goes_on(&self, id: RunId) -> Option<GoOn> {
        let daemon = self.daemon.as_ref()?;
        let of_run = |run: &RunKey| (run.job_id, run.attempt) == id;
        daemon.goes_on.iter().find(|(run, _)| of_run(run)).map(|(_, goes_on)| goes_on.clone())
    }

    fn begin_run(&mut self, worker: usize, start: u64, id: RunId) {
        let (tokens, fate) = self.job_plan(id.0);
        let goes_on = self.goes_on(id);
        let alike = self.job_retry(id.0) == RetryMode::Continue;
        let started = WorkerEvent::Log(Logged::Started { attempt: id.1.0, start });
        let events = if goes_on.is_some() { Vec::new() } else { vec![started] };
        let repeats = self.bug == Some(Bug::SeamRepeats);
        let GoOn { tokens: next, seams } = goes_on.unwrap_or(GoOn { tokens: 0, seams: Vec::new() });
        let next = next.saturating_sub(u32::from(repeats));
        let run = RunLog { events, ended: false, tokens, next, seams, alike, fate };
        if let Some(process) = &mut self.workers[worker].process {
            process.runs.insert(id, run);
        }
        let prefill = self.rng.between(5, 900);
        self.after(prefill, Happening::Token { worker, start, run: id });
    }

    /// The log of a run that this start has, for one who comes back to it.
    pub fn find_run(&self, worker: usize, run: &RunKey) -> Result<u64, Option<ErrorCode>> {
        let checks_incarnation = self.bug != Some(Bug::NoIncarnation);
        let process = self.workers[worker].process.as_ref().ok_or(None)?;
        let same = !checks_incarnation || process.incarnation == Some(run.incarnation);
        let known = same && process.runs.contains_key(&(run.job_id, run.attempt));
        if known { Ok(process.start) } else { Err(None) }
    }

    /// One decode step of one run.
    pub fn token(&mut self, worker: usize, start: u64, id: RunId) {
        let stopped_until = self.workers[worker].stopped_until;
        if self.now < stopped_until {
            return self.after(stopped_until - self.now, Happening::Token { worker, start, run: id });
        }
        let Some(process) = self.process(worker, start) else { return };
        let Some(run) = process.runs.get_mut(&id).filter(|run| !run.ended) else { return };
        let i = run.next;
        let first_try = id.1 == Attempt::FIRST;
        let event = match run.fate {
            Fate::FailsOnce if first_try => {
                WorkerEvent::Error(ErrorDetail::new(ErrorCode::EngineFailed, "scripted"))
            }
            Fate::Overflows => WorkerEvent::Error(overflow()),
            Fate::Stalls if first_try => return,
            Fate::Garbles if first_try => WorkerEvent::Garbage,
            Fate::Kills => {
                self.kill_worker(worker);
                return self.after(1_500, Happening::StartWorker(worker));
            }
            _ if i >= run.tokens => WorkerEvent::End(run_end(run.tokens, StopReason::Eos)),
            _ if run.alike => WorkerEvent::Log(Logged::Token { i, value: token_value(id.0, 0, 0, i) }),
            _ => WorkerEvent::Log(Logged::Token { i, value: token_value(id.0, id.1.0, start, i) }),
        };
        run.ended = !matches!(event, WorkerEvent::Log(_));
        run.log(event);
        if !run.ended {
            let step = self.rng.between(10, 120);
            self.after(step, Happening::Token { worker, start, run: id });
        }
        self.wake_relay(worker, id, start);
    }

    /// `/cancel`: the run ends with what it has.
    pub fn stop_run(&mut self, worker: usize, id: RunId) {
        let leaks = self.bug == Some(Bug::SlotLeaked);
        let Some(process) = &mut self.workers[worker].process else { return };
        let start = process.start;
        let Some(run) = process.runs.get_mut(&id).filter(|run| !run.ended) else { return };
        let end = run_end(run.next, StopReason::Cancelled);
        run.ended = true;
        run.log(WorkerEvent::End(end));
        process.leaked += u32::from(leaks);
        self.wake_relay(worker, id, start);
    }

    /// The log of an ended run may go.
    pub fn ack_run(&mut self, worker: usize, run: &RunKey) {
        let id = (run.job_id, run.attempt);
        if let Some(process) = &mut self.workers[worker].process
            && process.runs.get(&id).is_some_and(|run| run.ended)
        {
            process.runs.remove(&id);
        }
    }

    /// The operator drains a worker. Whether somebody hears of it who did not want to go anyway.
    pub fn drain_worker(&mut self, worker: usize) -> bool {
        let staying =
            self.workers[worker].process.as_ref().is_some_and(|p| p.status != WorkerStatus::Draining);
        let request = self.draw_request();
        let event = Event::DrainWorker { request, worker_id: self.workers[worker].id.clone() };
        self.send_to_daemon(1, event, request, Caller::Nobody);
        staying && self.daemon.is_some()
    }
}

const fn run_end(tokens_out: u32, stop_reason: StopReason) -> RunEnd {
    RunEnd {
        tokens_in: 7,
        tokens_out,
        queue_time_ms: 0,
        prefill_time_ms: 1,
        decode_time_ms: 1,
        stop_reason,
        seed: None,
        tokens_cached: None,
    }
}
