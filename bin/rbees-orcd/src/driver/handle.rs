//! How everybody else speaks to the driver; hides its mailbox.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use api_types::event::Eta;
use api_types::pool::PoolStatus;
use api_types::task::{Durability, OnDisconnect, Placement, Priority, RetryMode, TaskStatus};
use api_types::worker::{ExecuteRequest, FailedCall, HeartbeatCall, ReadyCall, RunRef, WorkerHealth};
use api_types::{
    CorrelationId, ErrorCode, ErrorDetail, Incarnation, JobId, PoolId, SessionId, TenantId, WorkerId,
};
use bytes::Bytes;
use orchestrator_core::policy::PolicyChange;
use orchestrator_core::{
    Answer, Event, Idempotency, Notice, Orchestrator, PoolRow, RequestId, Run, Submission, Time,
};
use tokio::sync::{broadcast, oneshot};

use super::desk::Desk;
use super::hold::storage_full;
use super::pool_room;
use super::requests::RequestBody;
use crate::hashes::HashKey;
use crate::ids::next_job_id;
use crate::store::Class;
use crate::store::housekeeping::{Housekeeper, PromptFile};
use crate::subscribers::Reader;

/// Callers that may wait for the driver at once; more are answered `TOO_MANY_REQUESTS`.
const MAX_WAITING: usize = 8_192;
/// Operator news that a slow listener may lag behind before it loses some.
const NOTICES: usize = 1_024;

/// A task that has passed every check which needs no state.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedTask {
    /// The model asked for.
    pub model: Option<String>,
    /// What to run; the ids are filled in at dispatch.
    pub request: ExecuteRequest,
    /// Who it is done for.
    pub tenant: TenantId,
    /// The session it belongs to.
    pub session_id: Option<SessionId>,
    /// Bytes of prompt or messages.
    pub prompt_bytes: u64,
    /// Tokens of prompt or messages, once a worker has counted them.
    pub prompt_tokens: Option<u32>,
    /// Its class.
    pub priority: Priority,
    /// Milliseconds from submission after which the answer is worthless.
    pub deadline_ms: Option<u64>,
    /// What happens when its last reader leaves.
    pub on_disconnect: OnDisconnect,
    /// What happens when its worker is lost.
    pub retry: RetryMode,
    /// Where it may run.
    pub placement: Placement,
    /// Whether it is written down.
    pub durability: Durability,
    /// The client's key and the digest of its request.
    pub idempotency: Option<Idempotency>,
    /// Ties it to log lines.
    pub correlation_id: CorrelationId,
}

/// A job that was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The job.
    pub job_id: JobId,
    /// Where it stands.
    pub status: TaskStatus,
    /// Jobs that go before it.
    pub queue_position: u64,
    /// When it may end, in milliseconds from now; absent when unknown.
    pub eta: Option<Eta>,
    /// Whether an earlier submission with the same key is meant.
    pub replayed: bool,
    /// The model it was resolved to.
    pub model: String,
}

/// What a caller is told.
#[derive(Debug)]
pub(super) struct Reply {
    /// The brain's answer.
    pub answer: Answer,
    /// The reader of a new job whose submitter reads it.
    pub reader: Option<Reader>,
}

/// Who waits for an answer of the brain.
pub(super) type Waiting = Option<(RequestId, oneshot::Sender<Reply>)>;
/// A question that is asked where the brain is.
pub(super) type Question = Box<dyn FnOnce(&Orchestrator, Time) + Send>;

/// What lies in the driver's mailbox.
pub(super) enum Message {
    /// Something happened.
    Event(Box<Event>, Waiting),
    /// A client hands in a task.
    Submit(Box<Submission>, RequestBody, Option<PromptFile>, Waiting),
    /// Somebody wants to look, after what came before is on disk.
    Read(Question),
    /// A worker answered a probe.
    Probed(WorkerId, Incarnation, Box<WorkerHealth>),
    /// What jobs that go on elsewhere have said since the last time is to be on disk.
    Checkpoint,
    /// An ended job is to be erased, or all of them; then the sender hears how many were.
    Erase(Option<JobId>, oneshot::Sender<Result<u64, ErrorDetail>>),
    /// Old jobs may be deleted.
    Prune,
    /// What the brain was told is to be on disk; then the sender hears.
    FlushJournal(oneshot::Sender<()>),
    /// End, after what came before.
    Stop,
}

