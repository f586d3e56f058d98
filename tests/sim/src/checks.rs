//! The promises, checked at every step and at the end. Each failure names its invariant.

use std::collections::{BTreeMap, BTreeSet};

use api_types::task::{Durability, RetryMode, TaskStatus};
use api_types::worker::WorkerStatus;
use api_types::{Attempt, InstanceId, JobId, TaskEvent, WorkerId};
use orchestrator_core::{
    Action, Answer, Event, JobRow, Orchestrator, RequestId, RunKey, Step, Time, Write, may_move,
};

use crate::client::is_last;
use crate::daemon::Logged;
use crate::plan::ClientPlan;
use crate::sim_worker::{NOT_A_WORKER, token_value};
use crate::store::Stored;
use crate::world::{FAULTS_AT_LEAST, World};

pub mod reasons;
mod supply;

/// Failures that are kept; one is enough to fail a seed.
const KEPT: usize = 5;
/// Silence after which a worker must get no new job, in milliseconds.
const SUSPECT_MS: u64 = api_types::worker::SUSPECT_MS;

/// What has been promised so far, and what was broken.
#[derive(Debug, Default)]
pub struct Checks {
    /// Broken promises, the first few.
    pub failures: Vec<String>,
    acknowledged: BTreeMap<JobId, Durability>,
    told: BTreeMap<JobId, TaskStatus>,
    job_of_client: BTreeMap<usize, JobId>,
    job_of_key: BTreeMap<String, JobId>,
    job_of_number: BTreeMap<u64, JobId>,
    executed: BTreeMap<(JobId, Attempt), u64>,
    opened: BTreeSet<(JobId, Attempt)>,
    /// Jobs without an idempotency key, as far as was decided.
    keyless: BTreeSet<JobId>,
    known: BTreeMap<WorkerId, Known>,
    pending: BTreeMap<RequestId, (WorkerId, InstanceId, WorkerStatus)>,
    /// Workers that were asked for.
    pub spawns: supply::Spawns,
}

/// What the brain was told of a worker, kept apart from the brain.
#[derive(Debug)]
struct Known {
    heard: Time,
    instance: InstanceId,
    status: WorkerStatus,
    draining: bool,
    /// Since when it is ready for the living orchestrator.
    ready_since: Option<Time>,
    /// When it was last handed a run.
    used_at: Option<Time>,
}

impl Checks {
    /// Notes a broken promise.
    pub fn fail(&mut self, invariant: &str, what: String) {
        if self.failures.len() < KEPT {
            self.failures.push(format!("{invariant}: {what}"));
        }
    }

    /// Looks at something, and notes what is wrong with it.
    fn note(&mut self, invariant: &str, look: impl FnOnce(&mut Self) -> Option<String>) {
        if let Some(wrong) = look(self) {
            self.fail(invariant, wrong);
        }
    }

    /// The indexes that placements go by say what is so.
    pub fn indexed(&mut self, brain: &Orchestrator) {
        if !brain.indexes_are_exact() {
            self.fail("index", "an index of the brain differs from what it is an index of".to_owned());
        }
    }

    /// A job was committed without its first event.
    pub fn no_first_event(&mut self, job_id: JobId) -> TaskEvent {
        self.fail("I5", format!("{job_id} is inserted without its first event"));
        TaskEvent::Queued { job_id, queue_position: 0, eta_ms: None }
    }

    /// What was recorded is what happened.
    pub fn replayed(&mut self, wrong: Option<String>) {
        if let Some(wrong) = wrong {
            self.fail("replay", wrong);
        }
    }

    /// I2: one key, one job. I3: a job begins as queued.
    pub fn inserted(&mut self, row: &JobRow, jobs: &BTreeMap<JobId, Stored>) {
        if row.status != TaskStatus::Queued || jobs.contains_key(&row.job_id) {
            self.fail("I3", format!("{} begins as {:?}", row.job_id, row.status));
        }
        if let Some(first) = self.job_of_number.insert(row.number, row.job_id) {
            self.fail("I3", format!("{} and {first} have the number {}", row.job_id, row.number));
        }
        if let Some(idempotency) = &row.idempotency
            && let Some(first) = self.job_of_key.insert(idempotency.key.clone(), row.job_id)
            && !is_forgotten(jobs.get(&first), row)
            && !is_freed(jobs.get(&first))
        {
            self.fail("I2", format!("{} and {first} have the key {}", row.job_id, idempotency.key));
        }
    }

