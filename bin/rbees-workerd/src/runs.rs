//! The table of runs: who has a slot, whose log is kept, which attempts were seen.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api_types::worker::RunRef;
use api_types::{Attempt, ErrorCode, ErrorDetail, TaskEvent};
use tokio::sync::watch;

use crate::run_log::RunLog;

/// How long the log of an ended run is kept when nobody acknowledges it.
pub const KEPT_AFTER_END: Duration = Duration::from_secs(600);
/// Logs of ended runs that are kept at once; beyond that the one that ended first is forgotten.
/// An orchestrator acknowledges each, so only callers that never do can reach this.
pub const KEPT_ENDED: usize = 4096;
/// Jobs whose highest attempt is remembered, besides those whose log is here. Beyond that the job
/// seen longest ago is forgotten: its old attempts would run again if anybody still sent one.
/// An orchestrator never does, because it does not send an attempt twice once its log is gone.
pub const REMEMBERED_JOBS: usize = 65_536;
/// The attempt of a run that was started without one (by a person with curl).
pub const BY_HAND: Attempt = Attempt(0);

/// One run: a job's attempt on this worker.
#[derive(Debug)]
pub struct Run {
    /// The job, as the caller named it.
    pub job_id: String,
    /// The try; [`BY_HAND`] when the caller named none.
    pub attempt: Attempt,
    /// Its events.
    pub log: RunLog,
    cancelled: AtomicBool,
}

impl Run {
    /// Asks the run to stop; it ends within one step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// What is to be run, as far as the table cares.
#[derive(Debug, Clone)]
pub struct Claim<'a> {
    /// The job.
    pub job_id: &'a str,
    /// The try, where the caller names one.
    pub attempt: Option<Attempt>,
    /// Tells one request body from another.
    pub digest: u64,
    /// Id of the first event.
    pub first_event_id: u64,
}

/// The table's answer to a claim.
#[derive(Debug)]
pub enum Admission {
    /// A slot was taken; the caller must start it, or give it back with [`Runs::finish`].
    Started(Arc<Run>),
    /// The same request is or was here already; read its log.
    Joined(Arc<Run>),
}

/// All runs of this process.
#[derive(Debug)]
pub struct Runs {
    slots: u32,
    log_bytes: usize,
    table: Mutex<Table>,
    busy: watch::Sender<u32>,
}

#[derive(Debug, Default)]
struct Table {
    runs: BTreeMap<(String, Attempt), Entry>,
    highest: Highest,
    draining: bool,
}

/// The highest attempt seen per job; of [`REMEMBERED_JOBS`] jobs.
#[derive(Debug, Default)]
struct Highest {
    by_job: HashMap<String, Seen>,
    /// Jobs by when their highest attempt came.
    by_age: BTreeMap<u64, String>,
    count: u64,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    attempt: Attempt,
    number: u64,
}

impl Highest {
    fn get(&self, job_id: &str) -> Option<Attempt> {
        self.by_job.get(job_id).map(|seen| seen.attempt)
    }

    /// Remembers an attempt, and forgets the oldest job when there are too many.
    fn set(&mut self, job_id: &str, attempt: Attempt) {
        self.remove(job_id);
        self.count += 1;
        self.by_job.insert(job_id.to_owned(), Seen { attempt, number: self.count });
        self.by_age.insert(self.count, job_id.to_owned());
        if self.by_job.len() > REMEMBERED_JOBS
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.by_job.remove(&oldest);
        }
    }

    fn remove(&mut self, job_id: &str) {
        if let Some(seen) = self.by_job.remove(job_id) {
            self.by_age.remove(&seen.number);
        }
    }
}

#[derive(Debug)]
struct Entry {
    run: Arc<Run>,
    digest: u64,
    /// The highest attempt of the job before this one.
    before: Option<Attempt>,
    /// Since when it holds no slot.
    ended: Option<Instant>,
}

