//! `rbees status`: the orchestrator, its workers and every pool, as far as they answer.

use std::time::Duration;

use api_types::pool::PoolStatus;
use api_types::{ErrorCode, ErrorDetail};
use clap::Args;
use cli_kit::{ExitStatus, Table, human_bytes, human_count};
use clients::pool::Pool;
use futures_util::future::join_all;
use llama_orch_sdk::{Client, Error, OrchestratorHealth, WorkerView};
use serde::Serialize;

use super::Outcome;
use super::workers::kept;
use crate::context::Context;

/// Longest that a pool is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Shows the orchestrator, its workers and the pools
#[derive(Debug, Args)]
pub struct StatusArgs {}

#[derive(Debug, Serialize)]
struct Status {
    orchestrator: OrchestratorStatus,
    workers: Vec<WorkerView>,
    pools: Vec<PoolAnswer>,
}

#[derive(Debug, Serialize)]
struct OrchestratorStatus {
    url: String,
    health: Option<OrchestratorHealth>,
    error: Option<ErrorDetail>,
}

#[derive(Debug, Serialize)]
struct PoolAnswer {
    pool: String,
    status: Option<PoolStatus>,
    error: Option<ErrorDetail>,
}

/// Runs it; what does not answer is shown as such, and makes the exit code 5.
pub async fn run(context: &Context, _args: &StatusArgs) -> Outcome {
    let client = context.client()?;
    let ((orchestrator, workers), pools) =
        tokio::join!(ask_orchestrator(context, &client), ask_pools(context));
    let status = Status { orchestrator, workers, pools };
    context.printer.show(&status, table);
    let silent =
        status.orchestrator.error.iter().chain(status.pools.iter().filter_map(|pool| pool.error.as_ref()));
    let mut unreachable = silent.peekable();
    if !context.printer.is_json() {
        for hint in unreachable.clone().filter_map(|error| error.hint.as_ref()) {
            context.printer.note(format!("next: {hint}"));
        }
    }
    Ok(if unreachable.peek().is_some() { ExitStatus::Unreachable } else { ExitStatus::Ok })
}

async fn ask_orchestrator(context: &Context, client: &Client) -> (OrchestratorStatus, Vec<WorkerView>) {
    let url = context.endpoint().to_owned();
    let asked = async {
        let health = client.health().await?;
        Ok::<_, Error>((health, client.workers().await?.workers))
    };
    match asked.await {
        Ok((health, workers)) => (OrchestratorStatus { url, health: Some(health), error: None }, workers),
        Err(error) => {
            (OrchestratorStatus { url, health: None, error: Some(error.into_detail()) }, Vec::new())
        }
    }
}

async fn ask_pools(context: &Context) -> Vec<PoolAnswer> {
    let mut pools = vec![("this machine".to_owned(), context.local_pool())];
    pools.extend(
        context
            .config
            .pools
            .iter()
            .map(|(id, pool)| (id.to_string(), Pool::ssh(&pool.address, pool.repo_dir.as_deref()))),
    );
    join_all(pools.into_iter().map(|(name, pool)| ask_pool(name, pool))).await
}

async fn ask_pool(name: String, pool: Result<Pool, ErrorDetail>) -> PoolAnswer {
    let asked = async { pool?.json::<PoolStatus>(&["status"]).await };
    let answer = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
        let message = format!("{name} did not answer within {} s", PATIENCE.as_secs());
        Err(ErrorDetail::new(ErrorCode::SshFailed, message))
    });
    match answer {
        Ok(status) => PoolAnswer { pool: name, status: Some(status), error: None },
        Err(error) => PoolAnswer { pool: name, status: None, error: Some(error) },
    }
}

fn table(status: &Status) -> Table {
    let mut table = Table::new(["Kind", "Name", "Status", "Details"]);
    let (word, details) = orchestrator_row(&status.orchestrator);
    table.row(["orchestrator", &status.orchestrator.url, &word, &details]);
    for worker in &status.workers {
        let facts = &worker.facts;
        let details = format!(
            "{} on {}, {} of {} slots busy, {}",
            facts.model,
            facts.backend,
            worker.slots_busy,
            facts.slots,
            kept(worker)
        );
        table.row(["worker", facts.worker_id.as_str(), &word_of(&worker.state), &details]);
    }
    for pool in &status.pools {
        let (word, details) = pool_row(pool);
        table.row(["pool", &pool.pool, word, &details]);
    }
    table
}

fn orchestrator_row(orchestrator: &OrchestratorStatus) -> (String, String) {
    match (&orchestrator.health, &orchestrator.error) {
        (Some(health), _) => {
            let details = format!(
                "{}, {}, {} queued, version {}",
                human_count(health.workers, "worker"),
                human_count(health.pools, "pool"),
                human_count(health.queue_depth, "job"),
                health.version
            );
            (word_of(&health.status), details)
        }
        (None, error) => {
            ("unreachable".into(), error.as_ref().map_or_else(String::new, |error| error.message.clone()))
        }
    }
}

fn pool_row(pool: &PoolAnswer) -> (&'static str, String) {
    match (&pool.status, &pool.error) {
        (Some(status), _) => {
            let downloaded = status.models.iter().filter(|model| model.downloaded).count();
            let free = human_bytes(status.hardware.ram_available_bytes);
            let gpus = status.hardware.gpus.len();
            let details = format!(
                "{}, {}, {}, {free} memory free, {}",
                human_count(status.workers.len() as u64, "worker"),
                human_count(downloaded as u64, "model"),
                human_count(gpus as u64, "GPU"),
                status.binary
            );
            ("reachable", details)
        }
        (None, error) => {
            ("unreachable", error.as_ref().map_or_else(String::new, |error| error.message.clone()))
        }
    }
}

/// The word of a plain enum as it stands on the wire.
fn word_of(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}
