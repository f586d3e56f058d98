//! The one thread that owns the brain: take what has arrived or the next alarm, decide, commit,
//! act. Nothing in it is locked, and nobody hears of a decision before it is on disk.

pub mod handle;
mod journal;
mod prepare;
pub mod requests;

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use api_types::JobId;
use api_types::task::{Durability, TaskStatus};
use api_types::worker::{ExecuteRequest, WorkerHealth};
use api_types::{Incarnation, WorkerId};
use orchestrator_core::settings::Settings;
use orchestrator_core::{Action, Answer, Event, Notice, Orchestrator, RequestId, Step, Submission, Time};
use tokio::sync::oneshot;

pub use self::handle::{Accepted, CheckedTask, Handle};
use self::handle::{Message, Question};
use self::journal::Journal;
use self::requests::Requests;
use crate::actions::Actions;
use crate::clock::Clock;
use crate::hashes::HashKey;
use crate::store::{Change, Recovered, Store, StoreError};

/// Most messages that share one commit.
const MAX_BATCH: usize = 512;
/// How long the driver sleeps when nothing is due.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Bytes of journal that are kept at most, besides its last chapter.
const JOURNAL_BYTES: u64 = 256 * 1024 * 1024;
/// Old jobs deleted in one go, so that nobody waits for it.
const PRUNE_BATCH: u32 = 200;

/// The mailbox of a driver that has not started.
pub struct Mailbox(mpsc::Receiver<Message>);

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Mailbox").finish_non_exhaustive()
    }
}

/// A way to speak to a driver that is yet to be started. Prompts are hashed under `hash_key`.
pub fn mailbox(hash_key: HashKey) -> (Handle, Mailbox) {
    let (handle, mailbox) = Handle::new(hash_key);
    (handle, Mailbox(mailbox))
}

/// See the module.
#[derive(Debug)]
pub struct Driver {
    brain: Orchestrator,
    store: Store,
    clock: Clock,
    mailbox: mpsc::Receiver<Message>,
    waiting: HashMap<RequestId, oneshot::Sender<Answer>>,
    requests: Requests,
    actions: Actions,
    retention: Duration,
    journal: Journal,
}

/// What one round gathered before its commit.
#[derive(Default)]
struct Round {
    changes: Vec<Change>,
    actions: Vec<Action>,
    questions: Vec<Question>,
    prune: bool,
    stop: bool,
}