impl Runs {
    /// An empty table for `slots` runs at once, each with a log of up to `log_bytes`.
    pub fn new(slots: u32, log_bytes: usize) -> Self {
        Self { slots, log_bytes, table: Mutex::default(), busy: watch::Sender::new(0) }
    }

    /// Takes a slot for a run, or finds the run that is meant.
    ///
    /// # Errors
    /// `JOB_CONFLICT`, `ATTEMPT_GONE`, `STALE_ATTEMPT`, `WORKER_DRAINING` or `ALL_SLOTS_BUSY`.
    pub fn admit(&self, claim: &Claim<'_>) -> Result<Admission, ErrorDetail> {
        let mut table = self.lock();
        if let Some(run) = table.find(claim)? {
            return Ok(Admission::Joined(run));
        }
        if table.draining {
            return Err(ErrorDetail::new(
                ErrorCode::WorkerDraining,
                "the worker finishes its runs and takes no new one",
            )
            .with_hint("send the job to another worker"));
        }
        self.take_slot()?;
        Ok(Admission::Started(table.insert(claim, self.log_bytes)))
    }

    fn take_slot(&self) -> Result<(), ErrorDetail> {
        let slots = self.slots;
        let mut taken = false;
        self.busy.send_if_modified(|busy| {
            taken = *busy < slots;
            *busy += u32::from(taken);
            taken
        });
        if taken {
            return Ok(());
        }
        Err(ErrorDetail::new(ErrorCode::AllSlotsBusy, format!("all {slots} slots of the worker are taken"))
            .with_details(serde_json::json!({ "slots": slots }))
            .with_retry_after_ms(1000))
    }

    /// Gives the slot of a run back. Called once per started run, before its last event is logged.
    /// Forgets the log that ended first when there are more than [`KEPT_ENDED`].
    pub fn finish(&self, run: &Run) {
        let mut table = self.lock();
        let key = (run.job_id.clone(), run.attempt);
        if let Some(entry) = table.runs.get_mut(&key)
            && std::ptr::eq(Arc::as_ptr(&entry.run), run)
        {
            entry.ended = Some(Instant::now());
            table.forget_oldest_ended();
        }
        self.busy.send_modify(|busy| *busy = busy.saturating_sub(1));
    }

    /// Removes a run that never began, as if it had not been asked for.
    pub fn forget(&self, run: &Run) {
        let mut table = self.lock();
        let key = (run.job_id.clone(), run.attempt);
        if table.runs.get(&key).is_some_and(|entry| std::ptr::eq(Arc::as_ptr(&entry.run), run)) {
            let before = table.runs.remove(&key).and_then(|entry| entry.before);
            if table.highest.get(&run.job_id) == Some(run.attempt) {
                match before {
                    Some(before) => table.highest.set(&run.job_id, before),
                    None => table.highest.remove(&run.job_id),
                }
            }
        }
    }

    /// The run of a job's attempt.
    ///
    /// # Errors
    /// `ATTEMPT_GONE` when it was here, `JOB_NOT_FOUND` when it was not.
    pub fn get(&self, job_id: &str, attempt: Attempt) -> Result<Arc<Run>, ErrorDetail> {
        let table = self.lock();
        match table.runs.get(&(job_id.to_owned(), attempt)) {
            Some(entry) => Ok(Arc::clone(&entry.run)),
            None if table.highest.get(job_id).is_some_and(|highest| highest >= attempt) => {
                Err(attempt_gone(attempt))
            }
            None => Err(ErrorDetail::new(
                ErrorCode::JobNotFound,
                "this worker has no run of this job and attempt",
            )),
        }
    }

    /// Asks one or all attempts of a job to stop; gives how many were asked.
    pub fn cancel(&self, job_id: &str, attempt: Option<Attempt>) -> usize {
        let table = self.lock();
        let meant = table
            .of_job(job_id)
            .filter(|(at, entry)| attempt.is_none_or(|attempt| attempt == *at) && entry.ended.is_none());
        meant.map(|(_, entry)| entry.run.cancel()).count()
    }

