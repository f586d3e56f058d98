//! The few events that make up nearly all of a journal, in a form that costs little to write.

use api_types::event::RunEnd;
use api_types::task::{Durability, OnDisconnect, Placement, Priority, RetryMode};
use api_types::{Attempt, Incarnation, JobId, PrefixChain, StopReason};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::{Event, Idempotency, RequestId, RunKey, Submission};
use crate::journal::Unreadable;

/// An input in its written form.
#[derive(Serialize, Deserialize)]
pub(super) enum Hot<'a> {
    Timeout,
    /// Before an input: what the watchdog of policies cut while it was handled.
    Cut(Vec<u32>),
    #[serde(borrow)]
    Submit(HotSubmission<'a>),
    FirstToken(HotRun<'a>),
    StreamEnded(HotRun<'a>, HotEnd),
    Readers([u8; 16], u32),
    /// Any other event as CBOR, which takes every shape.
    Rare(&'a [u8]),
}

#[derive(Serialize, Deserialize)]
pub(super) struct HotSubmission<'a> {
    request: u64,
    job_id: [u8; 16],
    model: Option<&'a str>,
    chat: bool,
    tenant: &'a str,
    session_id: Option<&'a str>,
    prompt_bytes: u64,
    prompt_tokens: Option<u32>,
    prefix: Vec<u64>,
    max_tokens: Option<u32>,
    priority: Priority,
    deadline_ms: Option<u64>,
    on_disconnect: OnDisconnect,
    retry: RetryMode,
    /// CBOR; absent when the job may run anywhere.
    placement: Option<Vec<u8>>,
    durability: Durability,
    is_read: bool,
    idempotency: Option<(&'a str, &'a str)>,
    correlation_id: &'a str,
}

#[derive(Serialize, Deserialize)]
pub(super) struct HotRun<'a> {
    job_id: [u8; 16],
    attempt: Attempt,
    worker_id: &'a str,
    incarnation: Incarnation,
}

#[derive(Serialize, Deserialize)]
pub(super) struct HotEnd {
    tokens_in: u32,
    tokens_out: u32,
    prefill_time_ms: u64,
    decode_time_ms: u64,
    stop_reason: StopReason,
    seed: Option<u64>,
    tokens_cached: Option<u32>,
}

impl<'a> Hot<'a> {
    /// The written form of a frequent event; `None` for the others.
    pub fn of(event: &'a Event) -> Result<Option<Self>, Unreadable> {
        Ok(match event {
            Event::Submit(submission) => Some(Self::Submit(HotSubmission::of(submission)?)),
            Event::FirstToken(run) => Some(Self::FirstToken(HotRun::of(run))),
            Event::StreamEnded { run, end } => Some(Self::StreamEnded(HotRun::of(run), HotEnd::of(end))),
            Event::ReadersChanged { job_id, readers } => Some(Self::Readers(bytes(*job_id), *readers)),
            Event::Cancel { .. }
            | Event::Abandon { .. }
            | Event::Withdraw { .. }
            | Event::WorkerReady { .. }
            | Event::WorkerHeartbeat { .. }
            | Event::WorkerFailed { .. }
            | Event::DrainWorker { .. }
            | Event::StreamFailed { .. }
            | Event::StreamBroken { .. }
            | Event::Salvaged { .. }
            | Event::PutPool { .. }
            | Event::RemovePool { .. }
            | Event::SetPolicy { .. }
            | Event::DeleteSession { .. }
            | Event::PoolModels { .. }
            | Event::PoolSeen { .. }
            | Event::PoolSilent { .. }
            | Event::SpawnEnded { .. }
            | Event::StopEnded { .. } => None,
        })
    }

    /// The event again.
    pub fn into_event(self) -> Result<Event, Unreadable> {
        match self {
            Self::Submit(submission) => Ok(Event::Submit(submission.into_submission()?)),
            Self::FirstToken(run) => Ok(Event::FirstToken(run.into_key()?)),
            Self::StreamEnded(run, end) => {
                Ok(Event::StreamEnded { run: run.into_key()?, end: end.into_end() })
            }
            Self::Readers(job_id, readers) => Ok(Event::ReadersChanged { job_id: job(job_id), readers }),
            Self::Rare(event) => from_cbor(event),
            Self::Timeout | Self::Cut(_) => Err(Unreadable::new("neither a timeout nor a cut is an event")),
        }
    }
}

impl<'a> HotSubmission<'a> {
    fn of(submission: &'a Submission) -> Result<Self, Unreadable> {
        let placed = submission.placement != Placement::default();
        Ok(Self {
            request: submission.request.0,
            job_id: bytes(submission.job_id),
            model: submission.model.as_deref(),
            chat: submission.chat,
            tenant: submission.tenant.as_str(),
            session_id: submission.session_id.as_ref().map(|id| id.as_str()),
            prompt_bytes: submission.prompt_bytes,
            prompt_tokens: submission.prompt_tokens,
            prefix: submission.prefix.blocks().iter().map(|block| block.0).collect(),
            max_tokens: submission.max_tokens,
            priority: submission.priority,
            deadline_ms: submission.deadline_ms,
            on_disconnect: submission.on_disconnect,
            retry: submission.retry,
            placement: placed.then(|| to_cbor(&submission.placement)).transpose()?,
            durability: submission.durability,
            is_read: submission.is_read,
            idempotency: submission.idempotency.as_ref().map(|i| (i.key.as_str(), i.digest.as_str())),
            correlation_id: submission.correlation_id.as_str(),
        })
    }

    fn into_submission(self) -> Result<Submission, Unreadable> {
        Ok(Submission {
            request: RequestId(self.request),
            job_id: job(self.job_id),
            model: self.model.map(str::to_owned),
            chat: self.chat,
            tenant: self.tenant.parse().map_err(Unreadable::new)?,
            session_id: self.session_id.map(str::parse).transpose().map_err(Unreadable::new)?,
            prompt_bytes: self.prompt_bytes,
            prompt_tokens: self.prompt_tokens,
            prefix: PrefixChain::new(self.prefix.into_iter().map(api_types::prefix::BlockHash)),
            max_tokens: self.max_tokens,
            priority: self.priority,
            deadline_ms: self.deadline_ms,
            on_disconnect: self.on_disconnect,
            retry: self.retry,
            placement: self.placement.map(|cbor| from_cbor(&cbor)).transpose()?.unwrap_or_default(),
            durability: self.durability,
            is_read: self.is_read,
            idempotency: self
                .idempotency
                .map(|(key, digest)| Idempotency { key: key.to_owned(), digest: digest.to_owned() }),
            correlation_id: self.correlation_id.parse().map_err(Unreadable::new)?,
        })
    }
}

impl<'a> HotRun<'a> {
    fn of(run: &'a RunKey) -> Self {
        Self {
            job_id: bytes(run.job_id),
            attempt: run.attempt,
            worker_id: run.worker_id.as_str(),
            incarnation: run.incarnation,
        }
    }

    fn into_key(self) -> Result<RunKey, Unreadable> {
        Ok(RunKey {
            job_id: job(self.job_id),
            attempt: self.attempt,
            worker_id: self.worker_id.parse().map_err(Unreadable::new)?,
            incarnation: self.incarnation,
        })
    }
}

impl HotEnd {
    /// What the worker said; `queue_time_ms` is the brain's own business and not part of the event.
    const fn of(end: &RunEnd) -> Self {
        Self {
            tokens_in: end.tokens_in,
            tokens_out: end.tokens_out,
            prefill_time_ms: end.prefill_time_ms,
            decode_time_ms: end.decode_time_ms,
            stop_reason: end.stop_reason,
            seed: end.seed,
            tokens_cached: end.tokens_cached,
        }
    }

    const fn into_end(self) -> RunEnd {
        RunEnd {
            tokens_in: self.tokens_in,
            tokens_out: self.tokens_out,
            queue_time_ms: 0,
            prefill_time_ms: self.prefill_time_ms,
            decode_time_ms: self.decode_time_ms,
            stop_reason: self.stop_reason,
            seed: self.seed,
            tokens_cached: self.tokens_cached,
        }
    }
}

fn bytes(job_id: JobId) -> [u8; 16] {
    *job_id.uuid().as_bytes()
}

const fn job(bytes: [u8; 16]) -> JobId {
    JobId::from_uuid(Uuid::from_bytes(bytes))
}

/// A value as CBOR.
pub(super) fn to_cbor(value: &impl Serialize) -> Result<Vec<u8>, Unreadable> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(Unreadable::new)?;
    Ok(bytes)
}

/// The value behind CBOR.
pub(super) fn from_cbor<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    ciborium::from_reader(bytes).map_err(Unreadable::new)
}
