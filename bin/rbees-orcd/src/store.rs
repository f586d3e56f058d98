//! The database: what the brain decided, in one transaction per batch, before anybody acts on it.

pub mod history;
pub mod journal;
pub mod migrate;
mod policy;
pub mod record;
mod write;

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use api_types::{Attempt, Incarnation, JobId};
use orchestrator_core::{PoolRow, Rows, Time};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use uuid::Uuid;

use self::migrate::{MIGRATIONS, migrate};
use self::record::{JOB_COLUMNS, from_micros, job_from, micros, read_json};
pub use self::write::{Change, KeptStream};
use crate::hashes::HashKey;

/// SQLite before this could lose committed data when its log was reset.
const OLDEST_SQLITE: i32 = 3_051_003;
/// Name of the database in the state root.
pub const FILE_NAME: &str = "orchestrator.db";

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's own report.
    #[error("the database failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file could not be made.
    #[error("{path} could not be opened: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// A change of the tables failed and was rolled back.
    #[error("the migration {name} failed and was rolled back: {error}")]
    Migration {
        /// Which one.
        name: &'static str,
        /// SQLite's words.
        error: rusqlite::Error,
    },
    /// The file was written by a newer rbees.
    #[error(
        "the database is at version {found} and this rbees-orcd knows versions up to {known}: \
         it was written by a newer rbees. Start that version, or move the file away"
    )]
    Newer {
        /// The file's version.
        found: i64,
        /// The newest this build knows.
        known: usize,
    },
    /// The file is some other program's.
    #[error("the file is a database of another program; move it away or choose another --home")]
    Foreign,
    /// A column does not hold what rbees writes.
    #[error("the database is damaged in {column}: {reason}")]
    Damaged {
        /// Table and column.
        column: &'static str,
        /// What is odd.
        reason: String,
    },
    /// The SQLite that was linked is too old.
    #[error("SQLite {found} is linked; 3.51.3 or newer is needed, older ones can lose committed data")]
    OldSqlite {
        /// Its version.
        found: &'static str,
    },
}

/// The one connection that writes. Owned by the driver's thread.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
}

/// What a restart needs beside the brain's own rows.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The brain's rows.
    pub rows: Rows,
    /// For every job that has not ended: the events that were published so far.
    pub published: Vec<(JobId, Vec<u8>)>,
    /// The largest time that was ever written.
    pub last_time: Time,
}