    /// I3: only who waits is told where it stands.
    pub fn live_news(&mut self, brain: &Orchestrator, step: &Step) {
        for action in &step.actions {
            let Action::PublishLive { job_id, .. } = action else { continue };
            let status = brain.job(*job_id).map(|standing| standing.row.status);
            // What is due at one time may be news of a job and, after that, its end.
            let ends = |action: &Action| matches!(action, Action::EndJob { job_id: id, .. } if id == job_id);
            if status != Some(TaskStatus::Queued) && !step.actions.iter().any(ends) {
                self.fail("I3", format!("{job_id} is told where it waits, and is {status:?}"));
            }
        }
    }

    /// I3: only legal moves, one end, attempts that only grow.
    pub fn moved(&mut self, from: &JobRow, to: &JobRow) {
        let id = to.job_id;
        if from.status != to.status && !may_move(from.status, to.status) {
            self.fail("I3", format!("{id} moves from {:?} to {:?}", from.status, to.status));
        }
        if from.status.is_terminal() {
            self.fail("I3", format!("{id} is written after it ended"));
        }
        let number = |row: &JobRow| row.attempt.as_ref().map_or(0, |attempt| attempt.attempt.0);
        let goes_back = from.status == TaskStatus::Running && to.status == TaskStatus::Queued;
        if goes_back && to.retry != RetryMode::Continue {
            self.fail("I3", format!("{id} waits again although it has shown tokens"));
        }
        let dispatched = from.status == TaskStatus::Queued && to.status == TaskStatus::Dispatched;
        if number(to) != number(from) + u32::from(dispatched) {
            self.fail("I3", format!("{id} goes from attempt {} to {}", number(from), number(to)));
        }
        let dispatched_at = to.attempt.as_ref().map(|attempt| attempt.dispatched_at);
        let gave_key_up = from.idempotency.is_some() && to.idempotency.is_none();
        if gave_key_up && to.cancel_requested_at.is_none() && to.status != TaskStatus::Cancelled {
            self.fail("I2", format!("{id} gave its key up and goes on"));
        }
        let times = [Some(to.submitted_at), dispatched_at, to.ended_at];
        if !times.iter().flatten().is_sorted() {
            self.fail("I3", format!("{id}: its times run backward: {times:?}"));
        }
        if to.status.is_terminal() != to.ended_at.is_some() {
            self.fail("I3", format!("{id} is {:?} and ended at {:?}", to.status, to.ended_at));
        }
    }

    /// What the brain wrote is what it holds.
    pub fn written(&mut self, brain: &Orchestrator, job_id: JobId, stored: &JobRow) {
        match brain.job(job_id) {
            Some(standing) if standing.row == *stored => {}
            other => {
                let held = other.map(|standing| standing.row.status);
                self.fail(
                    "I1",
                    format!("{job_id} is on disk as {:?}, in the brain as {held:?}", stored.status),
                );
            }
        }
    }

    /// I1: whoever was told of a job finds it. I2: one client, one job.
    pub fn acknowledged(
        &mut self,
        client: usize,
        job_id: JobId,
        plan: &ClientPlan,
        jobs: &BTreeMap<JobId, Stored>,
    ) {
        self.acknowledged.insert(job_id, plan.durability);
        let first = *self.job_of_client.entry(client).or_insert(job_id);
        if first != job_id
            && !is_freed(jobs.get(&first))
            && plan.keyed
            && plan.durability == Durability::Durable
        {
            self.fail("I2", format!("client {client} was told of {first} and then of {job_id}"));
        }
    }

