//! How the brain's rows stand in the tables: columns for what is searched, JSON for the rest.

use api_types::error::ErrorDetail;
use api_types::event::RunEnd;
use api_types::task::{Durability, OnDisconnect, Placement, Priority, RetryMode, TaskStatus};
use api_types::worker::WorkerFacts;
use api_types::{Attempt, CorrelationId, Incarnation, JobId, PrefixChain, SessionId, TenantId, WorkerId};
use orchestrator_core::{AttemptRow, Carried, Forecast, Idempotency, JobRow, Time, WorkerRow};
use rusqlite::Row;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::StoreError;

/// The columns that [`job_from`] reads, in its order.
pub const JOB_COLUMNS: &str = "number, job_id, status, model, submitted_at, ended_at, detail";

/// Times are stored as UTC microseconds.
pub fn micros(time: Time) -> i64 {
    i64::try_from(time.0).map_or(i64::MAX, |ms| ms.saturating_mul(1_000))
}

/// The time that [`micros`] wrote.
pub fn from_micros(micros: i64) -> Time {
    Time(u64::try_from(micros / 1_000).unwrap_or(0))
}

/// What of a job stands in its JSON column.
#[derive(Serialize, Deserialize)]
pub struct JobDetail {
    chat: bool,
    #[serde(default)]
    tenant: TenantId,
    #[serde(default)]
    session_id: Option<SessionId>,
    prompt_bytes: u64,
    #[serde(default)]
    tokens_at_least: u32,
    #[serde(default, skip_serializing_if = "PrefixChain::is_empty")]
    prefix: PrefixChain,
    #[serde(default)]
    max_tokens: Option<u32>,
    priority: Priority,
    deadline_ms: Option<u64>,
    on_disconnect: OnDisconnect,
    retry: RetryMode,
    placement: Placement,
    durability: Durability,
    #[serde(default)]
    eta: Option<Forecast>,
    idempotency: Option<(String, String)>,
    correlation_id: CorrelationId,
    attempt: Option<AttemptDetail>,
    not_before_ms: Option<u64>,
    #[serde(default)]
    tries_failed: u32,
    workers_lost: Vec<WorkerId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    carried: Option<Box<Carried>>,
    had_reader: bool,
    cancel_requested_at_ms: Option<u64>,
    end: Option<RunEnd>,
    error: Option<ErrorDetail>,
}

#[derive(Serialize, Deserialize)]
struct AttemptDetail {
    attempt: Attempt,
    worker_id: WorkerId,
    incarnation: Incarnation,
    dispatched_at_ms: u64,
    first_event_id: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    build: Option<String>,
}

impl From<&JobRow> for JobDetail {
    fn from(row: &JobRow) -> Self {
        Self {
            chat: row.chat,
            tenant: row.tenant.clone(),
            session_id: row.session_id.clone(),
            prompt_bytes: row.prompt_bytes,
            tokens_at_least: row.tokens_at_least,
            prefix: row.prefix.clone(),
            max_tokens: row.max_tokens,
            priority: row.priority,
            deadline_ms: row.deadline.map(|time| time.0),
            on_disconnect: row.on_disconnect,
            retry: row.retry,
            placement: row.placement.clone(),
            durability: row.durability,
            eta: row.eta,
            idempotency: row.idempotency.as_ref().map(|idem| (idem.key.clone(), idem.digest.clone())),
            correlation_id: row.correlation_id.clone(),
            attempt: row.attempt.as_ref().map(AttemptDetail::from),
            not_before_ms: row.not_before.map(|time| time.0),
            tries_failed: row.tries_failed,
            workers_lost: row.workers_lost.clone(),
            carried: row.carried.clone(),
            had_reader: row.had_reader,
            cancel_requested_at_ms: row.cancel_requested_at.map(|time| time.0),
            end: row.end.clone(),
            error: row.error.clone(),
        }
    }
}

impl From<&AttemptRow> for AttemptDetail {
    fn from(row: &AttemptRow) -> Self {
        Self {
            attempt: row.attempt,
            worker_id: row.worker_id.clone(),
            incarnation: row.incarnation,
            dispatched_at_ms: row.dispatched_at.0,
            first_event_id: row.first_event_id,
            build: row.build.clone(),
        }
    }
}

