//! A client in small: submits, reads with `Last-Event-ID`, leaves and returns, cancels.

use api_types::task::RetryMode;
use api_types::{ErrorCode, JobId, TaskEvent};
use orchestrator_core::{Answer, Event, Idempotency, Submission};
use uuid::Uuid;

use crate::bugs::Bug;
use crate::checks::is_freed;
use crate::daemon::{Caller, Logged};
use crate::plan::{ClientPlan, Fate};
use crate::world::{Happening, World};

/// A client gives up after so many tries to hand its task in.
pub const MOST_TRIES: u32 = 60;

/// A client with one job.
#[derive(Debug)]
pub struct Client {
    /// What it does.
    pub plan: ClientPlan,
    /// The job it was told about.
    pub job: Option<JobId>,
    /// What it has read, by id.
    pub seen: Vec<Logged>,
    /// Whether it has read the last event.
    pub done: bool,
    /// Whether the events it had read are gone: orchestrator and worker were both lost.
    pub orphaned: bool,
    /// How often it has handed its task in.
    pub tries: u32,
    connections: u32,
    is_reading: bool,
    is_away: bool,
    /// Whether it was told that its task will never be taken.
    pub is_refused: bool,
    skip: usize,
}

impl Client {
    /// A client that has done nothing yet.
    pub const fn new(plan: ClientPlan) -> Self {
        Self {
            plan,
            job: None,
            seen: Vec::new(),
            done: false,
            orphaned: false,
            tries: 0,
            connections: 0,
            is_reading: false,
            is_away: false,
            is_refused: false,
            skip: 0,
        }
    }
}

/// Whether nothing follows this event.
pub const fn is_last(logged: &Logged) -> bool {
    matches!(logged, Logged::Other(event) if event.is_last())
}

/// The client whose job this is.
pub fn client_of(job_id: JobId) -> usize {
    (job_id.uuid().as_u128() >> 64) as usize
}

impl World {
    /// What the job of this id was planned to be.
    pub fn job_plan(&self, job_id: JobId) -> (u32, Fate) {
        let plan = &self.clients[client_of(job_id)].plan;
        (plan.tokens, plan.fate)
    }

    /// What the job of this id asked for when its worker is lost.
    pub fn job_retry(&self, job_id: JobId) -> RetryMode {
        self.clients[client_of(job_id)].plan.retry
    }

    /// Sends the task, again and again while it may.
    pub fn submit(&mut self, client: usize) {
        let me = &mut self.clients[client];
        if me.job.is_some() || me.is_refused || me.tries > MOST_TRIES {
            return;
        }
        me.tries += 1;
        if self.daemon.is_none() {
            return self.after(400, Happening::Submit(client));
        }
        if self.clients[client].plan.keyed {
            self.after(4_000, Happening::Submit(client));
        }
        let copies = 1 + u64::from(self.clients[client].plan.doubled && self.clients[client].plan.keyed);
        for _ in 0..copies {
            self.send_submission(client);
        }
    }

    fn send_submission(&mut self, client: usize) {
        if self.loses_message() {
            return;
        }
        let request = self.draw_request();
        let plan = &self.clients[client].plan;
        let low = u128::from(request.0);
        let submission = Submission {
            request,
            job_id: JobId::from_uuid(Uuid::from_u128((client as u128) << 64 | low)),
            model: Some(plan.model.to_owned()),
            chat: false,
            tenant: plan.tenant.clone(),
            session_id: plan.session_id.clone(),
            prompt_bytes: 10,
            prompt_tokens: None,
            prefix: plan.prefix.clone(),
            max_tokens: Some(16),
            priority: plan.priority,
            deadline_ms: plan.deadline_ms,
            on_disconnect: plan.on_disconnect,
            retry: if self.bug == Some(Bug::RequestAltered) { RetryMode::default() } else { plan.retry },
            placement: plan.placement.clone(),
            durability: plan.durability,
            is_read: false,
            idempotency: plan
                .keyed
                .then(|| Idempotency { key: format!("key-{client}"), digest: format!("digest-{client}") }),
            correlation_id: self.correlation_id.clone(),
        };
        let delay = self.latency();
        self.send_to_daemon(delay, Event::Submit(submission), request, Caller::Submitter(client));
    }