    /// I1: what is on disk is what was asked for.
    pub fn as_asked(&mut self, row: &JobRow, plan: &ClientPlan) {
        let same = (row.retry, row.priority, row.on_disconnect)
            == (plan.retry, plan.priority, plan.on_disconnect)
            && row.deadline.map(|at| at.since(row.submitted_at)) == plan.deadline_ms
            && row.model == plan.model
            && row.placement == plan.placement;
        if !same {
            self.fail("I1", format!("{} is on disk as {row:?}, but {plan:?} was asked for", row.job_id));
        }
    }

    /// I2: nobody is answered with a cancellation that nobody asked for.
    pub fn wanted(&mut self, row: &JobRow, plan: &ClientPlan) {
        if row.status == TaskStatus::Cancelled && plan.cancels_after.is_none() && row.idempotency.is_some() {
            self.fail("I2", format!("{} is the answer to a retry and was only left", row.job_id));
        }
    }

    /// I3: what somebody was told is final.
    pub fn told_ended(&mut self, job_id: JobId, status: TaskStatus) {
        let first = *self.told.entry(job_id).or_insert(status);
        if first != status || !status.is_terminal() {
            self.fail("I3", format!("{job_id} was told as {first:?} and as {status:?}"));
        }
    }

    /// I4: one attempt runs on one start of one worker only.
    pub fn executed(&mut self, run: &RunKey, start: u64) {
        if let Some(first) = self.executed.insert((run.job_id, run.attempt), start) {
            self.fail("I4", format!("{run:?} runs on start {first} and again on start {start}"));
        }
    }

    /// Notes what the brain is told of workers.
    pub fn heard(&mut self, event: &Event, now: Time) {
        match event {
            Event::WorkerReady { request, facts, status, .. } => {
                self.pending.insert(*request, (facts.worker_id.clone(), facts.instance, *status));
            }
            Event::WorkerHeartbeat { request, worker_id, instance, status, .. }
                if *request != NOT_A_WORKER =>
            {
                self.pending.insert(*request, (worker_id.clone(), *instance, *status));
            }
            Event::WorkerFailed { worker_id, instance, .. } => {
                self.known.retain(|id, known| id != worker_id || known.instance != *instance);
            }
            Event::DrainWorker { worker_id, .. } => {
                self.known.get_mut(worker_id).into_iter().for_each(|known| known.draining = true);
            }
            _ => {}
        }
        debug_assert!(now.0 > 0);
    }

    /// I7: no dispatch to a worker that is silent, loading, draining or unknown.
    pub fn decided(&mut self, step: &Step, now: Time) {
        self.keys_given_up(step);
        for action in &step.actions {
            match action {
                Action::Answer { request, answer } => self.answered(*request, answer, now),
                Action::OpenStream(open) => self.dispatched(&open.run, now),
                _ => {}
            }
        }
    }

    /// I2: from the decision to give a job's key up on, no retry is answered with that job.
    fn keys_given_up(&mut self, step: &Step) {
        for action in &step.actions {
            if let Action::Answer { answer: Answer::Accepted { job_id, replayed: true, .. }, .. } = action
                && self.keyless.contains(job_id)
            {
                self.fail("I2", format!("{job_id} gave its key up and is the answer to a retry"));
            }
        }
        for write in &step.writes {
            if let Write::InsertJob(row) | Write::UpdateJob(row) | Write::EndJob { row, .. } = write
                && row.idempotency.is_none()
            {
                self.keyless.insert(row.job_id);
            }
        }
    }

    fn answered(&mut self, request: RequestId, answer: &Answer, now: Time) {
        let Some((id, instance, status)) = self.pending.remove(&request) else { return };
        if !matches!(answer, Answer::Registered { .. } | Answer::Heartbeat { .. }) {
            return;
        }
        let before = self.known.get(&id).filter(|known| known.instance == instance);
        let draining = before.is_some_and(|known| known.draining);
        let ready_since = before.and_then(|known| known.ready_since);
        let ready_since = ready_since.or((status == WorkerStatus::Ready).then_some(now));
        let used_at = before.and_then(|known| known.used_at);
        self.known.insert(id, Known { heard: now, instance, status, draining, ready_since, used_at });
    }