    /// Forgets the log of an ended run. `false` while the run still goes on.
    pub fn acknowledge(&self, job_id: &str, attempt: Attempt) -> bool {
        let mut table = self.lock();
        let key = (job_id.to_owned(), attempt);
        match table.runs.get(&key) {
            Some(entry) if entry.ended.is_none() => false,
            Some(_) => table.runs.remove(&key).is_some(),
            None => true,
        }
    }

    /// Stops a run that nobody waits for and forgets its log.
    pub fn drop_run(&self, run: &RunRef) {
        self.cancel(&run.job_id, Some(run.attempt));
        let mut table = self.lock();
        table.runs.remove(&(run.job_id.clone(), run.attempt));
    }

    /// Asks every run to stop.
    pub fn cancel_all(&self) {
        self.lock().runs.values().for_each(|entry| entry.run.cancel());
    }

    /// Writes `event` as the last one of every log that has none yet.
    pub fn fail_all(&self, event: &TaskEvent) {
        self.lock().runs.values().for_each(|entry| entry.run.log.append(event));
    }

    /// From now on no run is admitted.
    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// Forgets logs of runs that ended long ago.
    pub fn sweep(&self, now: Instant) {
        let kept = |entry: &Entry| {
            entry.ended.is_none_or(|ended| now.saturating_duration_since(ended) < KEPT_AFTER_END)
        };
        self.lock().runs.retain(|_, entry| kept(entry));
    }

    /// The runs that orchestrators may know of; those started by hand are nobody's business.
    pub fn listed(&self) -> Vec<RunRef> {
        let table = self.lock();
        let theirs = table.runs.iter().filter(|((_, attempt), _)| *attempt != BY_HAND);
        theirs
            .map(|((job_id, attempt), entry)| RunRef {
                job_id: job_id.clone(),
                attempt: *attempt,
                ended: entry.ended.is_some(),
            })
            .collect()
    }

    /// Open readers of all logs.
    pub fn readers(&self) -> u32 {
        self.lock().runs.values().map(|entry| entry.run.log.readers()).sum()
    }

    /// Slots with a run.
    pub fn busy(&self) -> u32 {
        *self.busy.borrow()
    }

    /// Follows the number of slots with a run.
    pub fn busy_changes(&self) -> watch::Receiver<u32> {
        self.busy.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change is complete before anything can panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Keeps the number of ended logs within its bound.
    fn forget_oldest_ended(&mut self) {
        if self.runs.len() <= KEPT_ENDED {
            return;
        }
        let ended = self.runs.iter().filter_map(|(key, entry)| Some((entry.ended?, key)));
        let oldest = if ended.clone().count() > KEPT_ENDED { ended.min() } else { None };
        if let Some(key) = oldest.map(|(_, key)| key.clone()) {
            self.runs.remove(&key);
        }
    }

    /// The run that a claim repeats, if there is one.
    fn find(&self, claim: &Claim<'_>) -> Result<Option<Arc<Run>>, ErrorDetail> {
        let attempt = claim.attempt.unwrap_or(BY_HAND);
        if let Some(entry) = self.runs.get(&(claim.job_id.to_owned(), attempt)) {
            if claim.attempt.is_none() && entry.ended.is_some() {
                return Ok(None);
            }
            if entry.digest != claim.digest {
                return Err(job_conflict(attempt));
            }
            return Ok(Some(Arc::clone(&entry.run)));
        }
        match (claim.attempt, self.highest.get(claim.job_id)) {
            (Some(asked), Some(highest)) if asked < highest => Err(stale_attempt(asked, highest)),
            (Some(asked), Some(highest)) if asked == highest => Err(attempt_gone(asked)),
            _ => Ok(None),
        }
    }

    fn insert(&mut self, claim: &Claim<'_>, log_bytes: usize) -> Arc<Run> {
        let attempt = claim.attempt.unwrap_or(BY_HAND);
        let run = Arc::new(Run {
            job_id: claim.job_id.to_owned(),
            attempt,
            log: RunLog::new(claim.first_event_id, log_bytes),
            cancelled: AtomicBool::new(false),
        });
        let before = self.highest.get(claim.job_id);
        let entry = Entry { run: Arc::clone(&run), digest: claim.digest, before, ended: None };
        self.runs.insert((claim.job_id.to_owned(), attempt), entry);
        if attempt != BY_HAND {
            self.highest.set(claim.job_id, attempt);
        }
        run
    }

    fn of_job<'a>(&'a self, job_id: &'a str) -> impl Iterator<Item = (Attempt, &'a Entry)> {
        let first = (job_id.to_owned(), Attempt(0));
        self.runs
            .range(first..)
            .take_while(move |((job, _), _)| job == job_id)
            .map(|((_, attempt), entry)| (*attempt, entry))
    }
}

