//! What this command started, and therefore stops.

use std::collections::BTreeSet;
use std::path::Path;

use api_types::pool::PoolStatus;
use api_types::{ErrorDetail, WorkerId};
use clients::pool::Pool;
use tokio::process::Child;

use crate::stack::lock::Running;
use crate::stack::{lock, stop, worker};

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
    pub async fn stop(mut self, pool: &Pool, home: &Path) -> Result<(), ErrorDetail> {
        if let Some(before) = self.before_spawn.take() {
            let now = worker_ids(pool).await?;
            self.workers.extend(now.difference(&before).cloned());
        }
        let mut outcome = Ok(());
        for id in &self.workers {
            outcome = outcome.and(worker::stop(pool, id).await);
        }
        outcome.and(stop_orchestrator(self.orchestrator.take(), home).await)
    }
}

async fn stop_orchestrator(child: Option<Child>, home: &Path) -> Result<(), ErrorDetail> {
    let Some(mut child) = child else {
        return Ok(());
    };
    // A child that was not waited for keeps its number, so this one can be nobody else.
    let pid = child.id();
    let running = lock::written(home).filter(|running| Some(running.pid) == pid);
    if let Some(running) = running {
        let running: Running = running;
        let outcome = tokio::select! {
            outcome = stop::stop(home, &running) => outcome,
            _ = child.wait() => Ok(()),
        };
        let _ = child.wait().await;
        return outcome;
    }
    let _ = child.kill().await;
    Ok(())
}

async fn worker_ids(pool: &Pool) -> Result<BTreeSet<WorkerId>, ErrorDetail> {
    let status: PoolStatus = pool.json(&["status"]).await?;
    Ok(status.workers.into_iter().map(|record| record.worker_id).collect())
}