    fn dispatched(&mut self, run: &RunKey, now: Time) {
        if !self.opened.insert((run.job_id, run.attempt)) {
            return;
        }
        self.known.get_mut(&run.worker_id).into_iter().for_each(|known| known.used_at = Some(now));
        let problem = match self.known.get(&run.worker_id) {
            None => Some("is not known".to_owned()),
            Some(known) if known.draining => Some("is draining".to_owned()),
            Some(known) if known.status != WorkerStatus::Ready => Some(format!("is {:?}", known.status)),
            Some(known) => {
                let silent = now.since(known.heard);
                (silent >= SUSPECT_MS).then(|| format!("has been silent for {silent} ms"))
            }
        };
        if let Some(problem) = problem {
            self.fail("I7", format!("{run:?} is handed out although the worker {problem}"));
        }
    }

    /// A worker is to finish and go.
    fn is_to_leave(&mut self, worker_id: &WorkerId) {
        self.known.get_mut(worker_id).into_iter().for_each(|known| known.draining = true);
    }

    /// I4: what an old attempt reports moves nothing. `before` and `after` are the job around it.
    pub fn stale_report(&mut self, run: &RunKey, before: Option<&JobRow>, after: Option<&JobRow>) {
        let is_current = |row: &&JobRow| {
            let attempt = row.attempt.as_ref();
            let same = attempt.is_some_and(|a| (a.attempt, a.incarnation) == (run.attempt, run.incarnation));
            same && matches!(row.status, TaskStatus::Dispatched | TaskStatus::Running)
        };
        let Some(before) = before else { return };
        if is_current(&before) {
            return;
        }
        let waited = before.status == TaskStatus::Queued;
        let Some(after) = after else {
            return self.fail("I4", format!("a late report of {run:?} ended its job"));
        };
        let placed = waited && after.status == TaskStatus::Dispatched;
        if after.status != before.status && !placed {
            let text = format!(
                "a late report of {run:?} moved its job from {:?} to {:?}",
                before.status, after.status
            );
            self.fail("I4", text);
        }
    }

    /// Whether a run was handed out before.
    pub fn knows_run(&self, run: &RunKey) -> bool {
        self.opened.contains(&(run.job_id, run.attempt))
    }

    /// The driver opens a stream.
    pub fn opened(&mut self, run: &RunKey) {
        self.opened.insert((run.job_id, run.attempt));
    }

    /// The orchestrator's process is gone; a new one must hear of workers again.
    pub fn daemon_gone(&mut self) {
        self.known.clear();
        self.pending.clear();
    }

    /// I1: a new orchestrator knows every job that had not ended.
    pub fn recovered(&mut self, brain: &Orchestrator, jobs: &BTreeMap<JobId, Stored>) {
        // What was decided and not committed is not so.
        let keyless = jobs.values().filter(|stored| stored.row.idempotency.is_none());
        self.keyless = keyless.map(|stored| stored.row.job_id).collect();
        for (id, stored) in jobs {
            if !stored.row.status.is_terminal() && brain.job(*id).is_none() {
                self.fail("I1", format!("{id} is forgotten by a restart"));
            }
        }
    }

    /// I5: what readers got and what is kept are the same.
    pub fn ended_alike(&mut self, job_id: JobId, log: &[Logged], kept: &[Logged]) {
        if log != kept {
            let text = format!(
                "{job_id}: readers got {} events, kept are {}: {log:?} / {kept:?}",
                log.len(),
                kept.len()
            );
            self.fail("I5", text);
        }
    }