    /// The answer to a submission.
    pub fn submit_reply(&mut self, client: usize, answer: Answer) {
        let plan = self.clients[client].plan.clone();
        match answer {
            Answer::Accepted { job_id, .. } => {
                self.checks.acknowledged(client, job_id, &plan, &self.store.jobs);
                if let Some(stored) = self.store.jobs.get(&job_id) {
                    self.checks.as_asked(&stored.row, &plan);
                    self.checks.wanted(&stored.row, &plan);
                }
                let first = self.clients[client].job;
                let freed = |job_id| is_freed(self.store.jobs.get(&job_id));
                let is_straggler =
                    first.is_some_and(|first| freed(first) || (first != job_id && freed(job_id)));
                if is_straggler {
                    // Of a copy of its task; it has had its answer.
                } else if self.clients[client].job.replace(job_id).is_none() {
                    self.after_answer(client, &plan);
                }
            }
            Answer::Refused(error) => {
                self.counts.refused += 1;
                let again = matches!(
                    error.code,
                    ErrorCode::QueueFull
                        | ErrorCode::QuotaExceeded
                        | ErrorCode::ModelNotFound
                        | ErrorCode::NoCapacity
                        | ErrorCode::StorageFull
                );
                self.clients[client].is_refused = !again;
                if error.code == ErrorCode::IdempotencyConflict {
                    self.checks.fail("I2", format!("client {client} is told of a conflict with itself"));
                }
                if again && !plan.keyed {
                    self.after(2_000, Happening::Submit(client));
                }
            }
            _ => self.checks.fail("I13", format!("client {client} got {answer:?} for a submission")),
        }
    }

    fn after_answer(&mut self, client: usize, plan: &ClientPlan) {
        if plan.reads {
            self.after(2, Happening::Connect(client));
        }
        if let Some(delay) = plan.cancels_after {
            self.after(delay, Happening::Cancel(client));
        }
        if let Some((after, _)) = plan.leaves {
            self.after(after, Happening::Leave(client));
        }
    }

    /// Opens the job's stream from where it stopped reading.
    pub fn connect(&mut self, client: usize) {
        let me = &self.clients[client];
        let Some(job_id) = me.job.filter(|_| !me.done && !me.is_reading && !me.is_away) else { return };
        let Some(daemon) = &mut self.daemon else { return self.after(500, Happening::Connect(client)) };
        let readers = daemon.readers.entry(job_id).or_default();
        readers.insert(client);
        let readers = readers.len() as u32;
        let me = &mut self.clients[client];
        me.is_reading = true;
        me.connections += 1;
        let off_by_one = self.bug == Some(Bug::ResumeOffByOne) && !me.seen.is_empty();
        me.skip = usize::from(off_by_one);
        self.deliver(Event::ReadersChanged { job_id, readers });
        self.after(1, Happening::Read(client));
    }

    /// Closes the stream; comes back later.
    pub fn leave(&mut self, client: usize) {
        let Some((_, away)) = self.clients[client].plan.leaves else { return };
        if self.stop_reading(client) {
            self.clients[client].is_away = true;
            if self.clients[client].plan.abandons {
                self.abandon(client);
            }
            self.after(away, Happening::Return(client));
        }
    }

    /// Its connection is closed, and that is the end of its job.
    fn abandon(&mut self, client: usize) {
        let Some(job_id) = self.clients[client].job else { return };
        let event = match self.bug {
            Some(Bug::KeyOfAbandonedKept) => Event::Cancel { request: None, job_id },
            _ => Event::Abandon { job_id },
        };
        if self.doubles_message() {
            self.deliver(event.clone());
        }
        self.deliver(event);
    }

    /// The client is back.
    pub fn come_back(&mut self, client: usize) {
        let me = &mut self.clients[client];
        me.is_away = false;
        if std::mem::take(&mut me.plan.abandons) {
            (me.plan.leaves, me.job, me.tries) = (None, None, 0);
            me.seen.clear();
            return self.submit(client);
        }
        self.connect(client);
    }

    fn stop_reading(&mut self, client: usize) -> bool {
        let me = &mut self.clients[client];
        let was_reading = std::mem::replace(&mut me.is_reading, false);
        let (Some(job_id), true) = (me.job, was_reading) else { return false };
        if let Some(daemon) = &mut self.daemon {
            let readers = daemon.readers.entry(job_id).or_default();
            readers.remove(&client);
            let readers = readers.len() as u32;
            self.deliver(Event::ReadersChanged { job_id, readers });
        }
        true
    }

