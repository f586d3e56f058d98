//! The work on the disk that nobody waits for, on a thread and a connection of its own: copying the
//! log into the file, erasing large requests, looking how much room is left.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use api_types::JobId;
use bytes::Bytes;
use rusqlite::{Connection, OpenFlags};

use super::prompts::{LARGEST_IN_ROW, Prompts};
use super::room::Room;
use super::{StoreError, log_file};

/// How often the room on the disk is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long text that was erased from the tables may stay in the log while nobody asks.
const CLEAR_EVERY: Duration = Duration::from_secs(10);
/// How long this thread waits for the writer, whose commits are short.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the log is kept short, in pages of 4 KiB. SQLite writes over the log from its start once all
/// of it is in the file; it is never truncated for that, because overwriting is cheaper than growing.
pub(super) mod log {
    /// So many more pages in the log, and this thread copies them.
    pub const STEP: u32 = 256;
    /// From so many on the writer copies the last few itself, so that the log starts over although
    /// commits never pause.
    pub const START_OVER: u32 = 2_048;
    /// Copying at most so many keeps the writer's part of it short.
    pub const FEW: u32 = 128;
    /// From so many on the writer copies all, however long it takes: 64 MiB.
    pub const MOST: u32 = 16_384;
}

/// What is known of the log by both threads.
#[derive(Debug, Default)]
pub(super) struct LogState {
    /// Pages in it, as of the last commit.
    pub pages: AtomicU32,
    /// Pages of it that are copied, as of the last look.
    pub copied: AtomicU32,
    /// Whether so few are left that the writer may copy them.
    pub nearly_copied: AtomicBool,
    /// Whether it holds text that was erased from the tables.
    pub erased: AtomicBool,
    /// Whether copying is asked for and has not begun.
    asked: AtomicBool,
}

enum Chore {
    CopyLog,
    ClearLog,
    Erase(JobId),
    Finish(mpsc::Sender<()>),
}

/// Gives work to the thread. Cheap to clone; the thread ends with the last of them.
#[derive(Debug, Clone)]
pub struct Housekeeper {
    chores: mpsc::Sender<Chore>,
    prompts: Prompts,
    room: Arc<Room>,
    log: Arc<LogState>,
}

/// A request on its way into the database.
#[derive(Debug)]
pub enum StoredRequest {
    /// Its JSON, for the row.
    Row(Bytes),
    /// It lies in its job's file.
    File(PromptFile),
}

/// A large request that is on disk; erased again when this is dropped before a commit kept it.
#[derive(Debug)]
pub struct PromptFile {
    job_id: JobId,
    chores: mpsc::Sender<Chore>,
    kept: AtomicBool,
}

impl PromptFile {
    /// A commit refers to the file.
    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for PromptFile {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed) {
            let _ = self.chores.send(Chore::Erase(self.job_id));
        }
    }
}

impl Housekeeper {
    /// Starts the thread for the database at `path`, which a writer has made.
    ///
    /// # Errors
    /// When the database cannot be opened or the thread not be started.
    pub(super) fn start(path: &Path, prompts: Prompts) -> Result<Self, StoreError> {
        let (chores, inbox) = mpsc::channel();
        let home = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        let keeper =
            Self { chores, prompts: prompts.clone(), room: Arc::new(Room::new(home)), log: Arc::default() };
        keeper.room.look();
        let thread = Thread {
            inbox,
            connection: open(path)?,
            path: path.to_owned(),
            prompts,
            room: Arc::clone(&keeper.room),
            log: Arc::clone(&keeper.log),
        };
        std::thread::Builder::new()
            .name("housekeeper".to_owned())
            .spawn(move || thread.run())
            .map_err(|error| StoreError::File { path: path.to_owned(), error })?;
        Ok(keeper)
    }

    /// Writes a large request to its file. When this returns, it survives a power cut. Waits for the
    /// disk.
    ///
    /// # Errors
    /// When the system refuses; nothing is left then.
    pub fn store(&self, job_id: JobId, json: &[u8]) -> Result<PromptFile, StoreError> {
        self.prompts.store(job_id, json).inspect_err(|error| self.room.refused_by(error))?;
        Ok(PromptFile { job_id, chores: self.chores.clone(), kept: AtomicBool::new(false) })
    }

