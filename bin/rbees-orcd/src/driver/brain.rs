//! The brain with all that only its holder may touch: the database, who waits for which answer, what
//! jobs ask for, and the steps that wait for a commit.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use api_types::task::{Durability, RetryMode, TaskStatus};
use api_types::worker::WorkerHealth;
use api_types::{ErrorDetail, Incarnation, JobId, WorkerId};
use orchestrator_core::{
    Action, Answer, Event, Notice, Orchestrator, RequestId, Step, Submission, Time, Write,
};
use tokio::sync::oneshot;

use super::ahead::{Awaited, Subject};
use super::carry;
use super::erase::Erasure;
use super::handle::{Message, Question, Reply};
use super::journal::Journal;
use super::prepare;
use super::requests::{RequestBody, Requests};
use super::round::{Act, Round};
use crate::actions::Actions;
use crate::clock::Clock;
use crate::store::housekeeping::{PromptFile, StoredRequest};
use crate::store::{Change, Class, Store, StoreError};
use crate::subscribers::Reader;

/// Most steps that share one commit.
const MAX_BATCH: usize = 1_024;
/// How long the driver's thread sleeps when nothing is due.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Bytes of journal that are kept at most, besides its last chapter.
const JOURNAL_BYTES: u64 = 256 * 1024 * 1024;
/// Old jobs deleted in one go, so that nobody waits for it.
const PRUNE_BATCH: u32 = 200;
/// Rows of journal deleted in one go.
const PRUNE_JOURNAL_BATCH: u32 = 2_000;

/// What is kept, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// How long ended jobs are kept.
    pub retention: Duration,
    /// Whether their prompts are kept with them.
    pub prompts: bool,
    /// Bytes of journal after which it begins anew with a snapshot of the state.
    pub journal_snapshot_bytes: u64,
}

/// See the module.
pub(super) struct Brain {
    pub(super) orchestrator: Orchestrator,
    pub(super) store: Store,
    clock: Clock,
    pub(super) waiting: HashMap<RequestId, oneshot::Sender<Reply>>,
    pub(super) requests: Requests,
    pub(super) actions: Actions,
    keeping: Keeping,
    pub(super) round: Round,
    journal: Journal,
    /// Whether old jobs are to be deleted with the next commit.
    prune: bool,
    /// Ended jobs that are to be erased after the next commit.
    pub(super) erasures: Vec<Erasure>,
    /// Who waits for the journal to be on disk.
    flushes: Vec<oneshot::Sender<()>>,
    stop: bool,
    /// When the driver's thread looks by itself; `None` while it is awake or about to be.
    asleep_until: Option<Time>,
    /// While a commit waits for room on the disk: when it is tried again.
    pub(super) held_until: Option<Time>,
    /// While a commit waits: whom it and all that waits with it is about.
    pub(super) awaited: Awaited,
    /// Whom the answer to the event at hand is about.
    pub(super) asked: Subject,
    /// A failure outside a commit; the driver's thread ends over it.
    failed: Option<StoreError>,
}

impl Brain {
    /// A brain that was just recovered.
    pub fn new(
        orchestrator: Orchestrator,
        store: Store,
        clock: Clock,
        actions: Actions,
        keeping: Keeping,
    ) -> Self {
        let brain = Self {
            orchestrator,
            store,
            clock,
            waiting: HashMap::new(),
            requests: Requests::default(),
            actions,
            keeping,
            round: Round::default(),
            journal: Journal::new(keeping.journal_snapshot_bytes),
            prune: false,
            erasures: Vec::new(),
            flushes: Vec::new(),
            stop: false,
            asleep_until: None,
            held_until: None,
            awaited: Awaited::default(),
            asked: Subject::default(),
            failed: None,
        };
        brain.note_contexts();
        brain
    }

    /// Tells callers how long a prompt may be without a look at the registry.
    fn note_contexts(&self) {
        let smallest = self.orchestrator.least_context();
        self.actions.handle.set_smallest_context(smallest.map_or(u64::MAX, u64::from));
    }