impl From<AttemptDetail> for AttemptRow {
    fn from(detail: AttemptDetail) -> Self {
        Self {
            attempt: detail.attempt,
            worker_id: detail.worker_id,
            incarnation: detail.incarnation,
            dispatched_at: Time(detail.dispatched_at_ms),
            first_event_id: detail.first_event_id,
            build: detail.build,
        }
    }
}

/// Reads one row of [`JOB_COLUMNS`].
///
/// # Errors
/// When SQLite fails or a column does not hold what this build writes.
pub fn job_from(row: &Row<'_>) -> Result<JobRow, StoreError> {
    let status: String = row.get(2)?;
    let detail: String = row.get(6)?;
    let detail: JobDetail = read_json("jobs.detail", &detail)?;
    Ok(JobRow {
        job_id: JobId::from_uuid(Uuid::from_bytes(row.get::<_, [u8; 16]>(1)?)),
        number: u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0),
        status: status_from(&status)?,
        model: row.get(3)?,
        chat: detail.chat,
        tenant: detail.tenant,
        session_id: detail.session_id,
        prompt_bytes: detail.prompt_bytes,
        tokens_at_least: detail.tokens_at_least,
        prefix: detail.prefix,
        max_tokens: detail.max_tokens,
        priority: detail.priority,
        submitted_at: from_micros(row.get(4)?),
        deadline: detail.deadline_ms.map(Time),
        on_disconnect: detail.on_disconnect,
        retry: detail.retry,
        placement: detail.placement,
        durability: detail.durability,
        eta: detail.eta,
        idempotency: detail.idempotency.map(|(key, digest)| Idempotency { key, digest }),
        correlation_id: detail.correlation_id,
        attempt: detail.attempt.map(AttemptRow::from),
        not_before: detail.not_before_ms.map(Time),
        tries_failed: detail.tries_failed,
        workers_lost: detail.workers_lost,
        carried: detail.carried,
        had_reader: detail.had_reader,
        cancel_requested_at: detail.cancel_requested_at_ms.map(Time),
        ended_at: row.get::<_, Option<i64>>(5)?.map(from_micros),
        end: detail.end,
        error: detail.error,
    })
}

fn status_from(word: &str) -> Result<TaskStatus, StoreError> {
    [
        TaskStatus::Queued,
        TaskStatus::Dispatched,
        TaskStatus::Running,
        TaskStatus::Completed,
        TaskStatus::Failed,
        TaskStatus::Cancelled,
    ]
    .into_iter()
    .find(|status| status.as_str() == word)
    .ok_or(StoreError::Damaged { column: "jobs.status", reason: "an unknown word".to_owned() })
}

/// What of a worker stands in its JSON column.
#[derive(Serialize, Deserialize)]
pub struct WorkerDetail {
    facts: WorkerFacts,
    incarnation: Incarnation,
    secret: Option<String>,
    draining: bool,
}

impl From<&WorkerRow> for WorkerDetail {
    fn from(row: &WorkerRow) -> Self {
        Self {
            facts: row.facts.clone(),
            incarnation: row.incarnation,
            secret: row.secret.clone(),
            draining: row.draining,
        }
    }
}

impl WorkerDetail {
    /// The row, with the number that belongs to no single worker.
    pub fn into_row(self, next_incarnation: Incarnation) -> WorkerRow {
        WorkerRow {
            facts: self.facts,
            incarnation: self.incarnation,
            next_incarnation,
            secret: self.secret,
            draining: self.draining,
        }
    }
}

/// Reads a JSON column.
///
/// # Errors
/// When it does not hold what this build writes.
pub fn read_json<T: for<'de> Deserialize<'de>>(column: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Damaged { column, reason: error.to_string() })
}

/// Writes a JSON column.
///
/// # Errors
/// When the value has no JSON form.
pub fn write_json(column: &'static str, value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Damaged { column, reason: error.to_string() })
}
