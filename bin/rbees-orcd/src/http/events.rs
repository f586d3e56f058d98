//! What an operator watches, live: jobs, workers, the queue.

use std::convert::Infallible;
use std::time::Duration;

use api_types::sse::{KEEP_ALIVE, encode_json_into};
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use orchestrator_core::Notice;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::{App, sse};

/// A silent stream gets a comment this often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);

/// News of jobs, workers and the queue as they happen. Not kept: who comes late asks the lists.
#[utoipa::path(get, path = "/v2/events", tag = "operator",
    responses((status = 200, description = "Server-sent events `job`, `worker`, `queue`, `stale_dropped`, `lagged`",
        content_type = "text/event-stream", body = String)))]
pub async fn operator_events(State(app): State<App>) -> Response {
    let news = (app.driver.notices(), app.closing.clone());
    sse::answer(futures_util::stream::unfold(news, |(mut notices, closing)| async move {
        let frame = tokio::select! {
            notice = notices.recv() => match notice {
                Ok(notice) => encode(&notice),
                Err(RecvError::Lagged(missed)) => frame("lagged", &json!({ "type": "lagged", "missed": missed })),
                Err(RecvError::Closed) => return None,
            },
            () = closing.cancelled() => return None,
            () = tokio::time::sleep(KEEP_ALIVE_EVERY) => Bytes::from_static(KEEP_ALIVE),
        };
        Some((Ok::<_, Infallible>(frame), (notices, closing)))
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
        Notice::StaleDropped { kind } => {
            frame("stale_dropped", &json!({ "type": "stale_dropped", "kind": kind }))
        }
    }
}

fn frame(name: &str, data: &Value) -> Bytes {
    let mut bytes = Vec::with_capacity(128);
    encode_json_into(&mut bytes, None, name, data);
    bytes.into()
}
