//! One change of the database each, inside the driver's transaction.

use api_types::task::{Decision, RetryMode};
use api_types::{Attempt, JobId, PoolId, SessionId, TenantId, WorkerId};
use orchestrator_core::journal::Segment;
use orchestrator_core::policy::PolicyRows;
use orchestrator_core::{Estimates, JobRow, PoolRow, SessionRow, SpawnRow, Time, WorkerRow};
use rusqlite::{OptionalExtension, Transaction};

use super::housekeeping::StoredRequest;
use super::record::{JobDetail, WorkerDetail, micros, write_json};
use super::{StoreError, journal, sessions};
use crate::subscribers::Unsaved;

/// Something to write. As the brain asked for it, with the texts that the brain never sees.
#[derive(Debug)]
pub enum Change {
    /// A new job with what it asks for and the events published so far.
    InsertJob {
        /// The brain's row.
        row: JobRow,
        /// The request, where it will lie.
        request: StoredRequest,
        /// Frames.
        published: Vec<u8>,
    },
    /// A job that moved on.
    UpdateJob(JobRow),
    /// Frames that the orchestrator published on a job's stream.
    Publish {
        /// The job.
        job_id: JobId,
        /// Frames, to be appended.
        frames: Vec<u8>,
    },
    /// Events of a running job that goes on elsewhere when its worker is lost.
    Checkpoint {
        /// The job.
        job_id: JobId,
        /// Those that were not on disk.
        unsaved: Unsaved,
    },
    /// A job that ended; its request is erased, or kept where the configuration says so.
    EndJob {
        /// The final row.
        row: JobRow,
        /// What is kept of its stream.
        stream: KeptStream,
    },
    /// Why an attempt went where it went.
    PutDecision {
        /// The job.
        job_id: JobId,
        /// The try.
        attempt: Attempt,
        /// Who was looked at.
        decision: Decision,
    },
    /// A snapshot of the brain (CBOR): the journal begins anew with it.
    BeginJournal {
        /// When it was taken.
        at: Time,
        /// The brain's state.
        snapshot: Vec<u8>,
    },
    /// What the brain was told since the last entry.
    AppendJournal(Segment),
    /// A worker that is new or changed.
    PutWorker(WorkerRow),
    /// A worker that is no longer of interest.
    DeleteWorker(WorkerId),
    /// A pool that is new or changed.
    PutPool(PoolRow),
    /// A pool that is no longer of interest.
    DeletePool(PoolId),
    /// What was learnt of rates and waits.
    PutEstimates(Box<Estimates>),
    /// A session that is new or was used.
    PutSession(SessionRow),
    /// A session that is forgotten.
    DeleteSession(TenantId, SessionId),
    /// The policies in force.
    PutPolicies(PolicyRows),
    /// A worker that a pool is about to be asked for.
    PutSpawn(SpawnRow),
    /// A worker that has come, or will not come.
    DeleteSpawn(WorkerId),
}

impl Change {
    /// The job that it is about.
    pub fn job_id(&self) -> Option<JobId> {
        match self {
            Self::InsertJob { row, .. } | Self::UpdateJob(row) | Self::EndJob { row, .. } => Some(row.job_id),
            Self::Publish { job_id, .. }
            | Self::Checkpoint { job_id, .. }
            | Self::PutDecision { job_id, .. } => Some(*job_id),
            Self::BeginJournal { .. }
            | Self::AppendJournal(_)
            | Self::PutWorker(_)
            | Self::DeleteWorker(_)
            | Self::PutPool(_)
            | Self::DeletePool(_)
            | Self::PutSession(_)
            | Self::DeleteSession(..)
            | Self::PutEstimates(_)
            | Self::PutPolicies(_)
            | Self::PutSpawn(_)
            | Self::DeleteSpawn(_) => None,
        }
    }
}

/// The events of an ended job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptStream {
    /// All frames, the last event included.
    pub events: Vec<u8>,
    /// Whether no event before the last one was lost.
    pub complete: bool,
    /// The text of the completion; absent when there was none.
    pub result: Option<String>,
}

