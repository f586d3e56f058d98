//! What is done once a decision is on disk. One file per kind of action; none of them waits.

mod acknowledge;
mod pools;
mod streams;
mod workers;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use api_types::{JobId, TaskEvent, WorkerId};
use clients::WorkerHttp;
use orchestrator_core::{Run, RunKey};
use tokio::runtime;
use tokio::task::AbortHandle;

use self::acknowledge::Acknowledgements;
pub use self::pools::PoolLimits;
use crate::driver::Handle;
use crate::metrics::Metrics;
use crate::pool_directory::PoolDirectory;
use crate::relay::StallLimits;
use crate::subscribers::Subscribers;

/// Everything that actions need.
#[derive(Debug, Clone)]
pub struct Actions {
    /// Where tasks are started.
    pub runtime: runtime::Handle,
    /// The way back to the driver.
    pub handle: Handle,
    /// The logs of jobs.
    pub subscribers: Subscribers,
    /// Connections to workers.
    pub workers: WorkerHttp,
    /// The way to pools.
    pub pools: PoolDirectory,
    /// How long a worker may be silent.
    pub limits: StallLimits,
    /// How long a pool may take.
    pub pool_limits: PoolLimits,
    /// What is counted.
    pub metrics: Metrics,
    relays: Arc<Mutex<HashMap<JobId, RunningRelay>>>,
    acknowledgements: Acknowledgements,
}

/// A relay that was started for a job.
#[derive(Debug)]
struct RunningRelay {
    run: RunKey,
    task: AbortHandle,
    /// Whether its stream ended without a last event.
    broken: Arc<AtomicBool>,
}

impl Actions {
    /// Actions without a running relay.
    pub fn new(
        runtime: runtime::Handle,
        handle: Handle,
        subscribers: Subscribers,
        pools: PoolDirectory,
        limits: StallLimits,
        pool_limits: PoolLimits,
        metrics: Metrics,
    ) -> Self {
        let workers = WorkerHttp::default();
        Self {
            runtime,
            handle,
            subscribers,
            workers,
            pools,
            limits,
            pool_limits,
            metrics,
            relays: Arc::default(),
            acknowledgements: Acknowledgements::default(),
        }
    }

    /// Shows an event of the orchestrator's own.
    pub fn publish(&self, job_id: JobId) {
        if let Some(log) = self.subscribers.log(job_id) {
            log.reveal();
        }
    }

    /// Shows an event to those who read the job now.
    pub fn publish_live(&self, job_id: JobId, event: &TaskEvent) {
        if let Some(log) = self.subscribers.log(job_id) {
            log.announce(event);
        }
    }

    /// Shows the last event and forgets the log, or keeps it a while when it is nowhere else.
    pub fn end_job(&self, job_id: JobId, keep: bool) {
        if let Some(relay) = self.lock_relays().remove(&job_id) {
            relay.task.abort();
        }
        if let Some(log) = self.subscribers.log(job_id) {
            log.end();
        }
        self.subscribers.remove(job_id, keep);
    }

    /// Stops every relay; the runs go on in their workers.
    pub fn stop_relays(&self) {
        for (_, relay) in self.lock_relays().drain() {
            relay.task.abort();
        }
    }

    /// The runs that we believe a worker holds.
    pub fn runs_of(&self, worker_id: &WorkerId) -> Vec<Run> {
        let relays = self.lock_relays();
        let runs = relays.values().map(|relay| &relay.run).filter(|run| run.worker_id == *worker_id);
        runs.map(|run| Run { job_id: run.job_id, attempt: run.attempt, ended: false }).collect()
    }

    fn lock_relays(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, RunningRelay>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