/// Something an operator watches, written down once for all who do.
#[derive(Debug)]
pub struct News {
    notice: Notice,
    frame: OnceLock<Bytes>,
}

impl News {
    /// Its frame, which `encode` makes when it is first asked for.
    pub fn frame(&self, encode: impl FnOnce(&Notice) -> Bytes) -> &Bytes {
        self.frame.get_or_init(|| encode(&self.notice))
    }
}

/// Speaks to the driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

/// What all handles share.
#[derive(Debug)]
pub struct Shared {
    desk: Arc<Desk>,
    waiting: Arc<AtomicUsize>,
    next_request: AtomicU64,
    notices: broadcast::Sender<Arc<News>>,
    smallest_context: AtomicU64,
    hash_key: HashKey,
    keeper: Housekeeper,
}

impl Deref for Handle {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Counts a caller for as long as it waits.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Handle {
    /// A handle to whoever comes to sit at this desk.
    pub(super) fn new(hash_key: HashKey, keeper: Housekeeper, desk: Arc<Desk>) -> Self {
        Self(Arc::new(Shared {
            desk,
            waiting: Arc::default(),
            next_request: AtomicU64::new(1),
            notices: broadcast::Sender::new(NOTICES),
            smallest_context: AtomicU64::new(u64::MAX),
            hash_key,
            keeper,
        }))
    }

    /// Hands in a task. When this returns, the job is on disk (unless it is not to be). With `is_read`
    /// the caller is the new job's first reader, and is counted as one before anybody else hears of the
    /// job. No reader comes of a submission whose key was used before.
    ///
    /// A task that is refused for want of its model is left as it was, and may be handed in again; any other has
    /// given its request away.
    ///
    /// # Errors
    /// What the brain refuses it for, or that the driver is overloaded or stopped.
    pub async fn submit(
        &self,
        task: &mut CheckedTask,
        is_read: bool,
    ) -> Result<(Accepted, Option<Reader>), ErrorDetail> {
        let job_id = next_job_id();
        let mut submission = Box::new(submission(job_id, task, &self.hash_key));
        submission.is_read = is_read;
        let body = RequestBody::new(std::mem::take(&mut task.request));
        let kept = body.clone();
        let file = self.write_down(job_id, &body, submission.durability).await?;
        let Reply { answer, reader } = self
            .ask(|request, reply| {
                submission.request = request;
                Message::Submit(submission, body, file, Some((request, reply)))
            })
            .await?;
        match answer {
            Answer::Accepted { job_id, status, queue_position, eta, replayed, model } => {
                Ok((Accepted { job_id, status, queue_position, eta, replayed, model }, reader))
            }
            other => {
                let error = unexpected(other);
                if is_for_want_of_model(&error) {
                    task.request = kept.request();
                }
                Err(error)
            }
        }
    }

    /// Puts the request of a durable task on disk when it is too large for a row; it is erased again
    /// unless the job is taken in.
    async fn write_down(
        &self,
        job_id: JobId,
        body: &RequestBody,
        durability: Durability,
    ) -> Result<Option<PromptFile>, ErrorDetail> {
        if durability == Durability::Memory {
            return Ok(None);
        }
        if self.keeper.room().is_full() {
            return Err(storage_full());
        }
        if !Housekeeper::is_large(body.json().len()) {
            return Ok(None);
        }
        Box::pin(self.write_file(job_id, body)).await.map(Some)
    }