/// Writes one change. Gives the job whose large request is to be erased after the commit, if any.
pub(super) fn apply(
    transaction: &Transaction<'_>,
    change: &Change,
    keeps_requests: bool,
) -> Result<Option<JobId>, StoreError> {
    match change {
        Change::InsertJob { row, request, published } => insert_job(transaction, row, request, published)?,
        Change::UpdateJob(row) => update_job(transaction, row)?,
        Change::Publish { job_id, frames } => publish(transaction, *job_id, frames)?,
        Change::Checkpoint { job_id, unsaved } => checkpoint(transaction, *job_id, unsaved)?,
        Change::EndJob { row, stream } => return end_job(transaction, row, stream, keeps_requests),
        Change::PutDecision { job_id, attempt, decision } => {
            put_decision(transaction, *job_id, *attempt, decision)?;
        }
        Change::BeginJournal { at, snapshot } => journal::begin(transaction, *at, snapshot)?,
        Change::AppendJournal(segment) => journal::append(transaction, segment)?,
        Change::PutWorker(row) => put_worker(transaction, row)?,
        Change::DeleteWorker(id) => {
            delete(transaction, "DELETE FROM workers WHERE worker_id = ?1", id.as_str())?;
        }
        Change::PutPool(row) => put_pool(transaction, row)?,
        Change::PutEstimates(estimates) => put_estimates(transaction, estimates)?,
        Change::DeletePool(id) => delete(transaction, "DELETE FROM pools WHERE pool_id = ?1", id.as_str())?,
        Change::PutSession(row) => sessions::put(transaction, row)?,
        Change::DeleteSession(tenant, session_id) => sessions::delete(transaction, tenant, session_id)?,
        Change::PutPolicies(rows) => super::policy::put(transaction, rows)?,
        Change::PutSpawn(row) => put_spawn(transaction, row)?,
        Change::DeleteSpawn(id) => {
            delete(transaction, "DELETE FROM spawns WHERE worker_id = ?1", id.as_str())?;
        }
    }
    Ok(None)
}

/// The largest job number among the new jobs. Numbers only grow, also after their jobs were deleted.
pub(super) fn last_number(changes: &[Change]) -> Option<i64> {
    let new = |change: &Change| match change {
        Change::InsertJob { row, .. } => Some(number(row.number)),
        _ => None,
    };
    changes.iter().filter_map(new).max()
}

/// Sets a single fact.
pub(super) fn put_meta(transaction: &Transaction<'_>, key: &str, value: i64) -> Result<(), StoreError> {
    transaction
        .prepare_cached("INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2")?
        .execute((key, value))?;
    Ok(())
}

fn insert_job(
    transaction: &Transaction<'_>,
    row: &JobRow,
    request: &StoredRequest,
    published: &[u8],
) -> Result<(), StoreError> {
    let number = number(row.number);
    let detail = write_json("jobs.detail", &JobDetail::from(row))?;
    transaction
        .prepare_cached(
            "INSERT INTO jobs (number, job_id, status, model, submitted_at, ended_at, detail)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute((
            number,
            row.job_id.uuid().as_bytes(),
            row.status.as_str(),
            &row.model,
            micros(row.submitted_at),
            row.ended_at.map(micros),
            detail,
        ))?;
    let json = match request {
        StoredRequest::Row(json) => Some(json.as_ref()),
        StoredRequest::File(_) => None,
    };
    transaction
        .prepare_cached("INSERT INTO live (number, request, events) VALUES (?1, ?2, ?3)")?
        .execute((number, json, published))?;
    Ok(())
}

fn update_job(transaction: &Transaction<'_>, row: &JobRow) -> Result<(), StoreError> {
    let detail = write_json("jobs.detail", &JobDetail::from(row))?;
    transaction
        .prepare_cached(
            "UPDATE jobs SET status = ?2, model = ?3, ended_at = ?4, detail = ?5 WHERE number = ?1",
        )?
        .execute((number(row.number), row.status.as_str(), &row.model, row.ended_at.map(micros), detail))?;
    Ok(())
}

/// Writes a job with all its times.
pub(super) fn rewrite_job(transaction: &Transaction<'_>, row: &JobRow) -> Result<(), StoreError> {
    update_job(transaction, row)?;
    transaction
        .prepare_cached("UPDATE jobs SET submitted_at = ?2 WHERE number = ?1")?
        .execute((number(row.number), micros(row.submitted_at)))?;
    Ok(())
}

