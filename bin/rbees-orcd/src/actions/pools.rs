//! Asking pools: what fits, for a worker, and to end one.

use api_types::{ErrorDetail, WorkerId};
use orchestrator_core::{Event, PoolRow};
use serde_json::Value;

use super::Actions;

impl Actions {
    /// Asks a pool how it is.
    pub fn ask_pool(&self, pool: PoolRow, ask: u64) {
        let (pools, handle) = (self.pools.clone(), self.handle.clone());
        self.runtime.spawn(async move {
            let answer = pools.ask(&pool).await;
            handle.pool_answered(&pool.pool_id, ask, answer);
        });
    }

    /// Asks a pool for a worker, and waits until it is ready or has failed. When this process ends
    /// before, the pool takes the worker back.
    pub fn spawn_worker(&self, pool: PoolRow, worker_id: WorkerId, model: String) {
        let this = self.clone();
        self.runtime.spawn(async move {
            let error = this.spawned(&pool, &worker_id, &model).await.err();
            this.handle.report(Event::SpawnEnded { pool_id: pool.pool_id, worker_id, error });
        });
    }

    async fn spawned(&self, pool: &PoolRow, worker_id: &WorkerId, model: &str) -> Result<(), ErrorDetail> {
        let carrier = self.pools.carrier(pool)?.with_orchestrator_token(self.pools.token());
        let args = [
            "worker".to_owned(),
            "spawn".to_owned(),
            format!("--model={model}"),
            format!("--worker-id={worker_id}"),
            format!("--pool-id={}", pool.pool_id),
            format!("--orchestrator={}", self.pools.url()),
            "--evictable".to_owned(),
        ];
        carrier.json::<Value>(&args.each_ref().map(String::as_str)).await.map(drop)
    }

    /// Asks a pool to end a worker, and waits until its process is gone.
    pub fn stop_worker(&self, pool: PoolRow, worker_id: WorkerId) {
        let this = self.clone();
        self.runtime.spawn(async move {
            let error = this.stopped(&pool, &worker_id).await.err();
            this.handle.report(Event::StopEnded { pool_id: pool.pool_id, worker_id, error });
        });
    }

    async fn stopped(&self, pool: &PoolRow, worker_id: &WorkerId) -> Result<(), ErrorDetail> {
        let carrier = self.pools.carrier(pool)?;
        carrier.json::<Value>(&["worker", "stop", worker_id.as_str()]).await.map(drop)
    }
}
