//! What the brain is told of a pool's own words.

use api_types::pool::{CatalogModel, PoolStatus, RecordState, WorkerRecord};
use orchestrator_core::{PoolModel, PoolProcess, PoolRoom};

/// Its catalog.
pub fn models(status: &PoolStatus) -> Vec<PoolModel> {
    let model = |model: &CatalogModel| PoolModel {
        id: model.id.clone(),
        aliases: model.aliases.clone(),
        context_length: model.context_length,
        downloaded: model.downloaded,
    };
    status.models.iter().map(model).collect()
}

/// Its memory.
pub fn room(status: PoolStatus) -> PoolRoom {
    let living = |worker: &WorkerRecord| worker.state != RecordState::Gone;
    PoolRoom {
        fits: status.fits,
        processes: status.workers.into_iter().filter(living).map(process).collect(),
    }
}

fn process(worker: WorkerRecord) -> PoolProcess {
    PoolProcess {
        bytes: worker.predicted_bytes.max(worker.measured_bytes).unwrap_or(0),
        device: worker.device.unwrap_or(worker.backend),
        starting: worker.state == RecordState::Spawned,
        worker_id: worker.worker_id,
        model: worker.model,
    }
}
