//! What an operator watches, live: jobs, workers, the queue, pools with their GPUs.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use api_types::sse::{KEEP_ALIVE, encode_json_into};
use axum::extract::State;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use orchestrator_core::{Notice, SpawnPhase, UnloadCause};
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{App, sse};
use crate::driver::handle::News;
use crate::pool_directory::PoolNews;

/// A silent stream gets a comment this often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// News of this time go out together.
const GATHERED: Duration = Duration::from_millis(50);

/// News of jobs, workers, the queue and pools as they happen. Not kept: who comes late asks the lists.
#[utoipa::path(get, path = "/v2/events", tag = "operator",
    responses((status = 200, description = "Server-sent events `job`, `worker`, `queue`, `pool`, `spawn`, `unload`, `stale_dropped`, `protocol_broken`, `policy_failed`, `policy_demoted`, `lagged`",
        content_type = "text/event-stream", body = String)))]
pub async fn operator_events(State(app): State<App>) -> Response {
    let watch = Watch {
        notices: app.driver.notices(),
        pools: app.pools.news(),
        closing: app.closing.clone(),
        sent_at: Instant::now(),
    };
    sse::answer(futures_util::stream::unfold(watch, |mut watch| async move {
        let frames = watch.next().await?;
        Some((Ok::<_, Infallible>(frames), watch))
    }))
}

/// Somebody who watches.
///
/// News are gathered for a moment and sent as one, so that a watcher costs a few writes a second
/// however much happens; one who takes them too slowly hears how many it missed.
struct Watch {
    notices: Receiver<Arc<News>>,
    pools: Receiver<PoolNews>,
    closing: CancellationToken,
    sent_at: Instant,
}

impl Watch {
    /// The next news, or a comment; `None` when the orchestrator stops.
    async fn next(&mut self) -> Option<Bytes> {
        let Some(first) = self.first().await? else { return Some(Bytes::from_static(KEEP_ALIVE)) };
        let gathered_at = self.sent_at + GATHERED;
        if gathered_at > Instant::now() {
            let closing = self.closing.clone();
            closing.run_until_cancelled(tokio::time::sleep_until(gathered_at)).await?;
        }
        let mut frames = BytesMut::from(&first[..]);
        while let Some(frame) = taken(&self.notices.try_recv(), |news| news.frame(encode).clone()) {
            frames.extend_from_slice(&frame);
        }
        while let Some(frame) = taken(&self.pools.try_recv(), pool_frame) {
            frames.extend_from_slice(&frame);
        }
        self.sent_at = Instant::now();
        Some(frames.freeze())
    }

    /// Waits for something to happen; `Some(None)` when nothing did for a while.
    async fn first(&mut self) -> Option<Option<Bytes>> {
        tokio::select! {
            notice = self.notices.recv() => match notice {
                Ok(news) => Some(Some(news.frame(encode).clone())),
                Err(RecvError::Lagged(missed)) => Some(Some(lagged(missed))),
                Err(RecvError::Closed) => None,
            },
            pool = self.pools.recv() => match pool {
                Ok(pool) => Some(Some(pool_frame(&pool))),
                Err(RecvError::Lagged(missed)) => Some(Some(lagged(missed))),
                Err(RecvError::Closed) => None,
            },
            () = self.closing.cancelled() => None,
            () = tokio::time::sleep(KEEP_ALIVE_EVERY) => Some(None),
        }
    }
}

/// The frame of what was there; `None` when nothing was.
fn taken<T>(received: &Result<T, TryRecvError>, frame: impl FnOnce(&T) -> Bytes) -> Option<Bytes> {
    match received {
        Ok(news) => Some(frame(news)),
        Err(TryRecvError::Lagged(missed)) => Some(lagged(*missed)),
        Err(TryRecvError::Empty | TryRecvError::Closed) => None,
    }
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
        Notice::PolicyDemoted(demotion) => frame(
            "policy_demoted",
            &json!({ "type": "policy_demoted", "name": demotion.name, "in_place": demotion.in_place,
                "message": demotion.last_failure.as_ref().map(ToString::to_string) }),
        ),
        Notice::ProtocolBroken { worker_id, errors, quarantine_ms } => frame(
            "protocol_broken",
            &json!({ "type": "protocol_broken", "worker_id": worker_id, "errors": errors,
                "quarantine_ms": quarantine_ms }),
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