    /// All streams to clients broke with the orchestrator's process.
    pub fn drop_readers(&mut self) {
        for client in 0..self.clients.len() {
            if std::mem::replace(&mut self.clients[client].is_reading, false) {
                let delay = self.rng.between(50, 2_000);
                self.after(delay, Happening::Connect(client));
            }
        }
    }

    /// Something new may be in the job's log.
    pub fn wake_readers(&mut self, job_id: JobId) {
        let readers = self.daemon.as_ref().and_then(|daemon| daemon.readers.get(&job_id)).cloned();
        for client in readers.into_iter().flatten() {
            let delay = self.latency();
            self.after(delay, Happening::Read(client));
        }
    }

    /// Takes what is in the log beyond what it has read.
    pub fn read(&mut self, client: usize) {
        let me = &self.clients[client];
        let (Some(job_id), true, false) = (me.job, me.is_reading, me.done) else { return };
        let Some(log) = self.log_of(job_id) else { return self.no_log(client, job_id) };
        let from = self.clients[client].seen.len() + self.clients[client].skip;
        if log.len() <= from && log.last().is_some_and(is_last) {
            return self.read_past_end(client, log);
        }
        let fresh: Vec<Logged> = log.get(from..).unwrap_or_default().to_vec();
        for (index, logged) in fresh.into_iter().enumerate() {
            self.take(client, from + index, logged);
        }
    }

    fn take(&mut self, client: usize, id: usize, logged: Logged) {
        let me = &mut self.clients[client];
        if id != me.seen.len() {
            let text = format!("client {client}: event {id} follows {} events", me.seen.len());
            self.checks.fail("I5", text);
        }
        me.done = is_last(&logged);
        me.seen.push(logged);
        if me.done {
            self.stop_reading(client);
        }
    }

    /// What it has read is gone with orchestrator and worker; it still gets the last event.
    fn read_past_end(&mut self, client: usize, log: Vec<Logged>) {
        let me = &mut self.clients[client];
        me.done = true;
        me.orphaned = true;
        if let Some(Logged::Other(TaskEvent::End(end))) = log.last()
            && end.stop_reason != api_types::StopReason::Cancelled
        {
            self.checks.fail("I5", format!("client {client} has read more than its job has"));
        }
        self.stop_reading(client);
    }

    /// The job's log as a new reader would get it now.
    pub fn log_of(&self, job_id: JobId) -> Option<Vec<Logged>> {
        let stored = self.store.jobs.get(&job_id).filter(|stored| stored.row.status.is_terminal());
        if let Some(stored) = stored {
            return Some(stored.events.clone());
        }
        let log = self.daemon.as_ref().and_then(|daemon| daemon.logs.get(&job_id))?;
        Some(self.shown(job_id, log).to_vec())
    }

    fn no_log(&mut self, client: usize, job_id: JobId) {
        if self.clients[client].plan.durability == api_types::task::Durability::Durable {
            self.checks.fail("I1", format!("{job_id} was acknowledged and has no log"));
        }
        self.clients[client].done = true;
        self.clients[client].orphaned = true;
        self.stop_reading(client);
    }

    /// Asks for the job's end.
    pub fn cancel(&mut self, client: usize) {
        let Some(job_id) = self.clients[client].job else { return };
        if self.daemon.is_none() || self.loses_message() {
            return self.after(700, Happening::Cancel(client));
        }
        let request = self.draw_request();
        let event = Event::Cancel { request: Some(request), job_id };
        let delay = self.latency();
        self.send_to_daemon(delay, event, request, Caller::Canceller(job_id));
        if self.doubles_message() {
            let request = self.draw_request();
            let event = Event::Cancel { request: Some(request), job_id };
            self.send_to_daemon(delay + 30, event, request, Caller::Canceller(job_id));
        }
    }

    /// The answer to a cancellation.
    pub fn cancel_reply(&mut self, job_id: JobId, answer: Answer) {
        let lives = self.store.jobs.get(&job_id).is_some_and(|stored| !stored.row.status.is_terminal());
        match answer {
            Answer::Cancelled { status, already_ended: true } => self.checks.told_ended(job_id, status),
            Answer::Refused(_) if lives => {
                self.checks.fail("I1", format!("{job_id} lives and is not found by its canceller"));
            }
            _ => self.counts.cancels += 1,
        }
    }
}
