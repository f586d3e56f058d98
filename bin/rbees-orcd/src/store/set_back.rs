//! Times that were written under a wrong clock.

use orchestrator_core::{JobRow, Time};
use rusqlite::{Transaction, TransactionBehavior};

use super::record::{JOB_COLUMNS, job_from, micros, read_json};
use super::{Store, StoreError, sessions, write};

impl Store {
    /// Sets back by `by_ms` what lies after `now`, so that nothing waits for a time that is years
    /// away: jobs that have not ended with all their times, as those depend on each other; jobs that
    /// ended after `now`; sessions; workers that were asked for. The journal stays as it was told.
    ///
    /// # Errors
    /// When SQLite fails; nothing was changed then.
    pub fn set_back(&mut self, by_ms: u64, now: Time) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let earlier = |time: &mut Time| time.0 = time.0.saturating_sub(by_ms);
        for mut row in jobs(&transaction, now)? {
            set_back_job(&mut row, &earlier);
            write::rewrite_job(&transaction, &row)?;
        }
        for mut row in sessions::load(&transaction)? {
            earlier(&mut row.created_at);
            earlier(&mut row.last_used_at);
            sessions::put(&transaction, &row)?;
        }
        for mut row in spawns(&transaction)? {
            earlier(&mut row.asked_at);
            write::put_spawn(&transaction, &row)?;
        }
        write::put_meta(&transaction, "last_time", micros(now))?;
        Ok(transaction.commit()?)
    }
}

fn jobs(transaction: &Transaction<'_>, now: Time) -> Result<Vec<JobRow>, StoreError> {
    let mut statement = transaction
        .prepare(&format!("SELECT {JOB_COLUMNS} FROM jobs WHERE ended_at IS NULL OR ended_at > ?1"))?;
    let mut found = statement.query([micros(now)])?;
    let mut jobs = Vec::new();
    while let Some(row) = found.next()? {
        jobs.push(job_from(row)?);
    }
    Ok(jobs)
}

fn spawns(transaction: &Transaction<'_>) -> Result<Vec<orchestrator_core::SpawnRow>, StoreError> {
    let mut statement = transaction.prepare("SELECT detail FROM spawns")?;
    let texts: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    texts.iter().map(|text| read_json("spawns.detail", text)).collect()
}

fn set_back_job(row: &mut JobRow, earlier: &impl Fn(&mut Time)) {
    let times = [&mut row.deadline, &mut row.not_before, &mut row.cancel_requested_at, &mut row.ended_at];
    times.into_iter().flatten().for_each(earlier);
    earlier(&mut row.submitted_at);
    if let Some(attempt) = &mut row.attempt {
        earlier(&mut attempt.dispatched_at);
    }
}