    /// Handles one message, to the end if nothing has to be written first.
    pub fn take(&mut self, message: Message) {
        let taken = match message {
            Message::Event(event, waiting) => {
                self.waiting.extend(waiting);
                self.handle(*event)
            }
            Message::Submit(submission, request, file, waiting) => {
                self.waiting.extend(waiting);
                self.submit(*submission, request, file)
            }
            Message::Read(question) => {
                self.ask(question);
                Ok(())
            }
            Message::Probed(worker_id, incarnation, health) => self.probed(worker_id, incarnation, &health),
            // What is not on disk stays with its log, and is part of the next checkpoint.
            Message::Checkpoint if self.held_until.is_some() => Ok(()),
            Message::Checkpoint => {
                let changes = carry::checkpoints(&self.actions.subscribers);
                changes.into_iter().for_each(|change| self.round.write(change));
                Ok(())
            }
            Message::FlushJournal(reply) => {
                self.flushes.push(reply);
                Ok(())
            }
            Message::Erase(which, reply) => {
                self.erasures.push(Erasure { which, erased: 0, reply });
                Ok(())
            }
            Message::Prune => {
                self.prune = true;
                Ok(())
            }
            Message::Stop => {
                self.stop = true;
                Ok(())
            }
        };
        if let Err(error) = taken {
            self.failed.get_or_insert(error);
        }
        if self.round.is_empty() {
            // The brain answers in the step it was asked in; a caller left over would wait for ever.
            self.waiting.clear();
        }
    }

    /// Every event passes here with its time, in the order in which the brain decides.
    fn decide(&mut self, event: Event) -> Step {
        let now = self.clock.now();
        self.actions.metrics.events.inc();
        self.journal.event(&event, now);
        if self.held_until.is_some() {
            self.asked = Subject::of_event(&event);
        }
        self.orchestrator.handle_event(event, now)
    }

    /// Does what is due. Every timeout passes here with its time.
    pub fn tick(&mut self) -> Result<(), StoreError> {
        self.asleep_until = None;
        let now = self.clock.now();
        if self.orchestrator.poll_timeout().is_some_and(|due| due <= now) {
            self.journal.timeout(now);
            let step = self.orchestrator.handle_timeout(now);
            self.take_step(step, None)?;
        }
        Ok(())
    }

    pub(super) fn handle(&mut self, event: Event) -> Result<(), StoreError> {
        let step = self.decide(event);
        self.take_step(step, None)
    }

    fn submit(
        &mut self,
        submission: Submission,
        request: RequestBody,
        file: Option<PromptFile>,
    ) -> Result<(), StoreError> {
        let (job_id, durability) = (submission.job_id, submission.durability);
        let goes_on = submission.retry == RetryMode::Continue;
        let step = self.decide(Event::Submit(submission));
        let accepted = step.actions.iter().any(|action| {
            matches!(action, Action::Answer { answer: Answer::Accepted { job_id: id, replayed: false, .. }, .. }
                if *id == job_id)
        });
        if !accepted {
            return self.take_step(step, None);
        }
        let stored = file.map_or_else(|| StoredRequest::Row(request.json()), StoredRequest::File);
        self.requests.keep(job_id, request, durability);
        self.take_step(step, Some(stored))?;
        if goes_on {
            self.actions.subscribers.carry(job_id, durability == Durability::Durable, 0);
        }
        Ok(())
    }

    /// A worker that answers a probe lives; what it runs, its streams tell.
    fn probed(
        &mut self,
        worker_id: WorkerId,
        incarnation: Incarnation,
        health: &WorkerHealth,
    ) -> Result<(), StoreError> {
        if health.incarnation != Some(incarnation) {
            return Ok(());
        }
        self.handle(Event::WorkerHeartbeat {
            request: RequestId(0),
            runs: self.actions.runs_of(&worker_id),
            worker_id,
            incarnation,
            instance: health.facts.instance,
            status: health.status,
            free_memory_bytes: health.free_memory_bytes,
            prefixes: None,
        })
    }

    /// Acts on a step, at once or after the commit that it needs or that is pending.
    pub fn take_step(&mut self, step: Step, request: Option<StoredRequest>) -> Result<(), StoreError> {
        let (mut changes, mut actions) = (Vec::new(), Vec::new());
        let asked = std::mem::take(&mut self.asked);
        self.gather(step, request, &mut changes, &mut actions);
        self.asked = asked;
        if changes.is_empty() && self.round.is_empty() {
            return actions.into_iter().try_for_each(|action| self.perform(action));
        }
        let actions = self.act_ahead(&changes, actions)?;
        changes.into_iter().for_each(|change| self.round.write(change));
        self.round.acts.extend(actions.into_iter().map(Act::Action));
        Ok(())
    }

