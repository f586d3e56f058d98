//! What an operator watches, live: jobs, workers, the queue, pools with their GPUs.

use std::convert::Infallible;
use std::time::Duration;

use api_types::sse::{KEEP_ALIVE, encode_json_into};
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use orchestrator_core::{Notice, SpawnPhase, UnloadCause};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::{App, sse};
use crate::pool_directory::PoolNews;

/// A silent stream gets a comment this often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);

/// News of jobs, workers, the queue and pools as they happen. Not kept: who comes late asks the lists.
#[utoipa::path(get, path = "/v2/events", tag = "operator",
    responses((status = 200, description = "Server-sent events `job`, `worker`, `queue`, `pool`, `spawn`, `unload`, `stale_dropped`, `lagged`",
        content_type = "text/event-stream", body = String)))]
pub async fn operator_events(State(app): State<App>) -> Response {
    let news = (app.driver.notices(), app.pools.news(), app.closing.clone());
    sse::answer(futures_util::stream::unfold(news, |(mut notices, mut pools, closing)| async move {
        let frame = tokio::select! {
            notice = notices.recv() => match notice {
                Ok(notice) => encode(&notice),
                Err(RecvError::Lagged(missed)) => lagged(missed),
                Err(RecvError::Closed) => return None,
            },
            pool = pools.recv() => match pool {
                Ok(pool) => pool_frame(&pool),
                Err(RecvError::Lagged(missed)) => lagged(missed),
                Err(RecvError::Closed) => return None,
            },
            () = closing.cancelled() => return None,
            () = tokio::time::sleep(KEEP_ALIVE_EVERY) => Bytes::from_static(KEEP_ALIVE),
        };
        Some((Ok::<_, Infallible>(frame), (notices, pools, closing)))
    }))
}

fn encode(notice: &Notice) -> Bytes {
    match notice {
        Notice::Job { job_id, status, attempt, model, worker_id } => frame(
            "job",
            &json!({ "type": "job", "job_id": job_id, "status": status, "attempt": attempt, "model": model,
                "worker_id": worker_id }),
        ),
        Notice::Worker { worker_id, state, slots_busy, slots } => frame(
            "worker",
            &json!({ "type": "worker", "worker_id": worker_id, "state": state, "slots_busy": slots_busy,
                "slots": slots }),
        ),
        Notice::Queue { depth } => frame("queue", &json!({ "type": "queue", "depth": depth })),
        Notice::PolicyFailed { name, failure } => frame(
            "policy_failed",
            &json!({ "type": "policy_failed", "name": name, "hook": failure.hook,
                "message": failure.to_string() }),
        ),
        Notice::Spawn { pool_id, worker_id, model, phase, error } => {
            let phase = match phase {
                SpawnPhase::Started => "started",
                SpawnPhase::Ready => "ready",
                SpawnPhase::Failed => "failed",
            };
            let error = error.as_ref().map(|error| json!({ "code": error.code, "message": error.message }));
            frame(
                "spawn",
                &json!({ "type": "spawn", "pool_id": pool_id, "worker_id": worker_id, "model": model,
                    "phase": phase, "error": error }),
            )
        }
        Notice::Unload { worker_id, model, cause, for_model } => {
            let cause = match cause {
                UnloadCause::Idle => "idle",
                UnloadCause::Evicted => "evicted",
                UnloadCause::Swapped => "swapped",
            };
            frame(
                "unload",
                &json!({ "type": "unload", "worker_id": worker_id, "model": model, "cause": cause,
                    "for_model": for_model }),
            )
        }
        Notice::StaleDropped { kind } => {
            frame("stale_dropped", &json!({ "type": "stale_dropped", "kind": kind }))
        }
    }
}

fn lagged(missed: u64) -> Bytes {
    frame("lagged", &json!({ "type": "lagged", "missed": missed }))
}

fn pool_frame(pool: &PoolNews) -> Bytes {
    frame(
        "pool",
        &json!({ "type": "pool", "pool_id": pool.pool_id, "reachable": pool.reachable, "workers": pool.workers,
            "ram_available_bytes": pool.ram_available_bytes, "gpus": pool.gpus }),
    )
}

fn frame(name: &str, data: &Value) -> Bytes {
    let mut bytes = Vec::with_capacity(128);
    encode_json_into(&mut bytes, None, name, data);
    bytes.into()
}