fn publish(transaction: &Transaction<'_>, job_id: JobId, frames: &[u8]) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "UPDATE live SET events = CAST(events || ?2 AS BLOB)
             WHERE number = (SELECT number FROM jobs WHERE job_id = ?1)",
        )?
        .execute((job_id.uuid().as_bytes(), frames))?;
    Ok(())
}

fn checkpoint(transaction: &Transaction<'_>, job_id: JobId, unsaved: &Unsaved) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO checkpoints (number, first_event, frames)
             SELECT number, ?2, ?3 FROM jobs WHERE job_id = ?1",
        )?
        .execute((job_id.uuid().as_bytes(), number(unsaved.first_event), &unsaved.frames))?;
    Ok(())
}

fn end_job(
    transaction: &Transaction<'_>,
    row: &JobRow,
    stream: &KeptStream,
    keeps_request: bool,
) -> Result<Option<JobId>, StoreError> {
    update_job(transaction, row)?;
    let number = number(row.number);
    if keeps_request {
        transaction
            .prepare_cached(
                "INSERT INTO kept_requests (number, request) SELECT number, request FROM live WHERE number = ?1",
            )?
            .execute([number])?;
    }
    if row.retry == RetryMode::Continue {
        transaction.prepare_cached("DELETE FROM checkpoints WHERE number = ?1")?.execute([number])?;
    }
    let lies_in_file: Option<bool> = transaction
        .prepare_cached("DELETE FROM live WHERE number = ?1 RETURNING request IS NULL")?
        .query_row([number], |row| row.get(0))
        .optional()?;
    transaction
        .prepare_cached("INSERT INTO streams (number, events, complete, result) VALUES (?1, ?2, ?3, ?4)")?
        .execute((number, &stream.events, stream.complete, &stream.result))?;
    Ok((lies_in_file == Some(true) && !keeps_request).then_some(row.job_id))
}

fn put_decision(
    transaction: &Transaction<'_>,
    job_id: JobId,
    attempt: Attempt,
    decision: &Decision,
) -> Result<(), StoreError> {
    let text = write_json("decisions.decision", decision)?;
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO decisions (number, attempt, decision)
             SELECT number, ?2, ?3 FROM jobs WHERE job_id = ?1",
        )?
        .execute((job_id.uuid().as_bytes(), attempt.0, text))?;
    Ok(())
}

fn put_worker(transaction: &Transaction<'_>, row: &WorkerRow) -> Result<(), StoreError> {
    let detail = write_json("workers.detail", &WorkerDetail::from(row))?;
    transaction
        .prepare_cached("INSERT OR REPLACE INTO workers (worker_id, detail) VALUES (?1, ?2)")?
        .execute((row.facts.worker_id.as_str(), detail))?;
    transaction
        .prepare_cached(
            "INSERT INTO meta (key, value) VALUES ('next_incarnation', ?1)
             ON CONFLICT DO UPDATE SET value = max(value, ?1)",
        )?
        .execute([number(row.next_incarnation.0)])?;
    Ok(())
}

fn put_pool(transaction: &Transaction<'_>, row: &PoolRow) -> Result<(), StoreError> {
    let detail = write_json("pools.detail", row)?;
    transaction
        .prepare_cached("INSERT OR REPLACE INTO pools (pool_id, detail) VALUES (?1, ?2)")?
        .execute((row.pool_id.as_str(), detail))?;
    Ok(())
}

fn put_estimates(transaction: &Transaction<'_>, estimates: &Estimates) -> Result<(), StoreError> {
    let detail = write_json("estimates.detail", estimates)?;
    transaction
        .prepare_cached("INSERT OR REPLACE INTO estimates (id, detail) VALUES (1, ?1)")?
        .execute([detail])?;
    Ok(())
}

pub(super) fn put_spawn(transaction: &Transaction<'_>, row: &SpawnRow) -> Result<(), StoreError> {
    let detail = write_json("spawns.detail", row)?;
    transaction
        .prepare_cached("INSERT OR REPLACE INTO spawns (worker_id, detail) VALUES (?1, ?2)")?
        .execute((row.worker_id.as_str(), detail))?;
    Ok(())
}

fn delete(transaction: &Transaction<'_>, sql: &str, key: &str) -> Result<(), StoreError> {
    transaction.prepare_cached(sql)?.execute([key])?;
    Ok(())
}

/// SQLite's integers are signed; ours count up from 1 and never get that far.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
