//! The runs that the orchestrator may still ask about.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api_types::id::Attempt;
use api_types::worker::RunRef;
use tokio::sync::Notify;

/// A run and how to stop it.
struct Run {
    ended: bool,
    stop: Arc<Notify>,
}

/// All runs that were not acknowledged yet.
#[derive(Default)]
pub struct Runs(Mutex<BTreeMap<(String, u32), Run>>);

impl Runs {
    /// Notes a new run; the answer fires when it is to stop.
    pub fn begin(&self, job: String, attempt: u32) -> Arc<Notify> {
        let stop = Arc::new(Notify::new());
        self.lock().insert((job, attempt), Run { ended: false, stop: Arc::clone(&stop) });
        stop
    }

    /// Notes that all events of the run were written.
    pub fn end(&self, job: &str, attempt: u32) {
        if let Some(run) = self.lock().get_mut(&(job.to_owned(), attempt)) {
            run.ended = true;
        }
    }

    /// Forgets a run: its log was read.
    pub fn forget(&self, job: &str, attempt: u32) {
        if let Some(run) = self.lock().remove(&(job.to_owned(), attempt)) {
            run.stop.notify_one();
        }
    }

    /// Stops one attempt of a job, or all of them.
    pub fn cancel(&self, job: &str, attempt: Option<u32>) {
        let runs = self.lock();
        let meant = runs.iter().filter(|((id, number), _)| id == job && attempt.is_none_or(|a| a == *number));
        meant.for_each(|(_, run)| run.stop.notify_one());
    }

    /// All of them, as a heartbeat tells them.
    pub fn list(&self) -> Vec<RunRef> {
        let runs = self.lock();
        let reference = |((job, attempt), run): (&(String, u32), &Run)| RunRef {
            job_id: job.clone(),
            attempt: Attempt(*attempt),
            ended: run.ended,
        };
        runs.iter().map(reference).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, u32), Run>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