    /// Adds what a step asks for, and what follows once the brain knows what lost runs have left in
    /// their logs. Both are one commit: no worker is told to stop a run or to forget its log before the
    /// end that follows is on disk.
    fn gather(
        &mut self,
        step: Step,
        request: Option<StoredRequest>,
        changes: &mut Vec<Change>,
        actions: &mut Vec<Action>,
    ) {
        self.journal.decided(&step);
        let Step { writes, actions: more, .. } = step;
        if writes.iter().any(|write| matches!(write, Write::PutWorker(_) | Write::DeleteWorker(_))) {
            self.note_contexts();
        }
        changes.extend(prepare::changes(&self.actions.subscribers, writes, &more, request));
        let salvaged = carry::salvaged(&self.actions.subscribers, &more);
        actions.extend(more);
        for event in salvaged {
            let step = self.decide(event);
            self.gather(step, None, changes, actions);
        }
    }

    /// Shows the state, as of the last commit.
    fn ask(&mut self, question: Question) {
        // With a full disk, how things stand is what people need to see; it is not written down yet.
        if self.round.is_empty() || self.held_until.is_some() {
            return question(&self.orchestrator, self.clock.now());
        }
        self.round.acts.push(Act::Question(question));
    }

    /// Whether no more steps fit into the commit that is pending.
    pub fn is_full(&self) -> bool {
        let many = !self.round.is_empty() && self.round.len() >= MAX_BATCH;
        self.failed.is_some() || (many && self.held_until.is_none())
    }

    /// Whether the driver's thread sleeps and has to be woken. Says so once.
    pub fn wants_committer(&mut self) -> bool {
        let Some(asleep_until) = self.asleep_until else { return false };
        let due = self.orchestrator.poll_timeout().is_some_and(|due| due < asleep_until);
        let wanted = due || self.has_round() || self.stop || self.failed.is_some();
        if wanted {
            self.asleep_until = None;
        }
        wanted
    }

    /// Whether something waits for the driver's thread.
    pub fn has_round(&self) -> bool {
        let now = self.clock.now();
        if let Some(until) = self.held_until {
            return until <= now;
        }
        let asked = self.prune || !self.erasures.is_empty() || !self.flushes.is_empty();
        !self.round.is_empty() || asked || self.journal.is_overdue(now)
    }

    /// Whether it was told to end.
    pub const fn stops(&self) -> bool {
        self.stop
    }

    /// Whether something failed since the last look.
    pub fn check(&mut self) -> Result<(), StoreError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// How long the driver's thread may sleep.
    pub fn sleep(&mut self) -> Duration {
        let now = self.clock.now();
        let due = [self.orchestrator.poll_timeout(), self.held_until].into_iter().flatten().min();
        let sleep = due.map_or(LONGEST_SLEEP, |due| Duration::from_millis(due.since(now)).min(LONGEST_SLEEP));
        self.asleep_until = Some(now + u64::try_from(sleep.as_millis()).unwrap_or(u64::MAX));
        sleep
    }