    async fn write_file(&self, job_id: JobId, body: &RequestBody) -> Result<PromptFile, ErrorDetail> {
        let (keeper, json) = (self.keeper.clone(), body.json());
        match tokio::task::spawn_blocking(move || keeper.store(job_id, &json)).await {
            Ok(Ok(file)) => Ok(file),
            Ok(Err(error)) if error.class() == Class::Full => Err(storage_full()),
            Ok(Err(error)) => {
                tracing::error!(code = "PROMPT_NOT_STORED", %error, "a large request could not be written");
                Err(ErrorDetail::new(ErrorCode::StorageFailed, "the request could not be written down")
                    .with_hint("look at the orchestrator's log; check the disk with `rbees doctor`"))
            }
            Err(_) => Err(stopped()),
        }
    }

    /// Whether the disk takes new jobs.
    pub fn has_room(&self) -> bool {
        !self.keeper.room().is_full()
    }

    /// Asks for a job's end. Gives where it stands, and whether it had ended before.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn cancel(&self, job_id: JobId) -> Result<(TaskStatus, bool), ErrorDetail> {
        match self.event(|request| Event::Cancel { request: Some(request), job_id }).await? {
            Answer::Cancelled { status, already_ended } => Ok((status, already_ended)),
            other => Err(unexpected(other)),
        }
    }