    /// I5: ids without a gap, one run's tokens only (or, where a job goes on elsewhere, each token
    /// once and the seams where it changed hands), one last event that agrees with them.
    fn whole_log(&mut self, row: &JobRow, log: &[Logged]) {
        let id = row.job_id;
        let mut run = None;
        let mut tokens = 0;
        for (index, logged) in log.iter().enumerate() {
            let fits = match logged {
                Logged::Other(TaskEvent::Queued { .. }) => index == 0,
                Logged::Started { attempt, start } => index == 1 && run.replace((*attempt, *start)).is_none(),
                Logged::Token { i, value } => {
                    tokens += 1;
                    let alike = row.retry == RetryMode::Continue;
                    let maker = run.map(|maker| if alike { (0, 0) } else { maker });
                    maker.is_some_and(|(attempt, start)| *value == token_value(id, attempt, start, *i))
                        && *i + 1 == tokens
                }
                Logged::Other(TaskEvent::Seam { i, .. }) => {
                    row.retry == RetryMode::Continue && *i > 0 && *i <= tokens
                }
                Logged::Other(event) => event.is_last() && index + 1 == log.len(),
            };
            if !fits {
                return self
                    .fail("I5", format!("{id}: event {index} of {} does not fit: {logged:?}", log.len()));
            }
        }
        match log.last() {
            Some(Logged::Other(TaskEvent::End(end))) if row.status == TaskStatus::Completed => {
                if end.tokens_out != tokens {
                    self.fail("I5", format!("{id}: {tokens} tokens, but its end says {}", end.tokens_out));
                }
            }
            Some(last) if is_last(last) => {}
            other => self.fail("I5", format!("{id} ends with {other:?}")),
        }
    }
}

/// Whether a job ended so long before the next one of its key that nobody remembers the key, as after
/// a jump of the wall clock.
fn is_forgotten(first: Option<&Stored>, next: &JobRow) -> bool {
    let kept_ms = orchestrator_core::Settings::default().idempotency_kept_ms;
    let ended_at = first.and_then(|first| first.row.ended_at);
    ended_at.is_some_and(|at| next.submitted_at.since(at) > kept_ms)
}

/// Whether a reader had tokens that a crash took from the log, of a job that was then stopped before it
/// had made them all again. The seam of the run that went on then comes too early and has the id of
/// one of those tokens; all else is alike.
fn is_ahead(seen: &[Logged], stored: &Stored) -> bool {
    let Some(carried) = stored.row.carried.as_ref().filter(|carried| carried.unsure > 0) else {
        return false;
    };
    let place = carried.tokens + carried.unsure;
    let is_token = |logged: &&Logged| matches!(logged, Logged::Token { .. });
    let token = |i: u32| Logged::Token { i, value: token_value(stored.row.job_id, 0, 0, i) };
    let may_stand_for = |index: usize, had: &Logged| {
        let made = stored.events[..index].iter().filter(is_token).count() as u32;
        let is_the_seam = matches!(&stored.events[index],
            Logged::Other(TaskEvent::Seam { i, .. }) if *i == carried.tokens);
        is_the_seam && index + 2 == seen.len() && made < place && *had == token(made)
    };
    stored.row.status != TaskStatus::Completed
        && stored.events.len() == seen.len()
        && stored
            .events
            .iter()
            .zip(seen)
            .enumerate()
            .all(|(index, (kept, had))| kept == had || may_stand_for(index, had))
}

/// Whether a job gave its key up, which one does that ends for want of readers.
pub fn is_freed(first: Option<&Stored>) -> bool {
    first.is_some_and(|first| first.row.idempotency.is_none())
}

impl World {
    /// What must hold once the faults have stopped and everything had time to end.
    pub fn check_at_end(&mut self) {
        let mut checks = std::mem::take(&mut self.checks);
        for (id, stored) in &self.store.jobs {
            if stored.row.status.is_terminal() {
                checks.whole_log(&stored.row, &stored.events);
            } else {
                let attempt = stored.row.attempt.as_ref();
                let why = self.daemon.as_ref().and_then(|daemon| daemon.brain.why(*id, self.time()));
                let why = why.map(|why| why.summary).unwrap_or_default();
                checks.fail("I6", format!("{id} is still {:?}: {attempt:?} {why}", stored.row.status));
            }
        }
        for (id, durability) in std::mem::take(&mut checks.acknowledged) {
            if durability == Durability::Durable && !self.store.jobs.contains_key(&id) {
                checks.fail("I1", format!("{id} was acknowledged and is not on disk"));
            }
        }
        self.check_clients(&mut checks);
        self.check_idle(&mut checks);
        self.check_late_clients(&mut checks);
        if self.counts.faults < FAULTS_AT_LEAST {
            checks.fail("plan", format!("only {} faults had an effect", self.counts.faults));
        }
        self.checks = checks;
        if self.daemon.as_ref().is_some_and(|daemon| daemon.is_settled()) {
            self.check_rows();
        }
    }

