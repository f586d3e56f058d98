//! A worker that serves a model: found in the registry, or spawned by the local pool.

use std::time::{Duration, Instant};

use api_types::pool::{PoolStatus, WorkerRecord};
use api_types::worker::{WorkerState, WorkerView};
use api_types::{ErrorCode, ErrorDetail, WorkerId};
use cli_kit::ProgressView;
use clients::WorkerHttp;
use clients::pool::Pool;
use llama_orch_sdk::{Client, Error};
use serde::Deserialize;

/// How long a worker that reported ready may take to show up in the registry.
const REGISTER: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(100);
/// How long a worker may take to say how it is.
const ASK: Duration = Duration::from_secs(3);

/// The worker in a spawn's answer, whatever else stands there.
#[derive(Debug, Deserialize)]
struct Spawned {
    worker_id: WorkerId,
}

/// A worker of the registry that serves `model` now or soon. It is asked itself: right after a
/// restart the registry still holds workers that ended meanwhile.
pub async fn serving(client: &Client, model: &str) -> Result<Option<WorkerId>, ErrorDetail> {
    let http = WorkerHttp::default();
    for worker in of_model(client, model).await? {
        let client = http.at(&worker.facts.uri, None);
        let health = client.health();
        let lives = match tokio::time::timeout(ASK, health).await {
            Ok(Ok(health)) => health.facts.instance == worker.facts.instance,
            Ok(Err(_)) | Err(_) => false,
        };
        if lives {
            return Ok(Some(worker.facts.worker_id));
        }
    }
    Ok(None)
}

/// The workers of the registry that serve `model` now or soon.
async fn of_model(client: &Client, model: &str) -> Result<Vec<WorkerView>, ErrorDetail> {
    let mut workers = client.workers().await.map_err(Error::into_detail)?.workers;
    workers.retain(|worker| {
        worker.facts.model == model && matches!(worker.state, WorkerState::Ready | WorkerState::Loading)
    });
    Ok(workers)
}

/// Spawns a worker for `model` that registers at `orchestrator`; returns once it is ready.
pub async fn spawn(
    pool: &Pool,
    model: &str,
    orchestrator: &str,
    view: &ProgressView,
) -> Result<WorkerId, ErrorDetail> {
    let args = ["worker", "spawn", "--model", model, "--orchestrator", orchestrator];
    let spawned: Spawned = pool.json_with(&args, &mut |progress| view.show(&progress)).await?;
    Ok(spawned.worker_id)
}

/// Waits until the registry has `worker` as ready.
pub async fn await_ready(client: &Client, model: &str, worker: &WorkerId) -> Result<(), ErrorDetail> {
    let began = Instant::now();
    while began.elapsed() < REGISTER {
        let ready =
            |found: &WorkerView| found.facts.worker_id == *worker && found.state == WorkerState::Ready;
        if of_model(client, model).await?.iter().any(ready) {
            return Ok(());
        }
        tokio::time::sleep(TICK).await;
    }
    Err(ErrorDetail::new(ErrorCode::NoCapacity, format!("{worker} is ready but did not register"))
        .with_hint(format!("rbees pool worker logs {worker}")))
}

/// The pool's record of a worker, with the memory that was predicted and measured.
pub async fn record(pool: &Pool, worker: &WorkerId) -> Option<WorkerRecord> {
    let status: PoolStatus = pool.json(&["status"]).await.ok()?;
    status.workers.into_iter().find(|record| record.worker_id == *worker)
}

/// Stops one worker; one that is gone already is fine.
pub async fn stop(pool: &Pool, worker: &WorkerId) -> Result<(), ErrorDetail> {
    match pool.json::<serde::de::IgnoredAny>(&["worker", "stop", worker.as_str()]).await {
        Ok(_) => Ok(()),
        Err(error) if error.code == ErrorCode::WorkerNotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Stops every worker of the pool.
pub async fn stop_all(pool: &Pool) -> Result<(), ErrorDetail> {
    pool.json::<serde::de::IgnoredAny>(&["worker", "stop-all"]).await.map(drop)
}
