//! The database: what the brain decided, in one transaction per batch, before anybody acts on it.

mod check;
mod error;
pub mod history;
pub mod housekeeping;
pub mod journal;
mod log_file;
pub mod migrate;
mod policy;
pub mod prompts;
pub mod record;
pub mod room;
mod sessions;
mod set_back;
mod write;

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use api_types::{Attempt, Incarnation, JobId};
use orchestrator_core::{PoolRow, Rows, Time};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, Params, Row, TransactionBehavior};
use uuid::Uuid;

pub use self::check::Report;
pub use self::error::{Class, StoreError};
use self::history::History;
use self::housekeeping::{Copied, Housekeeper, StoredRequest, log};
use self::migrate::{MIGRATIONS, migrate};
use self::prompts::Prompts;
use self::record::{JOB_COLUMNS, from_micros, job_from, micros, read_json};
pub use self::write::{Change, KeptStream};
use crate::hashes::HashKey;

/// SQLite before this could lose committed data when its log was reset.
const OLDEST_SQLITE: i32 = 3_051_003;
/// How long the writer waits for another program that holds the database.
const PATIENCE: Duration = Duration::from_secs(5);
/// Name of the database in the state root.
pub const FILE_NAME: &str = "orchestrator.db";

/// The one connection that writes. Owned by the driver's thread.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    prompts: Prompts,
    keeps_requests: bool,
    keeper: Housekeeper,
}