    /// A worker introduces itself. Gives its number and the runs it is to drop.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn worker_ready(&self, call: ReadyCall) -> Result<(Incarnation, Vec<RunRef>), ErrorDetail> {
        let answer = self
            .event(|request| Event::WorkerReady {
                request,
                facts: Box::new(call.facts),
                status: call.status,
                runs: our_runs(&call.runs),
                secret: call.secret,
            })
            .await?;
        match answer {
            Answer::Registered { incarnation, drop_runs } => Ok((incarnation, run_refs(&drop_runs))),
            other => Err(unexpected(other)),
        }
    }

    /// A worker shows that it lives. Gives the runs it is to drop, and whether it is to drain.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn worker_heartbeat(
        &self,
        worker_id: WorkerId,
        call: HeartbeatCall,
    ) -> Result<(Vec<RunRef>, bool), ErrorDetail> {
        let answer = self
            .event(|request| Event::WorkerHeartbeat {
                request,
                worker_id,
                incarnation: call.incarnation,
                instance: call.instance,
                status: call.status,
                runs: our_runs(&call.runs),
                free_memory_bytes: Some(call.free_memory_bytes),
                prefixes: call.prefixes,
            })
            .await?;
        match answer {
            Answer::Heartbeat { drop_runs, drain } => Ok((run_refs(&drop_runs), drain)),
            other => Err(unexpected(other)),
        }
    }

    /// A worker cannot go on.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn worker_failed(&self, worker_id: WorkerId, call: FailedCall) -> Result<(), ErrorDetail> {
        let FailedCall { instance, error } = call;
        self.done(|request| Event::WorkerFailed { request: Some(request), worker_id, instance, error }).await
    }

    /// A worker is to finish its jobs and end.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn drain_worker(&self, worker_id: WorkerId) -> Result<(), ErrorDetail> {
        self.done(|request| Event::DrainWorker { request, worker_id }).await
    }

    /// Keeps a pool, new or changed.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn put_pool(&self, pool: PoolRow) -> Result<(), ErrorDetail> {
        self.done(|request| Event::PutPool { request, pool }).await
    }

    /// Forgets a pool.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn remove_pool(&self, pool_id: PoolId) -> Result<(), ErrorDetail> {
        self.done(|request| Event::RemovePool { request, pool_id }).await
    }

    /// Forgets a session.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn delete_session(&self, tenant: TenantId, session_id: SessionId) -> Result<(), ErrorDetail> {
        self.done(|request| Event::DeleteSession { request, tenant, session_id }).await
    }

    /// Changes the policies in force.
    ///
    /// # Errors
    /// As [`Self::submit`]; `POLICY_NOT_FOUND` when there is no shadow or nothing to go back to.
    pub async fn set_policy(&self, change: PolicyChange) -> Result<(), ErrorDetail> {
        self.done(|request| Event::SetPolicy { request, change }).await
    }

    /// A pool told what models it has and what fits, or did not answer. `ask` is the number of the
    /// question, 0 when the brain had none.
    pub fn pool_answered(&self, pool_id: &PoolId, ask: u64, answer: Result<PoolStatus, ErrorDetail>) {
        let pool_id = pool_id.clone();
        match answer {
            Ok(status) => {
                self.report(Event::PoolModels {
                    pool_id: pool_id.clone(),
                    models: pool_room::models(&status),
                });
                self.report(Event::PoolSeen { pool_id, ask, room: pool_room::room(status) });
            }
            Err(error) => self.report(Event::PoolSilent { pool_id, ask, error }),
        }
    }

    /// Whether this job's idempotency key is free again, because the job ends only for want of somebody
    /// who listens.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn is_abandoned(&self, job_id: JobId) -> Result<bool, ErrorDetail> {
        let keyless = move |brain: &Orchestrator, _| {
            brain.job(job_id).is_some_and(|standing| standing.row.idempotency.is_none())
        };
        self.read(keyless).await
    }

    /// Looks at the brain's state as of the last commit.
    ///
    /// # Errors
    /// When the driver is overloaded or stopped.
    pub async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Orchestrator, Time) -> T + Send + 'static,
    ) -> Result<T, ErrorDetail> {
        let _place = self.take_place()?;
        let (reply, answer) = oneshot::channel();
        let asked = Message::Read(Box::new(move |brain, now| {
            let _ = reply.send(question(brain, now));
        }));
        self.send(asked)?;
        answer.await.map_err(|_| stopped())
    }

    /// Tells of something that nobody waits for; never refused, because it already happened.
    pub fn report(&self, event: Event) {
        self.report_later(event);
        self.desk.pump();
    }

    /// As [`Self::report`], for a caller that holds a lock which the brain's actions take: it is
    /// handled with the next message, or by [`Self::attend`].
    pub fn report_later(&self, event: Event) {
        self.desk.post(Message::Event(Box::new(event), None));
    }

    /// Has everything handled that was left behind.
    pub fn attend(&self) {
        self.desk.pump();
    }

    /// Tokens that the context of every registered worker holds; a token is at least one byte, so a
    /// prompt of fewer bytes fits wherever it goes.
    pub fn smallest_context(&self) -> u64 {
        self.smallest_context.load(Ordering::Relaxed)
    }

    /// Notes what [`Self::smallest_context`] is now.
    pub(super) fn set_smallest_context(&self, tokens: u64) {
        self.smallest_context.store(tokens, Ordering::Relaxed);
    }

    /// What an operator watches, from now on.
    pub fn notices(&self) -> broadcast::Receiver<Arc<News>> {
        self.notices.subscribe()
    }

    /// Passes news on to whoever watches.
    pub(super) fn notify(&self, notice: Notice) {
        if self.notices.receiver_count() > 0 {
            let _ = self.notices.send(Arc::new(News { notice, frame: OnceLock::new() }));
        }
    }

    /// A worker answered a probe.
    pub(crate) fn probed(&self, worker_id: WorkerId, incarnation: Incarnation, health: WorkerHealth) {
        let _ = self.send(Message::Probed(worker_id, incarnation, Box::new(health)));
    }

    /// What jobs that go on elsewhere have said is to be on disk.
    pub fn checkpoint(&self) {
        let _ = self.send(Message::Checkpoint);
    }

    /// Erases an ended job, or with `None` all of them: record, events and result. Gives how many
    /// there were; a job that has not ended is none.
    ///
    /// # Errors
    /// When the disk has no room for it, or the driver has stopped.
    pub async fn erase(&self, which: Option<JobId>) -> Result<u64, ErrorDetail> {
        let _place = self.take_place()?;
        let (reply, erased) = oneshot::channel();
        self.send(Message::Erase(which, reply))?;
        erased.await.map_err(|_| stopped())?
    }

    /// Old jobs may be deleted.
    pub fn prune(&self) {
        let _ = self.send(Message::Prune);
    }

    /// Brings the journal up to date on disk.
    ///
    /// # Errors
    /// When the driver has stopped.
    pub async fn flush_journal(&self) -> Result<(), ErrorDetail> {
        let (reply, flushed) = oneshot::channel();
        let _ = self.send(Message::FlushJournal(reply));
        flushed.await.map_err(|_| stopped())
    }

    /// Ends the driver, after what was said before.
    pub fn stop(&self) {
        let _ = self.send(Message::Stop);
    }

    async fn done(&self, event: impl FnOnce(RequestId) -> Event) -> Result<(), ErrorDetail> {
        match self.event(event).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    async fn event(&self, event: impl FnOnce(RequestId) -> Event) -> Result<Answer, ErrorDetail> {
        let asked = |request, reply| Message::Event(Box::new(event(request)), Some((request, reply)));
        self.ask(asked).await.map(|reply| reply.answer)
    }

    async fn ask(
        &self,
        message: impl FnOnce(RequestId, oneshot::Sender<Reply>) -> Message,
    ) -> Result<Reply, ErrorDetail> {
        let _place = self.take_place()?;
        let request = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        self.send(message(request, reply))?;
        answer.await.map_err(|_| stopped())
    }

    fn send(&self, message: Message) -> Result<(), ErrorDetail> {
        if !self.desk.post(message) {
            return Err(stopped());
        }
        self.desk.pump();
        Ok(())
    }

    fn take_place(&self) -> Result<Place, ErrorDetail> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(&self.waiting));
        if before >= MAX_WAITING {
            let message = format!("{before} requests wait for the orchestrator; at most {MAX_WAITING} may");
            return Err(ErrorDetail::new(ErrorCode::NoCapacity, message).with_retry_after_ms(1_000));
        }
        Ok(place)
    }
}

