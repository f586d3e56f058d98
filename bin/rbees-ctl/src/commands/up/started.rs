//! What this command started, and therefore stops.

use std::collections::BTreeSet;

use api_types::pool::PoolStatus;
use api_types::{ErrorDetail, WorkerId};
use clients::pool::Pool;
use tokio::process::Child;

use crate::stack::{stop, worker};

/// Workers and the orchestrator that this command started.
#[derive(Debug, Default)]
pub struct Started {
    pub orchestrator: Option<Child>,
    workers: Vec<WorkerId>,
    /// The workers there were when a spawn began whose result never came.
    before_spawn: Option<BTreeSet<WorkerId>>,
}

impl Started {
    /// Whether everything was running before.
    pub fn is_nothing(&self) -> bool {
        self.orchestrator.is_none() && self.workers.is_empty()
    }

    /// Remembers which workers were there before a spawn, in case it is interrupted.
    pub async fn spawning_since(&mut self, pool: &Pool) -> Result<(), ErrorDetail> {
        self.before_spawn = Some(worker_ids(pool).await?);
        Ok(())
    }

    /// The spawn is done.
    pub fn spawned(&mut self, worker: WorkerId) {
        self.before_spawn = None;
        self.workers.push(worker);
    }

    /// Returns once an orchestrator that this command started has ended; never without one.
    pub async fn orchestrator_ended(&mut self) {
        match &mut self.orchestrator {
            Some(child) => drop(child.wait().await),
            None => std::future::pending().await,
        }
    }

    /// Stops the workers, then the orchestrator.
    pub async fn stop(mut self, pool: &Pool) -> Result<(), ErrorDetail> {
        if let Some(before) = self.before_spawn.take() {
            let now = worker_ids(pool).await?;
            self.workers.extend(now.difference(&before).cloned());
        }
        let mut outcome = Ok(());
        for id in &self.workers {
            outcome = outcome.and(worker::stop(pool, id).await);
        }
        match self.orchestrator.take() {
            Some(child) => outcome.and(stop::end_child(child).await),
            None => outcome,
        }
    }
}

async fn worker_ids(pool: &Pool) -> Result<BTreeSet<WorkerId>, ErrorDetail> {
    let status: PoolStatus = pool.json(&["status"]).await?;
    Ok(status.workers.into_iter().map(|record| record.worker_id).collect())
}