    /// Whether a request of so many bytes is written to a file first.
    pub const fn is_large(bytes: usize) -> bool {
        bytes > LARGEST_IN_ROW
    }

    /// The room on the disk.
    pub fn room(&self) -> &Room {
        &self.room
    }

    pub(super) fn log(&self) -> &Arc<LogState> {
        &self.log
    }

    /// Erases a large request soon.
    pub(super) fn erase(&self, job_id: JobId) {
        let _ = self.chores.send(Chore::Erase(job_id));
    }

    /// Has the log copied soon.
    pub(super) fn copy_log(&self) {
        if !self.log.asked.swap(true, Ordering::Relaxed) {
            let _ = self.chores.send(Chore::CopyLog);
        }
    }

    /// Has erased text removed from the log soon, where there is any; see [`super::log_file`].
    pub(super) fn clear_log(&self) {
        let _ = self.chores.send(Chore::ClearLog);
    }

    /// Waits until everything that was asked for is done.
    pub(super) fn finish(&self) {
        let (done, finished) = mpsc::channel();
        if self.chores.send(Chore::Finish(done)).is_ok() {
            let _ = finished.recv();
        }
    }
}

struct Thread {
    inbox: mpsc::Receiver<Chore>,
    connection: Connection,
    path: PathBuf,
    prompts: Prompts,
    room: Arc<Room>,
    log: Arc<LogState>,
}

impl Thread {
    fn run(mut self) {
        let mut looked = Instant::now();
        let mut clear_at = Instant::now() + CLEAR_EVERY;
        loop {
            if looked.elapsed() >= LOOK_EVERY {
                self.room.look();
                looked = Instant::now();
            }
            if Instant::now() >= clear_at {
                clear_at = self.clear_log();
            }
            match self.inbox.recv_timeout(LOOK_EVERY.saturating_sub(looked.elapsed())) {
                Ok(Chore::CopyLog) => self.copy_log(),
                Ok(Chore::ClearLog) => clear_at = self.clear_log(),
                Ok(Chore::Erase(job_id)) => self.erase(job_id),
                Ok(Chore::Finish(done)) => {
                    let _ = done.send(());
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Copies what is in the log without holding up anybody.
    fn copy_log(&self) {
        self.log.asked.store(false, Ordering::Relaxed);
        match passive(&self.connection) {
            Ok(Copied { pages, copied }) => {
                self.log.copied.store(copied, Ordering::Relaxed);
                let nearly = pages >= log::START_OVER && pages - copied.min(pages) <= log::FEW;
                self.log.nearly_copied.store(nearly, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(code = "LOG_NOT_COPIED", %error, "the log could not be copied; it grows on");
            }
        }
    }

    /// Removes erased text from the log. Gives when to look again: soon when somebody was in the way.
    fn clear_log(&mut self) -> Instant {
        let later = Instant::now() + CLEAR_EVERY;
        if !self.log.erased.swap(false, Ordering::Relaxed) {
            return later;
        }
        match log_file::clear(&mut self.connection, &self.path) {
            Ok(true) => later,
            Ok(false) => {
                self.log.erased.store(true, Ordering::Relaxed);
                Instant::now() + LOOK_EVERY
            }
            Err(error) => {
                self.log.erased.store(true, Ordering::Relaxed);
                tracing::warn!(code = "LOG_NOT_CLEARED", %error, "the log still holds erased text");
                later
            }
        }
    }

    fn erase(&self, job_id: JobId) {
        if let Err(error) = self.prompts.erase(job_id) {
            tracing::warn!(code = "PROMPT_NOT_ERASED", %error, "tried again at the next start");
        }
    }
}

/// How far the log was copied, in pages.
pub(super) struct Copied {
    pub pages: u32,
    pub copied: u32,
}

/// Copies as much of the log as nobody holds up.
pub(super) fn passive(connection: &Connection) -> Result<Copied, StoreError> {
    let mut statement = connection.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?;
    Ok(statement.query_row([], |row| {
        let count = |index| row.get::<_, i64>(index).map(|pages| u32::try_from(pages).unwrap_or(0));
        Ok(Copied { pages: count(1)?, copied: count(2)? })
    })?)
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    super::settle_durability(&connection)?;
    Ok(connection)
}