/// The submission of a task that nobody waits for or reads yet.
fn submission(job_id: JobId, task: &CheckedTask, hash_key: &HashKey) -> Submission {
    Submission {
        request: RequestId(0),
        job_id,
        model: task.model.clone(),
        chat: task.request.messages.is_some(),
        tenant: task.tenant.clone(),
        session_id: task.session_id.clone(),
        prompt_bytes: task.prompt_bytes,
        prompt_tokens: task.prompt_tokens,
        prefix: hash_key.chain(task.request.prompt.as_deref(), task.request.messages.as_deref()),
        max_tokens: task.request.max_tokens,
        priority: task.priority,
        deadline_ms: task.deadline_ms,
        on_disconnect: task.on_disconnect,
        retry: task.retry,
        placement: task.placement.clone(),
        durability: task.durability,
        is_read: false,
        idempotency: task
            .idempotency
            .as_ref()
            .map(|given| Idempotency { key: hash_key.of(&given.key), digest: hash_key.of(&given.digest) }),
        correlation_id: task.correlation_id.clone(),
    }
}

/// The runs of a worker that are jobs of ours; a person with curl may have started others.
fn our_runs(runs: &[RunRef]) -> Vec<Run> {
    let ours =
        |run: &RunRef| Some(Run { job_id: run.job_id.parse().ok()?, attempt: run.attempt, ended: run.ended });
    runs.iter().filter_map(ours).collect()
}

fn run_refs(runs: &[Run]) -> Vec<RunRef> {
    runs.iter()
        .map(|run| RunRef { job_id: run.job_id.to_string(), attempt: run.attempt, ended: run.ended })
        .collect()
}

fn unexpected(answer: Answer) -> ErrorDetail {
    match answer {
        Answer::Refused(error) => error,
        _ => ErrorDetail::new(ErrorCode::Internal, "the orchestrator gave an answer to another question"),
    }
}

/// Whether a job is refused because no worker and no pool is known to have its model. Where several
/// could be meant, more of them would not help.
pub fn is_for_want_of_model(error: &ErrorDetail) -> bool {
    let none_known =
        || error.details.as_ref().is_some_and(|details| details["known"] == serde_json::json!([]));
    match error.code {
        ErrorCode::ModelNotFound | ErrorCode::ModelNotReady => true,
        ErrorCode::ModelAmbiguous => none_known(),
        _ => false,
    }
}

fn stopped() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::ShuttingDown, "the orchestrator is stopping")
        .with_hint("try again in a few seconds; jobs that were accepted are kept")
        .with_retry_after_ms(2_000)
}
