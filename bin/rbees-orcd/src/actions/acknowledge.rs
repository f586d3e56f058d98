//! Telling workers that the logs of ended runs are no longer needed: with the next run that the same
//! worker is asked for, else by a request of their own after a moment. A request for each short job
//! would cost as much as the job.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orchestrator_core::RunKey;
use tokio::sync::Notify;

use super::Actions;
use super::streams::tell;

/// How long an acknowledgement waits for a run to go along with.
const PATIENCE: Duration = Duration::from_millis(250);
/// Acknowledgements that go along with one run.
const PER_RUN: usize = 32;

/// Acknowledgements that wait, by the address of their worker.
#[derive(Debug, Clone, Default)]
pub struct Acknowledgements(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    by_worker: HashMap<String, Logs>,
    /// Whether somebody will look after [`PATIENCE`].
    watched: bool,
}

/// Logs that a worker may forget.
#[derive(Debug)]
struct Logs {
    secret: Option<String>,
    runs: Vec<RunKey>,
}

impl Acknowledgements {
    /// Leaves one to wait.
    fn add(&self, run: RunKey, uri: &str, secret: Option<&str>) {
        let mut waiting = self.lock();
        match waiting.by_worker.get_mut(uri) {
            Some(logs) => logs.runs.push(run),
            None => {
                let logs = Logs { secret: secret.map(str::to_owned), runs: vec![run] };
                waiting.by_worker.insert(uri.to_owned(), logs);
            }
        }
        if !std::mem::replace(&mut waiting.watched, true) {
            drop(waiting);
            self.0.came.notify_one();
        }
    }

    /// Those that go along with a run of the worker at `uri`, as the header lists them.
    pub(super) fn for_run(&self, uri: &str) -> String {
        let mut waiting = self.lock();
        let Some(logs) = waiting.by_worker.get_mut(uri).filter(|logs| !logs.runs.is_empty()) else {
            return String::new();
        };
        let left = logs.runs.len().saturating_sub(PER_RUN);
        let mut list = String::new();
        for run in logs.runs.drain(left..) {
            let comma = if list.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(list, "{comma}{}/{}", run.job_id, run.attempt);
        }
        list
    }

    /// All that wait.
    fn take(&self) -> Vec<(String, Logs)> {
        let mut waiting = self.lock();
        waiting.watched = false;
        std::mem::take(&mut waiting.by_worker).into_iter().filter(|(_, logs)| !logs.runs.is_empty()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Actions {
    /// Tells a worker soon that the log of a run is no longer needed.
    ///
    /// An acknowledgement that goes along with a run which never arrives is lost; the worker's next
    /// heartbeat lists the log, and is answered with the same.
    pub fn ack_run(&self, run: RunKey, uri: &str, secret: Option<&str>) {
        self.acknowledgements.add(run, uri, secret);
    }

    /// Sends what found no run to go along with. Runs as long as the daemon.
    pub async fn send_acknowledgements(self) {
        loop {
            self.acknowledgements.0.came.notified().await;
            tokio::time::sleep(PATIENCE).await;
            for (uri, Logs { secret, runs }) in self.acknowledgements.take() {
                let worker = self.workers.at(&uri, secret.as_deref());
                // One after the other: nobody waits for them, and a dead worker is not asked in a crowd.
                self.runtime.spawn(async move {
                    for run in runs {
                        let job = run.job_id.to_string();
                        tell("acknowledge", &run, || worker.acknowledge(&job, run.attempt)).await;
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use api_types::{Attempt, Incarnation, JobId};
    use uuid::Uuid;

    use super::*;

    fn run(number: u128) -> RunKey {
        RunKey {
            job_id: JobId::from_uuid(Uuid::from_u128(number)),
            attempt: Attempt(2),
            worker_id: "w".parse().expect("an id"),
            incarnation: Incarnation(1),
        }
    }

    #[test]
    fn each_goes_along_once_with_a_run_of_its_own_worker() {
        let all = Acknowledgements::default();
        for number in 0..40 {
            all.add(run(number), "http://a", None);
        }
        assert_eq!(all.for_run("http://b"), "");
        let first = all.for_run("http://a");
        assert_eq!(first.split(',').count(), PER_RUN);
        assert!(first.ends_with("/2") && first.contains(&run(39).job_id.to_string()), "{first}");
        assert_eq!(all.for_run("http://a").split(',').count(), 8);
        assert_eq!(all.for_run("http://a"), "");
        assert!(all.take().is_empty());
    }

    #[test]
    fn those_that_find_no_run_are_left_to_be_sent() {
        let all = Acknowledgements::default();
        all.add(run(1), "http://a", Some("s"));
        let left = all.take();
        assert_eq!(left.len(), 1);
        assert_eq!((left[0].1.secret.as_deref(), left[0].1.runs.len()), (Some("s"), 1));
    }
}
