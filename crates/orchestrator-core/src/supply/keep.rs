//! How long a worker without a job is kept.

use api_types::worker::{WorkerFacts, WorkerStatus};

use crate::orchestrator::Orchestrator;
use crate::settings::SupplySettings;
use crate::step::UnloadCause;
use crate::time::Time;
use crate::turn::Turn;
use crate::worker::Worker;

/// Whether a worker stays whatever else needs its memory.
pub(crate) fn is_pinned(facts: &WorkerFacts, settings: &SupplySettings) -> bool {
    !facts.evictable || settings.pinned.contains(&facts.model)
}

/// When a worker that has been idle since `since` is unloaded.
fn unload_at(facts: &WorkerFacts, since: Time, settings: &SupplySettings) -> Option<Time> {
    if is_pinned(facts, settings) {
        return None;
    }
    let of_model = settings.keep_alive_of.get(&facts.model).copied();
    of_model.unwrap_or(settings.keep_alive_ms).map(|ms| since + ms)
}

impl Orchestrator {
    /// Notes which of the workers that this turn touched are idle, and takes those out of service
    /// whose time is over. Returns whether one has become idle.
    pub(super) fn note_use(&mut self, turn: &mut Turn) -> bool {
        let mut freed = false;
        let mut over = Vec::new();
        for worker_id in &turn.workers_touched {
            let Some(worker) = self.registry.get_mut(worker_id) else { continue };
            let was_idle = worker.idle_since.is_some();
            note(worker, &self.settings.supply, turn.now);
            freed |= worker.idle_since.is_some() && !was_idle;
            if worker.unload_at.is_some_and(|at| at <= turn.now) {
                over.push(worker_id.clone());
            }
        }
        for worker_id in over {
            self.end_worker(&worker_id, UnloadCause::Idle, None, turn);
        }
        freed
    }
}

fn note(worker: &mut Worker, settings: &SupplySettings, now: Time) {
    let ready = worker.gone.is_none() && !worker.row.draining && worker.status == Some(WorkerStatus::Ready);
    if ready {
        worker.ready_at.get_or_insert(now);
    }
    let idle = ready && worker.runs.is_empty();
    worker.idle_since = idle.then(|| worker.idle_since.unwrap_or(now));
    worker.unload_at = worker.idle_since.and_then(|since| unload_at(&worker.row.facts, since, settings));
}