fn job_conflict(attempt: Attempt) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::JobConflict,
        format!("attempt {attempt} of this job ran with another request body"),
    )
    .with_hint("use another job id, or the next attempt number")
}

fn attempt_gone(attempt: Attempt) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::AttemptGone,
        format!("attempt {attempt} of this job ended and its log is gone"),
    )
    .with_hint("use the next attempt number to run the job again")
}

fn stale_attempt(asked: Attempt, highest: Attempt) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::StaleAttempt, format!("attempt {asked} was followed by attempt {highest}"))
        .with_details(serde_json::json!({ "attempt": asked, "highest": highest }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(job_id: &str, attempt: Option<u32>, digest: u64) -> Claim<'_> {
        Claim { job_id, attempt: attempt.map(Attempt), digest, first_event_id: 0 }
    }

    fn code(result: Result<Admission, ErrorDetail>) -> ErrorCode {
        result.expect_err("refused").code
    }

    fn started(result: Result<Admission, ErrorDetail>) -> Arc<Run> {
        match result.expect("admitted") {
            Admission::Started(run) => run,
            Admission::Joined(_) => panic!("joined"),
        }
    }

    #[test]
    fn the_same_request_is_joined_and_another_refused() {
        let runs = Runs::new(2, 1000);
        let run = started(runs.admit(&claim("j", Some(1), 7)));
        assert!(
            matches!(runs.admit(&claim("j", Some(1), 7)), Ok(Admission::Joined(same)) if Arc::ptr_eq(&same, &run))
        );
        assert_eq!(code(runs.admit(&claim("j", Some(1), 8))), ErrorCode::JobConflict);
        assert_eq!(runs.busy(), 1);
    }

    #[test]
    fn attempts_only_grow_and_gone_ones_stay_gone() {
        let runs = Runs::new(2, 1000);
        let run = started(runs.admit(&claim("j", Some(2), 7)));
        assert_eq!(code(runs.admit(&claim("j", Some(1), 7))), ErrorCode::StaleAttempt);
        assert!(!runs.acknowledge("j", Attempt(2)), "it still runs");
        runs.finish(&run);
        assert!(matches!(runs.admit(&claim("j", Some(2), 7)), Ok(Admission::Joined(_))));
        assert!(runs.acknowledge("j", Attempt(2)));
        assert_eq!(code(runs.admit(&claim("j", Some(2), 7))), ErrorCode::AttemptGone);
        assert_eq!(runs.get("j", Attempt(2)).expect_err("gone").code, ErrorCode::AttemptGone);
        assert_eq!(runs.get("k", Attempt(1)).expect_err("never").code, ErrorCode::JobNotFound);
    }

    #[test]
    fn without_an_attempt_an_ended_job_runs_again() {
        let runs = Runs::new(1, 1000);
        let first = started(runs.admit(&claim("j", None, 7)));
        assert!(matches!(runs.admit(&claim("j", None, 7)), Ok(Admission::Joined(_))));
        runs.finish(&first);
        let second = started(runs.admit(&claim("j", None, 8)));
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(runs.listed().is_empty());
        // A late end of the first must not mark the second.
        runs.finish(&second);
        assert_eq!(runs.busy(), 0);
    }

    #[test]
    fn a_full_worker_and_a_draining_one_refuse_at_once() {
        let runs = Runs::new(1, 1000);
        let run = started(runs.admit(&claim("a", Some(1), 1)));
        assert_eq!(code(runs.admit(&claim("b", Some(1), 1))), ErrorCode::AllSlotsBusy);
        runs.finish(&run);
        runs.drain();
        assert_eq!(code(runs.admit(&claim("b", Some(1), 1))), ErrorCode::WorkerDraining);
        assert!(matches!(runs.admit(&claim("a", Some(1), 1)), Ok(Admission::Joined(_))));
    }

    #[test]
    fn old_logs_are_swept_and_running_ones_are_not() {
        let runs = Runs::new(2, 1000);
        let ended = started(runs.admit(&claim("a", Some(1), 1)));
        let _running = started(runs.admit(&claim("b", Some(1), 1)));
        runs.finish(&ended);
        runs.sweep(Instant::now() + KEPT_AFTER_END + Duration::from_secs(1));
        let listed = runs.listed();
        assert_eq!(listed.iter().map(|run| run.job_id.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_run_that_never_began_leaves_the_attempts_before_it_known() {
        let runs = Runs::new(1, 1000);
        let first = started(runs.admit(&claim("j", Some(1), 7)));
        runs.finish(&first);
        assert!(runs.acknowledge("j", Attempt(1)));
        let second = started(runs.admit(&claim("j", Some(2), 7)));
        runs.forget(&second);
        runs.finish(&second);
        assert_eq!(code(runs.admit(&claim("j", Some(1), 7))), ErrorCode::AttemptGone);
        started(runs.admit(&claim("j", Some(2), 7)));
    }

    #[test]
    fn kept_logs_are_bounded_and_the_one_that_ended_first_goes() {
        let runs = Runs::new(2, 1000);
        let _running = started(runs.admit(&claim("running", Some(1), 7)));
        for job in 0..=KEPT_ENDED {
            runs.finish(&started(runs.admit(&claim(&job.to_string(), Some(1), 7))));
        }
        assert_eq!(runs.listed().len(), KEPT_ENDED + 1);
        assert_eq!(runs.get("0", Attempt(1)).expect_err("no log").code, ErrorCode::AttemptGone);
        assert!(runs.get("1", Attempt(1)).is_ok() && runs.get("running", Attempt(1)).is_ok());
    }

    #[test]
    fn remembered_attempts_are_bounded_and_the_oldest_job_goes() {
        let mut highest = Highest::default();
        for job in 0..=REMEMBERED_JOBS {
            highest.set(&job.to_string(), Attempt(1));
            highest.set("busy", Attempt(2));
        }
        assert_eq!((highest.by_job.len(), highest.by_age.len()), (REMEMBERED_JOBS, REMEMBERED_JOBS));
        assert_eq!((highest.get("0"), highest.get("1")), (None, None));
        assert_eq!((highest.get("2"), highest.get("busy")), (Some(Attempt(1)), Some(Attempt(2))));
    }

    #[test]
    fn cancelling_reaches_the_attempts_that_are_meant() {
        let runs = Runs::new(3, 1000);
        let first = started(runs.admit(&claim("j", Some(1), 1)));
        let second = started(runs.admit(&claim("j", Some(2), 1)));
        let other = started(runs.admit(&claim("jj", Some(1), 1)));
        assert_eq!(runs.cancel("j", Some(Attempt(2))), 1);
        assert!(!first.is_cancelled() && second.is_cancelled());
        assert_eq!(runs.cancel("j", None), 2);
        assert!(first.is_cancelled() && !other.is_cancelled());
    }
}
