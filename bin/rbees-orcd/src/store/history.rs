//! Read-only questions about jobs, beside the writer and never in its way.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use api_types::JobId;
use api_types::task::{Decision, TaskStatus};
use api_types::worker::ExecuteRequest;
use orchestrator_core::{JobRow, Time};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::journal::{self, Chapter, Start};
use super::prompts::Prompts;
use super::record::{JOB_COLUMNS, job_from, read_json};
use super::{KeptStream, StoreError};

/// Idle connections that are kept for the next question.
const KEPT_CONNECTIONS: usize = 4;

/// Answers from the database as of the last commit.
#[derive(Debug, Clone)]
pub struct History {
    path: PathBuf,
    prompts: Prompts,
    idle: Arc<Mutex<Vec<Connection>>>,
}

/// Which jobs a list holds, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only with this status.
    pub status: Option<TaskStatus>,
    /// Only for this model.
    pub model: Option<String>,
    /// Only jobs that came before the one with this number.
    pub before: Option<u64>,
    /// At most this many.
    pub limit: u32,
}

impl History {
    /// Reads the database at `path`, which a writer has made, with its large requests in `prompts`.
    pub fn new(path: PathBuf, prompts: Prompts) -> Self {
        Self { path, prompts, idle: Arc::default() }
    }

    /// A job's row.
    ///
    /// # Errors
    /// When SQLite fails or the file is damaged.
    pub async fn job(&self, job_id: JobId) -> Result<Option<JobRow>, StoreError> {
        self.ask(move |connection| {
            let sql = format!("SELECT {JOB_COLUMNS} FROM jobs WHERE job_id = ?1");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([job_id.uuid().as_bytes()])?;
            rows.next()?.map(job_from).transpose()
        })
        .await
    }

    /// A page of jobs, newest first.
    ///
    /// # Errors
    /// As [`Self::job`].
    pub async fn list(&self, filter: Filter) -> Result<Vec<JobRow>, StoreError> {
        self.ask(move |connection| list(connection, &filter)).await
    }

    /// The events and the result of an ended job.
    ///
    /// # Errors
    /// As [`Self::job`].
    pub async fn stream(&self, job_id: JobId) -> Result<Option<KeptStream>, StoreError> {
        self.ask(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT events, complete, result FROM streams JOIN jobs USING (number)
                 WHERE job_id = ?1 AND ended_at IS NOT NULL",
            )?;
            let kept = statement
                .query_row([job_id.uuid().as_bytes()], |row| {
                    Ok(KeptStream { events: row.get(0)?, complete: row.get(1)?, result: row.get(2)? })
                })
                .optional()?;
            Ok(kept)
        })
        .await
    }

    /// What an ended job asked for, where it was kept.
    ///
    /// # Errors
    /// As [`Self::job`], or when its file cannot be read.
    pub async fn kept_request(&self, job_id: JobId) -> Result<Option<ExecuteRequest>, StoreError> {
        let prompts = self.prompts.clone();
        self.ask(move |connection| kept_request(connection, &prompts, job_id)).await
    }

    /// The placements of a job, oldest first.
    ///
    /// # Errors
    /// As [`Self::job`].
    pub async fn decisions(&self, job_id: JobId) -> Result<Vec<Decision>, StoreError> {
        self.ask(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT decision FROM decisions JOIN jobs USING (number) WHERE job_id = ?1 ORDER BY attempt",
            )?;
            let mut rows = statement.query([job_id.uuid().as_bytes()])?;
            let mut decisions = Vec::new();
            while let Some(row) = rows.next()? {
                decisions.push(read_json("decisions.decision", &row.get::<_, String>(0)?)?);
            }
            Ok(decisions)
        })
        .await
    }

    /// Where the chapters of the journal begin since a time, oldest first, with the one before it.
    ///
    /// # Errors
    /// As [`Self::job`].
    pub async fn chapters(&self, since: Time) -> Result<Vec<Start>, StoreError> {
        self.ask(move |connection| journal::starts(connection, since)).await
    }

    /// One chapter of the journal; `None` when it has been deleted since.
    ///
    /// # Errors
    /// As [`Self::job`].
    pub async fn chapter(&self, start: Start) -> Result<Option<Chapter>, StoreError> {
        self.ask(move |connection| journal::chapter(connection, start)).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let history = self.clone();
        tokio::task::spawn_blocking(move || {
            let connection = history.take()?;
            let answer = question(&connection);
            history.put_back(connection);
            answer
        })
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    fn take(&self) -> Result<Connection, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(connection) = idle {
            return Ok(connection);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.pragma_update(None, "trusted_schema", false)?;
        Ok(connection)
    }

    fn put_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT_CONNECTIONS {
            idle.push(connection);
        }
    }
}

/// What an ended job asked for, where it was kept.
pub(super) fn kept_request(
    connection: &Connection,
    prompts: &Prompts,
    job_id: JobId,
) -> Result<Option<ExecuteRequest>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT request FROM kept_requests WHERE number = (SELECT number FROM jobs WHERE job_id = ?1)",
    )?;
    let row: Option<Option<Vec<u8>>> =
        statement.query_row([job_id.uuid().as_bytes()], |row| row.get(0)).optional()?;
    let Some(in_row) = row else { return Ok(None) };
    let json = in_row.map_or_else(|| prompts.load(job_id), Ok);
    if json.is_err() && !statement.exists([job_id.uuid().as_bytes()])? {
        // Erased while we looked.
        return Ok(None);
    }
    let damaged = |error| StoreError::Damaged {
        column: "kept_requests.request",
        reason: format!("the request of {job_id} cannot be read: {error}"),
    };
    serde_json::from_slice(&json?).map(Some).map_err(damaged)
}

fn list(connection: &Connection, filter: &Filter) -> Result<Vec<JobRow>, StoreError> {
    let mut sql = format!("SELECT {JOB_COLUMNS} FROM jobs WHERE number < ?1");
    if filter.status.is_some() {
        sql.push_str(" AND status = ?2");
        if filter.status.is_some_and(|status| !status.is_terminal()) {
            sql.push_str(" AND number IN (SELECT number FROM live)");
        }
    } else {
        sql.push_str(" AND ?2 IS NULL");
    }
    if filter.model.is_some() {
        sql.push_str(" AND model = ?3");
    } else {
        sql.push_str(" AND ?3 IS NULL");
    }
    sql.push_str(" ORDER BY number DESC LIMIT ?4");
    let before = filter.before.and_then(|number| i64::try_from(number).ok()).unwrap_or(i64::MAX);
    let status = filter.status.map(TaskStatus::as_str);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query((before, status, &filter.model, filter.limit))?;
    let mut jobs = Vec::new();
    while let Some(row) = rows.next()? {
        jobs.push(job_from(row)?);
    }
    Ok(jobs)
}
