//! Telling the orchestrator (and a callback) that this worker is there, and staying known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::worker::{FailedCall, HEARTBEAT_MS, HeartbeatCall, HeartbeatReply, WorkerStatus};
use api_types::{ErrorCode, ErrorDetail, Incarnation};
use clients::{ClientError, OrchestratorClient};

use crate::memory;
use crate::state::WorkerState;

/// The first pause after a call that failed; each further one is twice as long, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// How often the last words of a failed worker are tried.
const LAST_WORDS: u32 = 3;

/// Registers, sends heartbeats and registers again when it is no longer known.
///
/// Returns only when no orchestrator has answered for as long as `orphaned` says, and it says to
/// exit then. A drain that the orchestrator asks for goes to [`WorkerState::want_drain`].
pub async fn keep_registered(state: &WorkerState, client: &OrchestratorClient, orphaned: Orphaned) {
    let mut contact = Contact { heard: Instant::now(), warned: false, orphaned };
    loop {
        let Some((incarnation, every)) = introduce(state, client, &mut contact).await else {
            return;
        };
        match beat(state, client, incarnation, every, &mut contact).await {
            BeatEnd::Unknown => tracing::info!(event = "registering_again"),
            BeatEnd::Orphaned => return,
        }
    }
}

/// What a worker without an orchestrator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orphaned {
    /// The silence after which it counts as orphaned.
    pub after: Duration,
    /// Whether it ends then, once its runs have ended; otherwise it goes on calling.
    pub exit: bool,
}

/// When the orchestrator was last heard of.
struct Contact {
    heard: Instant,
    warned: bool,
    orphaned: Orphaned,
}

impl Contact {
    fn heard(&mut self) {
        self.heard = Instant::now();
        self.warned = false;
    }

    /// Whether to give up. Says once that the worker is orphaned.
    fn lost(&mut self) -> bool {
        if self.heard.elapsed() < self.orphaned.after {
            return false;
        }
        if !self.warned {
            self.warned = true;
            tracing::warn!(event = "orphaned", silent_s = self.heard.elapsed().as_secs());
        }
        self.orphaned.exit
    }
}

/// Calls until the orchestrator answers; `None` when the worker is to give up.
async fn introduce(
    state: &WorkerState,
    client: &OrchestratorClient,
    contact: &mut Contact,
) -> Option<(Incarnation, Duration)> {
    let mut pause = FIRST_PAUSE;
    loop {
        state.registering();
        match client.ready(&state.ready_call()).await {
            Ok(reply) => {
                contact.heard();
                reply.drop_runs.iter().for_each(|run| state.runs.drop_run(run));
                state.registered(Some(reply.incarnation));
                tracing::info!(event = "registered", incarnation = %reply.incarnation);
                return Some((
                    reply.incarnation,
                    Duration::from_millis(reply.heartbeat_ms.clamp(100, 60_000)),
                ));
            }
            Err(error) => {
                state.registered(None);
                tracing::warn!(event = "registration_failed", %error, again_in_ms = pause.as_millis() as u64);
            }
        }
        if contact.lost() {
            return None;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

enum BeatEnd {
    /// The orchestrator does not know this incarnation any more.
    Unknown,
    Orphaned,
}

async fn beat(
    state: &WorkerState,
    client: &OrchestratorClient,
    incarnation: Incarnation,
    every: Duration,
    contact: &mut Contact,
) -> BeatEnd {
    let mut changes = state.changes();
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = changes.changed() => {}
        }
        match heartbeat(state, client, incarnation).await {
            Ok(reply) => {
                contact.heard();
                reply.drop_runs.iter().for_each(|run| state.runs.drop_run(run));
                if reply.drain && state.status() == WorkerStatus::Ready {
                    state.want_drain();
                }
            }
            Err(error) if forgotten(&error) => {
                contact.heard();
                return BeatEnd::Unknown;
            }
            Err(error) => tracing::debug!(event = "heartbeat_failed", %error),
        }
        if contact.lost() {
            return BeatEnd::Orphaned;
        }
    }
}

async fn heartbeat(
    state: &WorkerState,
    client: &OrchestratorClient,
    incarnation: Incarnation,
) -> Result<HeartbeatReply, ClientError> {
    let facts = state.facts();
    let call = HeartbeatCall {
        instance: facts.instance,
        incarnation,
        status: state.status(),
        slots_busy: state.runs.busy(),
        runs: state.runs.listed(),
        free_memory_bytes: memory::available_bytes(),
        prefixes: Some(state.retained.get()),
    };
    client.heartbeat(&facts.worker_id, &call).await
}

fn forgotten(error: &ClientError) -> bool {
    error.is_code(ErrorCode::StaleIncarnation) || error.is_code(ErrorCode::WorkerNotFound)
}

/// Tells `url` once that the worker is ready, and tries until that succeeds.
pub async fn call_back(state: Arc<WorkerState>, url: String) {
    let Ok(http) = clients::http::http_client() else {
        tracing::error!(event = "callback_failed", "the TLS roots of this machine cannot be read");
        return;
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let limit = Duration::from_millis(HEARTBEAT_MS);
        match http.post(&url).json(&state.ready_call()).timeout(limit).send().await {
            Ok(answer) if answer.status().is_success() => return,
            Ok(answer) => tracing::warn!(event = "callback_refused", status = answer.status().as_u16()),
            Err(error) => tracing::warn!(event = "callback_failed", error = %error.without_url()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Tells the orchestrator why this worker cannot go on. Gives up after a few tries, because the
/// process is about to end and a lost lease tells the same.
pub async fn report_failure(state: &WorkerState, client: &OrchestratorClient, error: ErrorDetail) {
    let facts = state.facts();
    let call = FailedCall { instance: facts.instance, error };
    for _ in 0..LAST_WORDS {
        match client.failed(&facts.worker_id, &call).await {
            Ok(()) => return,
            Err(ClientError::Answered { .. }) => return,
            Err(error) => tracing::warn!(event = "failure_not_reported", %error),
        }
        tokio::time::sleep(FIRST_PAUSE).await;
    }
}

/// Tells the orchestrator that this worker has drained and ends. Said once: a lease that is not
/// renewed tells the same, a little later.
pub async fn report_end(state: &WorkerState, client: &OrchestratorClient) {
    let facts = state.facts();
    let error = ErrorDetail::new(ErrorCode::ShuttingDown, "the worker has ended in order");
    if let Err(error) = client.failed(&facts.worker_id, &FailedCall { instance: facts.instance, error }).await
    {
        tracing::debug!(event = "end_not_reported", %error);
    }
}