/// What a restart needs beside the brain's own rows.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The brain's rows.
    pub rows: Rows,
    /// For every job that has not ended: the events that were published so far.
    pub published: Vec<(JobId, Vec<u8>)>,
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
        let prompts = Prompts::open(home)?;
        let mut connection = Connection::open(&path)?;
        connection.busy_timeout(PATIENCE)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::Setting("journal_mode=WAL"));
        }
        settle_durability(&connection)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "secure_delete", true)?;
        connection.set_prepared_statement_cache_capacity(64);
        migrate(&mut connection, MIGRATIONS)?;
        check::check_relied_on(&connection)?;
        let keeper = Housekeeper::start(&path, prompts.clone())?;
        watch_log(&mut connection, &keeper)?;
        let store = Self { connection, path, prompts, keeps_requests: false, keeper };
        // What a crash left in the log may be prompts that were erased from the tables; and after a
        // sync that failed, this is what brings the log's pages to the disk once more.
        store.keeper.log().erased.store(true, Ordering::Relaxed);
        if store.empty_log()? {
            store.grow_log();
        }
        store.sweep_prompts()?;
        Ok(store)
    }

    /// Whether requests stay when their jobs end, for as long as the jobs do.
    pub const fn keep_requests(&mut self, keep: bool) {
        self.keeps_requests = keep;
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

    /// Read-only questions about what it holds, on connections of their own.
    pub fn history(&self) -> History {
        History::new(self.path.clone(), self.prompts.clone())
    }

    /// Who works on the disk in the background.
    pub fn keeper(&self) -> &Housekeeper {
        &self.keeper
    }

    /// Writes everything in one transaction. When this returns, it survives a power cut.
    ///
    /// # Errors
    /// When SQLite fails; nothing was written then.
    pub fn commit(&mut self, changes: &[Change], now: Time) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut files = Vec::new();
        for change in changes {
            files.extend(write::apply(&transaction, change, self.keeps_requests)?);
        }
        if let Some(number) = write::last_number(changes) {
            write::put_meta(&transaction, "last_number", number)?;
        }
        write::put_meta(&transaction, "last_time", micros(now))?;
        transaction.commit()?;
        self.after_commit(changes, files)
    }

    fn after_commit(&self, changes: &[Change], files: Vec<JobId>) -> Result<(), StoreError> {
        for change in changes {
            match change {
                Change::InsertJob { request: StoredRequest::File(file), .. } => file.keep(),
                Change::EndJob { .. } => self.keeper.log().erased.store(true, Ordering::Relaxed),
                _ => {}
            }
        }
        for job_id in files {
            self.keeper.erase(job_id);
        }
        self.bound_log()
    }

    /// Keeps the log short: the other thread copies most of it, this one the last few pages.
    fn bound_log(&self) -> Result<(), StoreError> {
        let state = self.keeper.log();
        let pages = state.pages.load(Ordering::Relaxed);
        let copied = state.copied.load(Ordering::Relaxed).min(pages);
        if state.nearly_copied.swap(false, Ordering::Relaxed) || pages >= log::MOST {
            return self.copy_rest();
        }
        if pages - copied >= log::STEP {
            self.keeper.copy_log();
        }
        Ok(())
    }

    /// Without room the log just grows on.
    fn copy_rest(&self) -> Result<(), StoreError> {
        let state = self.keeper.log();
        match housekeeping::passive(&self.connection) {
            Ok(Copied { copied, .. }) => state.copied.store(copied, Ordering::Relaxed),
            Err(error) if matches!(error.class(), Class::Full | Class::Busy) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Everything a restart needs. Ended jobs are included while their idempotency keys count,
    /// which is until `idempotency_kept_ms` after their end.
    ///
    /// # Errors
    /// When SQLite fails or the file is damaged.
    pub fn load(&self, idempotency_kept_ms: u64) -> Result<Recovered, StoreError> {
        let keys_since = Time(self.last_time()?.0.saturating_sub(idempotency_kept_ms));
        let next_incarnation =
            self.meta("next_incarnation")?.and_then(|number| u64::try_from(number).ok()).map(Incarnation);
        let rows = Rows {
            jobs: self.load_jobs(keys_since)?,
            workers: self.load_workers(next_incarnation.unwrap_or(Incarnation(1)))?,
            pools: self.load_pools()?,
            spawns: self.load_spawns()?,
            sessions: sessions::load(&self.connection)?,
            last_number: self.last_number()?,
            next_incarnation,
            decisions: self.load_decisions()?,
            estimates: self.load_estimates()?,
            policies: policy::load(&self.connection)?,
        };
        Ok(Recovered { rows, published: self.load_published()? })
    }

    /// The largest time that was ever written.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn last_time(&self) -> Result<Time, StoreError> {
        Ok(from_micros(self.meta("last_time")?.unwrap_or(0)))
    }

    /// What a job that has not ended asked for, as JSON.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn request(&self, job_id: JobId) -> Result<Option<Vec<u8>>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT request FROM live WHERE number = (SELECT number FROM jobs WHERE job_id = ?1)",
        )?;
        let row: Option<Option<Vec<u8>>> =
            statement.query_row([job_id.uuid().as_bytes()], |row| row.get(0)).optional()?;
        match row {
            Some(None) => self.prompts.load(job_id).map(Some),
            in_row => Ok(in_row.flatten()),
        }
    }

    /// Deletes up to `limit` jobs that ended before `before`; says how many there were.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn prune(&mut self, before: Time, limit: u32) -> Result<usize, StoreError> {
        let deleted = self.delete_jobs(
            "DELETE FROM jobs WHERE number IN
             (SELECT number FROM jobs WHERE ended_at IS NOT NULL AND ended_at < ?1 LIMIT ?2)
             RETURNING job_id",
            (micros(before), limit),
        )?;
        Ok(deleted.len())
    }

    /// Deletes one job that has ended, or up to `limit` of them; says which.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn erase(&self, which: Option<JobId>, limit: u32) -> Result<Vec<JobId>, StoreError> {
        self.delete_jobs(
            "DELETE FROM jobs WHERE number IN
             (SELECT number FROM jobs WHERE ended_at IS NOT NULL AND (?1 IS NULL OR job_id = ?1) LIMIT ?2)
             RETURNING job_id",
            (which.map(|job_id| *job_id.uuid().as_bytes()), limit),
        )
    }

    /// Deletes jobs that have ended, with all that was kept of them; gives which.
    fn delete_jobs(&self, sql: &str, which: impl Params) -> Result<Vec<JobId>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let deleted = statement.query_map(which, job_id)?.collect::<Result<Vec<JobId>, _>>()?;
        if !deleted.is_empty() {
            self.keeper.log().erased.store(true, Ordering::Relaxed);
        }
        // Most have no file; one that is not there is gone already.
        deleted.iter().for_each(|job_id| self.keeper.erase(*job_id));
        Ok(deleted)
    }

    /// Deletes up to `limit` rows of chapters of the journal that ended before `before` or are too
    /// much; says how many rows there were.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn prune_journal(&mut self, before: Time, most_bytes: u64, limit: u32) -> Result<usize, StoreError> {
        journal::prune(&self.connection, before, most_bytes, limit)
    }

    /// Has erased text removed from the log too, soon and elsewhere.
    pub fn clear_log(&self) {
        self.keeper.clear_log();
    }

    /// Copies the log into the database and cuts its file to nothing. Says whether it could: not
    /// while somebody reads, nor without room.
    fn empty_log(&self) -> Result<bool, StoreError> {
        // A reader must not hold up the start or the end.
        self.connection.busy_timeout(Duration::ZERO)?;
        let emptied =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
        self.connection.busy_timeout(PATIENCE)?;
        match emptied.map_err(StoreError::from) {
            Ok(busy) => {
                self.keeper.log().erased.store(busy, Ordering::Relaxed);
                Ok(!busy)
            }
            Err(error) if matches!(error.class(), Class::Full | Class::Busy) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A log that has its blocks takes commits faster; without them it works too.
    fn grow_log(&self) {
        if let Err(error) = log_file::grow(&self.path, self.keeper.room().free()) {
            tracing::warn!(code = "LOG_NOT_GROWN", %error, "commits are slower than they could be");
        }
    }

    /// Ends in order: large requests of ended jobs are erased and the log is empty.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn close(self) -> Result<(), StoreError> {
        self.keeper.finish();
        self.empty_log().map(drop)
    }

    /// Erases large requests that belong to no job which has not ended or keeps its own: a crash came
    /// between.
    fn sweep_prompts(&self) -> Result<(), StoreError> {
        let mut statement = self
            .connection
            .prepare(
                "SELECT job_id FROM live JOIN jobs USING (number) WHERE live.request IS NULL
                 UNION ALL
                 SELECT job_id FROM kept_requests JOIN jobs USING (number) WHERE kept_requests.request IS NULL",
            )?;
        let wanted: HashSet<JobId> = statement.query_map([], job_id)?.collect::<Result<_, _>>()?;
        let swept = self.prompts.sweep(&wanted)?;
        if swept > 0 {
            tracing::info!(code = "PROMPTS_SWEPT", swept, "requests of ended jobs were erased");
        }
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
            "SELECT {JOB_COLUMNS} FROM jobs WHERE number IN (SELECT number FROM live)
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

    fn load_spawns(&self) -> Result<Vec<orchestrator_core::SpawnRow>, StoreError> {
        self.texts("SELECT detail FROM spawns ORDER BY worker_id")?
            .iter()
            .map(|text| read_json("spawns.detail", text))
            .collect()
    }

    fn texts(&self, sql: &str) -> Result<Vec<String>, StoreError> {
        let mut statement = self.connection.prepare(sql)?;
        let texts = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(texts)
    }

    fn load_decisions(&self) -> Result<Vec<(JobId, Attempt, api_types::task::Decision)>, StoreError> {
        let mut statement = self.connection.prepare(
            "SELECT jobs.job_id, attempt, decision FROM live JOIN decisions USING (number)
             JOIN jobs USING (number) ORDER BY number, attempt",
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
        let mut statement = self
            .connection
            .prepare("SELECT jobs.job_id, events, number FROM live JOIN jobs USING (number)")?;
        let mut found = statement.query([])?;
        let mut published = Vec::new();
        while let Some(row) = found.next()? {
            let job_id = JobId::from_uuid(Uuid::from_bytes(row.get::<_, [u8; 16]>(0)?));
            let mut frames: Vec<u8> = row.get(1)?;
            self.load_checkpoints(row.get(2)?, &mut frames)?;
            published.push((job_id, frames));
        }
        Ok(published)
    }

    /// Adds what a running job had said by its last checkpoint.
    fn load_checkpoints(&self, number: i64, frames: &mut Vec<u8>) -> Result<(), StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT frames FROM checkpoints WHERE number = ?1 ORDER BY first_event")?;
        let mut found = statement.query([number])?;
        while let Some(row) = found.next()? {
            frames.extend(row.get::<_, Vec<u8>>(0)?);
        }
        Ok(())
    }
}

#[cfg(test)]
impl Store {
    /// From now on the file does not grow, as on a full disk.
    pub fn grow_no_more(&self) {
        self.connection.pragma_update(None, "max_page_count", 1).expect("set");
    }
}

/// The job whose id is the first column.
fn job_id(row: &Row<'_>) -> rusqlite::Result<JobId> {
    row.get(0).map(|id| JobId::from_uuid(Uuid::from_bytes(id)))
}

/// Every commit reaches the disk before it is answered. A development build can be told not to
/// (`RBEES_TEST_SYNCHRONOUS=normal`), so that the power-loss test can show that it would notice;
/// a release build has no such switch.
fn settle_durability(connection: &Connection) -> Result<(), StoreError> {
    let weaker = cfg!(debug_assertions)
        && std::env::var("RBEES_TEST_SYNCHRONOUS").is_ok_and(|level| level == "normal");
    connection.pragma_update(None, "synchronous", if weaker { "NORMAL" } else { "FULL" })?;
    Ok(())
}

/// The log is copied by the housekeeper, not by the commit that happens to fill it; and nothing is
/// copied by a connection that closes, which may do so because the disk failed.
fn watch_log(connection: &mut Connection, keeper: &Housekeeper) -> Result<(), StoreError> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let state = std::sync::Arc::clone(keeper.log());
    connection.wal_hook(Some(move |_: &mut _, pages| {
        state.pages.store(u32::try_from(pages).unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }))?;
    Ok(())
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
