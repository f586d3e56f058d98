//! Reading the whole database, to say whether it is sound.

use api_types::JobId;
use api_types::worker::ExecuteRequest;
use rusqlite::Connection;

use super::{Store, StoreError, history, job_id};

/// What a start relies on: checked each time, and small however many ended jobs are kept.
const RELIED_ON: [&str; 4] = ["meta", "live", "workers", "pools"];

/// What a sound database holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// All jobs.
    pub jobs: u64,
    /// Jobs that have not ended; each has its request, whole.
    pub open: u64,
    /// Registered workers.
    pub workers: u64,
    /// Registered pools.
    pub pools: u64,
}

impl Store {
    /// Reads everything as a start would, and every page beside.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] with the first thing that is not as it should be.
    pub fn check(&self) -> Result<Report, StoreError> {
        sound(&self.connection, "PRAGMA integrity_check(1)")?;
        let recovered = self.load(0)?;
        let open = self.jobs_of("SELECT job_id FROM jobs WHERE ended_at IS NULL")?;
        for job_id in &open {
            self.check_request(*job_id)?;
        }
        for job_id in self.jobs_of("SELECT job_id FROM kept_requests JOIN jobs USING (number)")? {
            history::kept_request(&self.connection, &self.prompts, job_id)?;
        }
        let jobs: i64 = self.connection.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0))?;
        Ok(Report {
            jobs: u64::try_from(jobs).unwrap_or(0),
            open: open.len() as u64,
            workers: recovered.rows.workers.len() as u64,
            pools: recovered.rows.pools.len() as u64,
        })
    }

    /// A request must be one that a worker can be given.
    fn check_request(&self, job_id: JobId) -> Result<(), StoreError> {
        let damaged = |what: String| StoreError::Damaged {
            column: "live.request",
            reason: format!("the request of {job_id} {what}"),
        };
        let json = self.request(job_id)?.ok_or_else(|| damaged("is missing".to_owned()))?;
        let request: ExecuteRequest =
            serde_json::from_slice(&json).map_err(|error| damaged(format!("cannot be read: {error}")))?;
        if request.prompt.is_none() && request.messages.is_none() {
            return Err(damaged("has no prompt".to_owned()));
        }
        Ok(())
    }

    fn jobs_of(&self, sql: &str) -> Result<Vec<JobId>, StoreError> {
        let mut statement = self.connection.prepare(sql)?;
        let ids = statement.query_map([], job_id)?.collect::<Result<_, _>>()?;
        Ok(ids)
    }
}

/// Checks the pages that a start relies on.
pub(super) fn check_relied_on(connection: &Connection) -> Result<(), StoreError> {
    RELIED_ON.iter().try_for_each(|table| sound(connection, &format!("PRAGMA quick_check({table})")))
}

fn sound(connection: &Connection, check: &str) -> Result<(), StoreError> {
    let said: String = connection.query_row(check, [], |row| row.get(0))?;
    if said == "ok" {
        return Ok(());
    }
    Err(StoreError::Damaged { column: "its pages", reason: said })
}