impl Driver {
    /// Recovers the brain from the database and performs what recovery asks for.
    ///
    /// # Errors
    /// When the database fails.
    pub fn recover(
        settings: Settings,
        retention: Duration,
        mut store: Store,
        mailbox: Mailbox,
        actions: Actions,
    ) -> Result<Self, StoreError> {
        let Recovered { rows, published, last_time } = store.load(settings.idempotency_kept_ms)?;
        let clock = Clock::not_before(last_time);
        let now = clock.now();
        let running: Vec<JobId> =
            rows.jobs.iter().filter(|job| job.status == TaskStatus::Running).map(|job| job.job_id).collect();
        for (job_id, frames) in &published {
            actions.subscribers.create(*job_id, frames, !running.contains(job_id));
        }
        let open = published.len();
        let (brain, step) = Orchestrator::recover(settings, rows, now);
        store.commit(&[], now)?;
        let mut driver = Self {
            brain,
            store,
            clock,
            mailbox: mailbox.0,
            waiting: HashMap::new(),
            requests: Requests::default(),
            actions,
            retention,
            journal: Journal::default(),
        };
        let mut round = Round::default();
        driver.take_step(step, None, &mut round);
        driver.finish(round, now)?;
        tracing::info!(
            code = "RECOVERED",
            open_jobs = open,
            running = running.len(),
            "recovered from the database"
        );
        Ok(driver)
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// When a commit fails. What was not committed was not done either; the process has to end.
    pub fn run(mut self) -> Result<(), StoreError> {
        loop {
            let messages = self.wait();
            let now = self.clock.now();
            let mut round = Round::default();
            for message in messages {
                self.take(message, now, &mut round);
            }
            if self.brain.poll_timeout().is_some_and(|due| due <= now) {
                self.journal.timeout(now);
                let step = self.brain.handle_timeout(now);
                self.take_step(step, None, &mut round);
            }
            let stop = round.stop;
            self.finish(round, now)?;
            if stop {
                return self.store.checkpoint();
            }
        }
    }

    /// What has arrived; waits for the first message or the next alarm.
    fn wait(&self) -> Vec<Message> {
        let mut messages = Vec::new();
        match self.mailbox.recv_timeout(self.until_alarm()) {
            Ok(message) => messages.push(message),
            Err(mpsc::RecvTimeoutError::Timeout) => return messages,
            // The driver holds a handle itself; without any, nobody could ever speak to it again.
            Err(mpsc::RecvTimeoutError::Disconnected) => return vec![Message::Stop],
        }
        messages.extend(self.mailbox.try_iter().take(MAX_BATCH - 1));
        messages
    }

    fn until_alarm(&self) -> Duration {
        let now = self.clock.now();
        self.brain
            .poll_timeout()
            .map_or(LONGEST_SLEEP, |due| Duration::from_millis(due.since(now)).min(LONGEST_SLEEP))
    }

    fn take(&mut self, message: Message, now: Time, round: &mut Round) {
        match message {
            Message::Event(event, waiting) => {
                self.waiting.extend(waiting);
                self.handle(*event, now, round);
            }
            Message::Submit(submission, request, waiting) => {
                self.waiting.extend(waiting);
                self.submit(*submission, *request, now, round);
            }
            Message::Read(question) => round.questions.push(question),
            Message::Probed(worker_id, incarnation, health) => {
                self.probed(worker_id, incarnation, &health, now, round);
            }
            Message::Prune => round.prune = true,
            Message::Stop => round.stop = true,
        }
    }

    fn handle(&mut self, event: Event, now: Time, round: &mut Round) {
        self.actions.metrics.events.inc();
        self.journal.event(&event, now);
        let step = self.brain.handle_event(event, now);
        self.take_step(step, None, round);
    }

    fn submit(&mut self, submission: Submission, request: ExecuteRequest, now: Time, round: &mut Round) {
        self.actions.metrics.events.inc();
        let (job_id, durability) = (submission.job_id, submission.durability);
        let event = Event::Submit(submission);
        self.journal.event(&event, now);
        let step = self.brain.handle_event(event, now);
        let accepted = step.actions.iter().any(|action| {
            matches!(action, Action::Answer { answer: Answer::Accepted { job_id: id, replayed: false, .. }, .. }
                if *id == job_id)
        });
        let request = accepted.then(|| self.requests.keep(job_id, request, durability));
        self.take_step(step, request, round);
    }

    /// A worker that answers a probe lives; what it runs, its streams tell.
    fn probed(
        &mut self,
        worker_id: WorkerId,
        incarnation: Incarnation,
        health: &WorkerHealth,
        now: Time,
        round: &mut Round,
    ) {
        if health.incarnation != Some(incarnation) {
            return;
        }
        let event = Event::WorkerHeartbeat {
            request: RequestId(0),
            runs: self.actions.runs_of(&worker_id),
            worker_id,
            incarnation,
            instance: health.facts.instance,
            status: health.status,
            free_memory_bytes: 0,
        };
        self.handle(event, now, round);
    }

    fn take_step(&mut self, step: Step, request: Option<std::sync::Arc<ExecuteRequest>>, round: &mut Round) {
        self.journal.decided(&step);
        let Step { writes, actions, .. } = step;
        round.changes.extend(prepare::changes(
            &self.actions.subscribers,
            writes,
            &actions,
            request.as_deref(),
        ));
        round.actions.extend(actions);
    }

    /// One commit for the whole round, then what was waiting for it.
    fn finish(&mut self, mut round: Round, now: Time) -> Result<(), StoreError> {
        round.changes.extend(self.journal.changes(&self.brain, !round.changes.is_empty(), now));
        if !round.changes.is_empty() {
            let started = Instant::now();
            self.store.commit(&round.changes, now)?;
            self.actions.metrics.commits.inc();
            self.actions.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        }
        for action in round.actions {
            self.perform(action)?;
        }
        for question in round.questions {
            question(&self.brain, now);
        }
        // The brain answers in the step it was asked in; a caller left over would wait for ever.
        self.waiting.clear();
        if round.prune {
            self.prune(now)?;
        }
        Ok(())
    }

    fn perform(&mut self, action: Action) -> Result<(), StoreError> {
        match action {
            Action::Answer { request, answer } => {
                if let Some(waiting) = self.waiting.remove(&request) {
                    let _ = waiting.send(answer);
                }
            }
            Action::OpenStream(open) => {
                let request = self.request(open.run.job_id)?;
                let standing = self.brain.job(open.run.job_id);
                self.actions.open_stream(open, request, standing.as_ref());
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
            Action::PassStream(run) => self.actions.pass_stream(&run),
            Action::DropStream(run) => self.actions.drop_stream(&run),
            Action::StopRun { run, uri, secret } => self.actions.stop_run(run, &uri, secret.as_deref()),
            Action::AckRun { run, uri, secret } => self.actions.ack_run(run, &uri, secret.as_deref()),
            Action::ProbeWorker { worker_id, incarnation, uri, secret } => {
                self.actions.probe_worker(worker_id, incarnation, &uri, secret.as_deref());
            }
            Action::Notify(notice) => self.notify(notice),
        }
        Ok(())
    }

    fn request(&mut self, job_id: JobId) -> Result<Option<ExecuteRequest>, StoreError> {
        if let Some(request) = self.requests.get(job_id) {
            return Ok(Some(request));
        }
        self.store.request(job_id)
    }

    fn notify(&self, notice: Notice) {
        match &notice {
            Notice::PolicyFailed { name, failure } => {
                self.actions.metrics.policy_failed(failure.hook);
                tracing::warn!(code = "POLICY_FAILED", policy = name, "{failure}");
            }
            Notice::StaleDropped { kind } => self.actions.metrics.stale(kind),
            Notice::Job { job_id, status, .. } if status.is_terminal() => {
                self.actions.metrics.ended(*status);
                self.log_end(*job_id);
            }
            Notice::Worker { worker_id, state, .. } => {
                tracing::debug!(code = "WORKER_STATE", %worker_id, ?state, "a worker changed");
            }
            Notice::Job { .. } | Notice::Queue { .. } => {}
        }
        self.actions.handle.notify(notice);
    }

    /// One line per job, with what an operator asks first; never with any of its text.
    fn log_end(&self, job_id: JobId) {
        let Some(row) = self.brain.job(job_id).map(|standing| standing.row) else { return };
        self.actions.metrics.estimated(&row);
        let attempt = row.attempt.as_ref();
        tracing::info!(
            code = "JOB_ENDED",
            %job_id,
            correlation_id = %row.correlation_id,
            status = row.status.as_str(),
            model = row.model,
            worker_id = attempt.map(|attempt| attempt.worker_id.as_str()),
            attempt = attempt.map(|attempt| attempt.attempt.0),
            tokens_in = row.end.as_ref().map(|end| end.tokens_in),
            tokens_out = row.end.as_ref().map(|end| end.tokens_out),
            elapsed_ms = row.ended_at.map(|at| at.since(row.submitted_at)),
            eta_p50_ms = row.eta.map(|forecast| forecast.eta.p50),
            eta_p90_ms = row.eta.map(|forecast| forecast.eta.p90),
            error = row.error.as_ref().map(|error| error.code.as_str()),
            "a job ended"
        );
    }

    fn prune(&mut self, now: Time) -> Result<(), StoreError> {
        let kept_ms = u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX);
        let before = Time(now.0.saturating_sub(kept_ms));
        let deleted = self.store.prune(before, PRUNE_BATCH)?;
        self.store.prune_journal(before, JOURNAL_BYTES)?;
        if deleted >= PRUNE_BATCH as usize {
            self.actions.handle.prune();
            return Ok(());
        }
        // The log still holds prompts that were erased from the tables.
        self.store.checkpoint()
    }
}
