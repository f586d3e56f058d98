//! Who listens to which job: one log per job, any number of readers, none of whom can hold up
//! another or the worker.

pub mod log;
pub mod reader;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use api_types::JobId;
use orchestrator_core::Event;

pub use self::log::{AHEAD, Appended, JobLog, Unsaved};
pub use self::reader::{KEEP_ALIVE_EVERY, Reader};

/// Logs of ended `durability: memory` jobs that are kept for late readers.
const KEPT_ENDED: usize = 256;

/// Told of what the brain has to know of a job's readers: that it has its first or lost its last, and
/// that it is abandoned. Called while the job's log is locked, so it may only note that down.
pub type OnReaders = Box<dyn Fn(Event) + Send + Sync>;
/// Called afterwards, with nothing locked: what was noted may be handled.
pub type Noted = Box<dyn Fn() + Send + Sync>;

/// The logs of all jobs that have not ended.
#[derive(Clone)]
pub struct Subscribers {
    shared: Arc<Shared>,
}

struct Shared {
    logs: Mutex<HashMap<JobId, Arc<JobLog>>>,
    ended: Mutex<VecDeque<Arc<JobLog>>>,
    /// The logs of living jobs that can go on elsewhere.
    carried: Mutex<HashMap<JobId, Arc<JobLog>>>,
    any_carried: AtomicBool,
    on_readers: OnReaders,
    noted: Noted,
    closing: AtomicBool,
}

impl fmt::Debug for Subscribers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribers").finish_non_exhaustive()
    }
}

impl Subscribers {
    /// No logs yet.
    pub fn new(on_readers: OnReaders, noted: Noted) -> Self {
        let shared = Shared {
            logs: Mutex::default(),
            ended: Mutex::default(),
            carried: Mutex::default(),
            any_carried: AtomicBool::new(false),
            on_readers,
            noted,
            closing: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The log of a new job, or of one taken over from the database with the frames published so
    /// far; `complete` is false when a worker's events are missing from it.
    pub fn create(&self, job_id: JobId, frames: &[u8], complete: bool) -> Arc<JobLog> {
        let log = Arc::new(JobLog::new(job_id, frames, complete));
        self.lock().insert(job_id, Arc::clone(&log));
        log
    }

    /// The log of a job that has not ended, or of an ended one that was never on disk.
    pub fn log(&self, job_id: JobId) -> Option<Arc<JobLog>> {
        if let Some(log) = self.lock().get(&job_id) {
            return Some(Arc::clone(log));
        }
        let ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.iter().find(|log| log.job_id() == job_id).cloned()
    }

    /// A reader of the log that goes on after the event `last_event_id`.
    pub fn attach(&self, log: Arc<JobLog>, last_event_id: Option<u64>) -> Reader {
        if log.reader_came(&self.shared.on_readers) {
            (self.shared.noted)();
        }
        Reader::new(self.clone(), log, last_event_id)
    }

    /// A reader from the start, whom the brain has counted already.
    pub fn attach_counted(&self, log: Arc<JobLog>) -> Reader {
        log.count_reader();
        Reader::new(self.clone(), log, None)
    }

    /// Ends every reader with a comment: the orchestrator stops.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        let logs: Vec<_> = self.lock().values().cloned().collect();
        logs.iter().for_each(|log| log.wake());
    }

    /// Whether readers are to leave.
    pub(super) fn are_closing(&self) -> bool {
        self.shared.closing.load(Ordering::SeqCst)
    }

    /// Forgets the log of an ended job; its readers still read it to the end. With `keep` it
    /// stays for a while, because the database does not have it.
    pub fn remove(&self, job_id: JobId, keep: bool) {
        let removed = self.lock().remove(&job_id);
        if self.has_carried() {
            let mut carried = self.lock_carried();
            carried.remove(&job_id);
            self.shared.any_carried.store(!carried.is_empty(), Ordering::Relaxed);
        }
        if let (Some(log), true) = (removed, keep) {
            let mut ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
            ended.push_back(log);
            if ended.len() > KEPT_ENDED {
                ended.pop_front();
            }
        }
    }

    /// Forgets the kept log of one ended job, or of all of them; says whose there were.
    pub fn forget_ended(&self, which: Option<JobId>) -> Vec<JobId> {
        let mut ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let is_meant = |log: &Arc<JobLog>| which.is_none_or(|job_id| log.job_id() == job_id);
        let forgotten = ended.iter().filter(|log| is_meant(log)).map(|log| log.job_id()).collect();
        ended.retain(|log| !is_meant(log));
        forgotten
    }

    /// Keeps what it takes to let a job go on elsewhere; see [`JobLog::carry`].
    pub fn carry(&self, job_id: JobId, durable: bool, reach: u64) {
        let Some(log) = self.log(job_id) else { return };
        log.carry(durable, reach);
        self.lock_carried().insert(job_id, log);
        self.shared.any_carried.store(true, Ordering::Relaxed);
    }

    /// The logs of living jobs that can go on elsewhere.
    pub fn carried(&self) -> Vec<Arc<JobLog>> {
        self.lock_carried().values().cloned().collect()
    }

    /// Whether there are such jobs.
    pub fn has_carried(&self) -> bool {
        self.shared.any_carried.load(Ordering::Relaxed)
    }

    /// Jobs with a log.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no job has a log.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn detach(&self, log: &JobLog, holds: bool) {
        let left = log.reader_left(&self.shared.on_readers);
        let abandoned = holds && log.let_go(&self.shared.on_readers, !self.are_closing());
        if left || abandoned {
            (self.shared.noted)();
        }
    }

    fn lock_carried(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Arc<JobLog>>> {
        self.shared.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Arc<JobLog>>> {
        self.shared.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