    /// One commit for all that gathered, then what was waiting for it. Without room on the disk it
    /// is all kept for another try.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        let (mut changes, acts) = std::mem::take(&mut self.round).into_parts();
        let now = self.clock.now();
        changes.extend(self.journal.segment(!changes.is_empty() || !self.flushes.is_empty(), now));
        let Some(acts) = self.write_or_hold(changes, acts, now)? else { return Ok(()) };
        for act in acts {
            match act {
                Act::Action(action) => self.perform(action)?,
                Act::Question(question) => question(&self.orchestrator, now),
            }
        }
        self.waiting.clear();
        // Who waited for this commit does not wait for a snapshot of the whole state.
        if let Some(begin) = self.journal.begin_if_due(&self.orchestrator, now) {
            self.write_or_hold(vec![begin], Vec::new(), now)?;
        }
        for flushed in self.flushes.drain(..) {
            let _ = flushed.send(());
        }
        if std::mem::take(&mut self.prune) {
            self.prune(now)?;
        }
        self.erase()
    }

    pub(super) fn write(&mut self, changes: &[Change], now: Time) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        self.store.commit(changes, now)?;
        carry::saved(&self.actions.subscribers, changes);
        self.actions.metrics.commits.inc();
        self.actions.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// The end: what is on disk is all there is, with what was learnt where there is room for it.
    pub fn close(mut self) -> Result<(), StoreError> {
        if let Some(learnt) = self.orchestrator.unsaved_estimates() {
            let changes = prepare::changes(&self.actions.subscribers, vec![learnt], &[], None);
            if let Err(error) = self.write(&changes, self.clock.now()) {
                self.note_refusal(error)?;
            }
        }
        self.store.close()
    }

    pub(super) fn perform(&mut self, action: Action) -> Result<(), StoreError> {
        match action {
            Action::Answer { request, answer } => {
                if let Some(waiting) = self.waiting.remove(&request) {
                    let reader = self.first_reader(&answer);
                    // A reader that nobody takes leaves, and that counts.
                    let _ = waiting.send(Reply { answer, reader });
                }
            }
            Action::OpenStream(open) => {
                self.actions.metrics.decisions.handed_out(&open);
                let request = self.request(open.run.job_id)?;
                let row = self.orchestrator.job_row(open.run.job_id);
                self.actions.open_stream(open, request, row);
            }
            Action::ResumeStream { run, uri, secret, delay_ms, passed } => {
                self.actions.resume_stream(run, &uri, secret.as_deref(), delay_ms, passed);
            }
            Action::EndJob { job_id, last_event, .. } => {
                self.actions.metrics.ended_with(&last_event);
                let keep = self.requests.forget(job_id) == Some(Durability::Memory);
                self.actions.end_job(job_id, keep);
            }
            Action::Publish { job_id, .. } => self.actions.publish(job_id),
            Action::PublishLive { job_id, event } => self.actions.publish_live(job_id, &event),
            // Its part was done with the commit.
            Action::Salvage(_) => {}
            Action::PassStream(run) => self.actions.pass_stream(&run),
            Action::DropStream(run) => self.actions.drop_stream(&run),
            Action::StopRun { run, uri, secret } => self.actions.stop_run(run, &uri, secret.as_deref()),
            Action::AckRun { run, uri, secret } => self.actions.ack_run(run, &uri, secret.as_deref()),
            Action::ProbeWorker { worker_id, incarnation, uri, secret } => {
                self.actions.probe_worker(worker_id, incarnation, &uri, secret.as_deref());
            }
            Action::AskPool { pool, ask } => self.actions.ask_pool(pool, ask),
            Action::SpawnWorker { pool, worker_id, model } => {
                self.actions.spawn_worker(pool, worker_id, model);
            }
            Action::StopWorker { pool, worker_id } => self.actions.stop_worker(pool, worker_id),
            Action::Notify(notice) => self.notify(notice),
        }
        Ok(())
    }

    /// The reader that the brain counted when it took the job in.
    fn first_reader(&self, answer: &Answer) -> Option<Reader> {
        let Answer::Accepted { job_id, replayed: false, .. } = answer else { return None };
        let is_read = self.orchestrator.job_row(*job_id).is_some_and(|row| row.had_reader);
        let log = self.actions.subscribers.log(*job_id).filter(|_| is_read)?;
        Some(self.actions.subscribers.attach_counted(log))
    }

    fn request(&mut self, job_id: JobId) -> Result<Option<RequestBody>, StoreError> {
        if let Some(request) = self.requests.get(job_id) {
            return Ok(Some(request));
        }
        match self.store.request(job_id) {
            Ok(stored) => Ok(stored.map(RequestBody::from_stored)),
            // One job without its request is no reason to end the others.
            Err(error) if matches!(error, StoreError::File { .. }) && error.class() == Class::Unusable => {
                tracing::error!(code = "PROMPT_MISSING", %job_id, %error, "the job cannot run");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn notify(&self, notice: Notice) {
        self.actions.metrics.decisions.noticed(&notice);
        match &notice {
            Notice::PolicyFailed { name, failure } => {
                self.actions.metrics.policy_failed(failure.hook);
                tracing::warn!(code = "POLICY_FAILED", policy = name, "{failure}");
            }
            Notice::PolicyDemoted(demotion) => {
                let failure = demotion.last_failure.as_ref().map(ToString::to_string);
                tracing::warn!(
                    code = "POLICY_DEMOTED",
                    policy = demotion.name,
                    in_place = demotion.in_place,
                    failure,
                    "the policy failed too often; another decides now"
                );
            }
            Notice::ProtocolBroken { worker_id, errors, quarantine_ms: Some(ms) } => {
                tracing::warn!(
                    code = "WORKER_QUARANTINED", %worker_id, errors, quarantine_ms = ms,
                    "a worker broke the protocol too often and gets no new job for now"
                );
            }
            Notice::ProtocolBroken { worker_id, errors, quarantine_ms: None } => {
                tracing::warn!(
                    code = "WORKER_PROTOCOL_ERROR", %worker_id, errors, "a worker sent what is not the protocol"
                );
            }
            Notice::StaleDropped { kind } => self.actions.metrics.stale(kind),
            Notice::Job { job_id, status, .. } if status.is_terminal() => {
                self.actions.metrics.ended(*status);
                self.log_end(*job_id, *status);
            }
            Notice::Worker { worker_id, state, .. } => {
                tracing::debug!(code = "WORKER_STATE", %worker_id, ?state, "a worker changed");
            }
            Notice::Spawn { pool_id, worker_id, model, phase, error } => {
                let error = error.as_ref().map(ToString::to_string);
                tracing::info!(
                    code = "WORKER_SPAWN", %pool_id, %worker_id, model, ?phase, error, "a worker on demand"
                );
            }
            Notice::Unload { worker_id, model, cause, for_model } => {
                tracing::info!(
                    code = "WORKER_UNLOADED", %worker_id, model, ?cause, for_model, "a worker is taken away"
                );
            }
            Notice::Job { .. } | Notice::Queue { .. } => {}
        }
        self.actions.handle.notify(notice);
    }

    /// One line per job, with what an operator asks first; never with any of its text.
    fn log_end(&self, job_id: JobId, status: TaskStatus) {
        let Some(row) = self.orchestrator.job_row(job_id) else { return };
        self.actions.metrics.estimated(row);
        let attempt = row.attempt.as_ref();
        tracing::info!(
            code = "JOB_ENDED",
            %job_id,
            correlation_id = %row.correlation_id,
            status = status.as_str(),
            model = row.model,
            worker_id = attempt.map(|attempt| attempt.worker_id.as_str()),
            attempt = attempt.map(|attempt| attempt.attempt.0),
            tokens_in = row.end.as_ref().map(|end| end.tokens_in),
            tokens_out = row.end.as_ref().map(|end| end.tokens_out),
            elapsed_ms = row.ended_at.map(|at| at.since(row.submitted_at)),
            eta_p50_ms = row.eta.map(|forecast| forecast.eta.p50),
            eta_p90_ms = row.eta.map(|forecast| forecast.eta.p90),
            error = row.error.as_ref().map(|error: &ErrorDetail| error.code.as_str()),
            "a job ended"
        );
    }

    fn prune(&mut self, now: Time) -> Result<(), StoreError> {
        let kept_ms = u64::try_from(self.keeping.retention.as_millis()).unwrap_or(u64::MAX);
        let before = Time(now.0.saturating_sub(kept_ms));
        match self.store.prune(before, PRUNE_BATCH) {
            // There may be more.
            Ok(deleted) if deleted >= PRUNE_BATCH as usize => {
                self.actions.handle.prune();
                Ok(())
            }
            Ok(_) => self.prune_journal(before),
            // Deleting needs room too; the next call comes soon enough.
            Err(error) => self.note_refusal(error).map(drop),
        }
    }

    fn prune_journal(&mut self, before: Time) -> Result<(), StoreError> {
        match self.store.prune_journal(before, JOURNAL_BYTES, PRUNE_JOURNAL_BATCH) {
            Ok(deleted) if deleted >= PRUNE_JOURNAL_BATCH as usize => {
                self.actions.handle.prune();
                Ok(())
            }
            // The log still holds prompts that were erased from the tables.
            Ok(_) => {
                self.store.clear_log();
                Ok(())
            }
            Err(error) => self.note_refusal(error).map(drop),
        }
    }
}