    fn check_clients(&self, checks: &mut Checks) {
        for (number, client) in self.clients.iter().enumerate() {
            let Some(job_id) = client.job.filter(|_| client.plan.reads) else { continue };
            if !client.done {
                checks.fail("I6", format!("client {number} waits for the end of {job_id}"));
            }
            let stored = self.store.jobs.get(&job_id);
            let differs = |stored: &Stored| stored.events != client.seen && !is_ahead(&client.seen, stored);
            if !client.orphaned && stored.is_some_and(differs) {
                let kept = stored.map(|stored| (stored.events.len(), &stored.row.carried));
                let seen = client.seen.len();
                checks.fail(
                    "I5",
                    format!("client {number} read other events than {job_id} kept: {seen}, {kept:?}"),
                );
            }
        }
    }

    /// I10: nothing is left behind in the brain or at the workers.
    fn check_idle(&self, checks: &mut Checks) {
        let Some(daemon) = &self.daemon else { return checks.fail("I6", "no orchestrator".to_owned()) };
        let health = daemon.brain.health(self.time());
        if (health.queue_depth, health.running) != (0, 0) {
            checks.fail("I10", format!("the brain is not idle: {health:?}"));
        }
        for worker in daemon.brain.workers(self.time()) {
            if worker.slots_busy > 0 {
                let id = &worker.facts.worker_id;
                checks.fail("I10", format!("{id} has {} busy slots and no job", worker.slots_busy));
            }
        }
        if !daemon.relays.is_empty() {
            checks.fail("I10", format!("{} streams are left open", daemon.relays.len()));
        }
    }

    /// I10: at every moment no more jobs wait than may, and no worker is believed to be overfull.
    pub fn check_bounds(&mut self) {
        let Some(daemon) = &self.daemon else { return };
        let now = self.time();
        let depth = daemon.brain.health(now).queue_depth;
        let slots: u64 = self.workers.iter().map(|worker| u64::from(worker.plan.slots)).sum();
        if let Some(capacity) = self.plan.settings.queue_capacity
            && depth > capacity + slots
        {
            self.checks.fail("I10", format!("{depth} jobs wait, {capacity} may"));
        }
        for worker in daemon.brain.workers(now) {
            if worker.slots_busy > worker.facts.slots {
                let text = format!("{} has {} busy slots", worker.facts.worker_id, worker.slots_busy);
                self.checks.fail("I10", text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    fn is_seam(logged: &Logged) -> bool {
        matches!(logged, Logged::Other(TaskEvent::Seam { .. }))
    }

    /// Jobs that were stopped after they had gone on elsewhere, of which every reader has every token.
    fn stopped_after_a_seam(world: &World) -> impl Iterator<Item = &Stored> {
        world.store.jobs.values().filter(|stored| {
            let is_sure = stored.row.carried.as_ref().is_some_and(|carried| carried.unsure == 0);
            let is_stopped = stored.row.status.is_terminal() && stored.row.status != TaskStatus::Completed;
            is_sure && is_stopped && stored.events.iter().any(is_seam)
        })
    }

    #[test]
    fn a_reader_whose_log_was_whole_misses_no_seam() {
        let mut looked_at = 0;
        for seed in 0..1_000 {
            if looked_at > 0 {
                break;
            }
            let mut world = World::of(Plan::of(seed), seed, None, false).expect("it is built");
            world.run();
            for stored in stopped_after_a_seam(&world) {
                looked_at += 1;
                let seen: Vec<Logged> =
                    stored.events.iter().filter(|event| !is_seam(event)).cloned().collect();
                assert!(!is_ahead(&seen, stored), "seed {seed}: {seen:?}");
            }
        }
        assert!(looked_at > 0, "no job was stopped after a seam");
    }
}
