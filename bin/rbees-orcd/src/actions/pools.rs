//! Asking pools: what fits, for a worker, and to end one.

use std::time::Duration;

use api_types::{ErrorCode, ErrorDetail, WorkerId};
use orchestrator_core::{Event, PoolRow, SupplySettings};
use serde_json::Value;

use super::Actions;

/// How long a pool may take for what it is asked.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// To have a worker ready.
    pub spawn: Duration,
    /// To end one.
    pub stop: Duration,
}

impl PoolLimits {
    /// As configured.
    pub const fn of(settings: &SupplySettings) -> Self {
        Self {
            spawn: Duration::from_millis(settings.spawn_timeout_ms),
            stop: Duration::from_millis(settings.stop_timeout_ms),
        }
    }
}

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
    /// before, or the time is over, the pool takes the worker back.
    pub fn spawn_worker(&self, pool: PoolRow, worker_id: WorkerId, model: String) {
        let this = self.clone();
        self.runtime.spawn(async move {
            let spawned = this.spawned(&pool, &worker_id, &model);
            let error = in_time(this.pool_limits.spawn, &pool, "start a worker", spawned).await.err();
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
            let stopped = this.stopped(&pool, &worker_id);
            let error = in_time(this.pool_limits.stop, &pool, "stop a worker", stopped).await.err();
            this.handle.report(Event::StopEnded { pool_id: pool.pool_id, worker_id, error });
        });
    }

    async fn stopped(&self, pool: &PoolRow, worker_id: &WorkerId) -> Result<(), ErrorDetail> {
        let carrier = self.pools.carrier(pool)?;
        carrier.json::<Value>(&["worker", "stop", worker_id.as_str()]).await.map(drop)
    }
}

/// Gives up on what a pool is asked when the time is over: the command ends, and the pool takes back what
/// it began.
async fn in_time(
    limit: Duration,
    pool: &PoolRow,
    to: &str,
    asked: impl Future<Output = Result<(), ErrorDetail>>,
) -> Result<(), ErrorDetail> {
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
        let message = format!("the pool `{}` did not {to} within {} s", pool.pool_id, limit.as_secs());
        let error = ErrorDetail::new(ErrorCode::SpawnTimeout, message).with_hint(
            "look at the pool with `rbees pool status`; `spawn_timeout_ms` and `stop_timeout_ms` are the limits",
        );
        Err(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pool_that_never_answers_is_given_up_and_its_command_ends() {
        let pool = PoolRow {
            pool_id: "mac".parse().expect("an id"),
            address: None,
            repo_dir: None,
            draining: false,
        };
        let (held, mut released) = tokio::sync::oneshot::channel::<()>();
        let asked = async move {
            let _held = held;
            std::future::pending().await
        };
        let error = in_time(Duration::from_millis(1), &pool, "start a worker", asked).await.err();
        let error = error.expect("it is over");
        assert_eq!((error.code, error.retriable), (ErrorCode::SpawnTimeout, true));
        assert!(error.message.contains("`mac` did not start a worker"), "{}", error.message);
        assert!(
            released.try_recv().is_err_and(|end| end == tokio::sync::oneshot::error::TryRecvError::Closed)
        );
    }
}