impl Store {
    /// Opens or makes the database in the folder `home`, and brings its tables up to date.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(home: &Path) -> Result<Self, StoreError> {
        assert_sqlite_version()?;
        let path = home.join(FILE_NAME);
        make_private(&path)?;
        let mut connection = Connection::open(&path)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "secure_delete", true)?;
        connection.set_prepared_statement_cache_capacity(64);
        migrate(&mut connection, MIGRATIONS)?;
        let store = Self { connection, path };
        // What a crash left in the log may be prompts that were erased from the tables.
        store.checkpoint()?;
        Ok(store)
    }

    /// The key under which prompts are hashed; `draw` makes it when the database is new.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn hash_key(&mut self, draw: impl FnOnce() -> [u8; 16]) -> Result<HashKey, StoreError> {
        let halves = (self.meta("hash_key_0")?, self.meta("hash_key_1")?);
        if let (Some(first), Some(second)) = halves {
            return Ok(HashKey(
                (i128::from(first) << 64 | i128::from(second) & i128::from(u64::MAX)).to_be_bytes(),
            ));
        }
        let key = i128::from_be_bytes(draw());
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        write::put_meta(&transaction, "hash_key_0", (key >> 64) as i64)?;
        write::put_meta(&transaction, "hash_key_1", key as i64)?;
        transaction.commit()?;
        Ok(HashKey(key.to_be_bytes()))
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes everything in one transaction. When this returns, it survives a power cut.
    ///
    /// # Errors
    /// When SQLite fails; nothing was written then.
    pub fn commit(&mut self, changes: &[Change], now: Time) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for change in changes {
            write::apply(&transaction, change)?;
        }
        write::put_meta(&transaction, "last_time", micros(now))?;
        transaction.commit()?;
        Ok(())
    }

    /// Everything a restart needs. Ended jobs are included while their idempotency keys count,
    /// which is until `idempotency_kept_ms` after their end.
    ///
    /// # Errors
    /// When SQLite fails or the file is damaged.
    pub fn load(&self, idempotency_kept_ms: u64) -> Result<Recovered, StoreError> {
        let last_time = from_micros(self.meta("last_time")?.unwrap_or(0));
        let keys_since = Time(last_time.0.saturating_sub(idempotency_kept_ms));
        let next_incarnation =
            self.meta("next_incarnation")?.and_then(|number| u64::try_from(number).ok()).map(Incarnation);
        let rows = Rows {
            jobs: self.load_jobs(keys_since)?,
            workers: self.load_workers(next_incarnation.unwrap_or(Incarnation(1)))?,
            pools: self.load_pools()?,
            last_number: self.last_number()?,
            next_incarnation,
            decisions: self.load_decisions()?,
            estimates: self.load_estimates()?,
            policies: policy::load(&self.connection)?,
        };
        Ok(Recovered { rows, published: self.load_published()?, last_time })
    }

    /// What a job that has not ended asked for, as JSON.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn request(&self, job_id: JobId) -> Result<Option<Vec<u8>>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT request FROM requests WHERE number = (SELECT number FROM jobs WHERE job_id = ?1)",
        )?;
        Ok(statement.query_row([job_id.uuid().as_bytes()], |row| row.get(0)).optional()?)
    }

    /// Deletes up to `limit` jobs that ended before `before`; says how many there were.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn prune(&mut self, before: Time, limit: u32) -> Result<usize, StoreError> {
        let deleted = self.connection.execute(
            "DELETE FROM jobs WHERE number IN
             (SELECT number FROM jobs WHERE ended_at IS NOT NULL AND ended_at < ?1 LIMIT ?2)",
            (micros(before), limit),
        )?;
        Ok(deleted)
    }

    /// Deletes chapters of the journal that ended before `before` or are too much; says how many
    /// rows there were.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn prune_journal(&mut self, before: Time, most_bytes: u64) -> Result<usize, StoreError> {
        journal::prune(&self.connection, before, most_bytes)
    }

    /// Copies the write-ahead log into the file and empties it, so that erased text is gone from
    /// it too.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    fn meta(&self, key: &str) -> Result<Option<i64>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
        Ok(statement.query_row([key], |row| row.get(0)).optional()?)
    }

    /// The largest job number ever given. A row that is there counts whatever the note says: a number
    /// given twice would end the daemon at its next commit.
    fn last_number(&self) -> Result<u64, StoreError> {
        let noted = self.meta("last_number")?;
        let held: Option<i64> =
            self.connection.query_row("SELECT max(number) FROM jobs", [], |row| row.get(0))?;
        Ok(noted.max(held).and_then(|number| u64::try_from(number).ok()).unwrap_or(0))
    }

    fn load_jobs(&self, keys_since: Time) -> Result<Vec<orchestrator_core::JobRow>, StoreError> {
        let mut statement = self.connection.prepare(&format!(
            "SELECT {JOB_COLUMNS} FROM jobs WHERE ended_at IS NULL
             UNION ALL
             SELECT {JOB_COLUMNS} FROM jobs
             WHERE ended_at >= ?1 AND detail ->> '$.idempotency' IS NOT NULL"
        ))?;
        let mut found = statement.query([micros(keys_since)])?;
        let mut jobs = Vec::new();
        while let Some(row) = found.next()? {
            jobs.push(job_from(row)?);
        }
        Ok(jobs)
    }

    fn load_workers(&self, next: Incarnation) -> Result<Vec<orchestrator_core::WorkerRow>, StoreError> {
        self.texts("SELECT detail FROM workers ORDER BY worker_id")?
            .iter()
            .map(|text| {
                read_json::<record::WorkerDetail>("workers.detail", text).map(|detail| detail.into_row(next))
            })
            .collect()
    }

    fn load_pools(&self) -> Result<Vec<PoolRow>, StoreError> {
        self.texts("SELECT detail FROM pools ORDER BY pool_id")?
            .iter()
            .map(|text| read_json("pools.detail", text))
            .collect()
    }

    fn load_estimates(&self) -> Result<Option<orchestrator_core::Estimates>, StoreError> {
        let texts = self.texts("SELECT detail FROM estimates")?;
        texts.first().map(|text| read_json("estimates.detail", text)).transpose()
    }

    fn texts(&self, sql: &str) -> Result<Vec<String>, StoreError> {
        let mut statement = self.connection.prepare(sql)?;
        let texts = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(texts)
    }

    fn load_decisions(&self) -> Result<Vec<(JobId, Attempt, api_types::task::Decision)>, StoreError> {
        let mut statement = self.connection.prepare(
            "SELECT jobs.job_id, attempt, decision FROM decisions JOIN jobs USING (number)
             WHERE jobs.ended_at IS NULL ORDER BY number, attempt",
        )?;
        let mut found = statement.query([])?;
        let mut decisions = Vec::new();
        while let Some(row) = found.next()? {
            let job_id = JobId::from_uuid(Uuid::from_bytes(row.get::<_, [u8; 16]>(0)?));
            let text: String = row.get(2)?;
            decisions.push((job_id, Attempt(row.get(1)?), read_json("decisions.decision", &text)?));
        }
        Ok(decisions)
    }

    fn load_published(&self) -> Result<Vec<(JobId, Vec<u8>)>, StoreError> {
        let mut statement = self.connection.prepare(
            "SELECT jobs.job_id, events FROM streams JOIN jobs USING (number) WHERE jobs.ended_at IS NULL",
        )?;
        let mut found = statement.query([])?;
        let mut published = Vec::new();
        while let Some(row) = found.next()? {
            let job_id = JobId::from_uuid(Uuid::from_bytes(row.get::<_, [u8; 16]>(0)?));
            published.push((job_id, row.get(1)?));
        }
        Ok(published)
    }
}

fn assert_sqlite_version() -> Result<(), StoreError> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(StoreError::OldSqlite { found: rusqlite::version() });
    }
    Ok(())
}

/// Makes the file readable by its owner only, before SQLite writes prompts into it. Its log and
/// index files take over the mode.
fn make_private(path: &Path) -> Result<(), StoreError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop).map_err(|error| StoreError::File { path: path.to_owned(), error })
}
