//! Facts that own what they hold: for trying a policy away from the brain.

use std::collections::BTreeMap;

use api_types::WorkerId;
use api_types::worker::WorkerFacts;

use super::facts::{Hour, Label, Labels, WorkerLoad};
use crate::orchestrator::Orchestrator;
use crate::time::Time;
use crate::worker::Worker;

/// A worker as it stood at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleWorker {
    /// What it is.
    pub facts: WorkerFacts,
    /// Slots that no run held.
    pub slots_free: u32,
    /// Free memory of its device, in bytes; 0 when unknown.
    pub free_memory_bytes: u64,
    /// Milliseconds since it last had a job; 0 while it has one.
    pub idle_ms: u64,
    /// Its own labels.
    pub labels: BTreeMap<String, Label>,
    /// Those of its pool.
    pub pool_labels: BTreeMap<String, Label>,
}

impl SampleWorker {
    /// Its id.
    pub const fn id(&self) -> &WorkerId {
        &self.facts.worker_id
    }

    /// What a policy would see of it at this hour.
    pub fn load(&self, hour: Hour) -> WorkerLoad<'_> {
        WorkerLoad {
            model: &self.facts.model,
            quantization: self.facts.quantization.as_deref(),
            backend: &self.facts.backend,
            devices: &self.facts.devices,
            pool: self.facts.pool_id.as_ref().map(api_types::PoolId::as_str),
            slots: self.facts.slots,
            slots_free: self.slots_free,
            context_length: self.facts.context_length,
            free_memory_bytes: self.free_memory_bytes,
            idle_ms: self.idle_ms,
            memory_bytes: self.facts.vram_bytes.max(self.facts.ram_bytes),
            labels: Labels { worker: Some(&self.labels), pool: Some(&self.pool_labels) },
            hour,
            ..WorkerLoad::default()
        }
    }
}

impl Orchestrator {
    /// Up to `limit` workers that serve at the moment, by id.
    pub fn sample_workers(&self, limit: usize, now: Time) -> Vec<SampleWorker> {
        let serving = |worker: &&Worker| worker.is_serving(&self.settings, now);
        let sample = |worker: &Worker| {
            let facts = worker.row.facts.clone();
            let labels = self.settings.labels.of(&facts.worker_id, facts.pool_id.as_ref());
            SampleWorker {
                slots_free: worker.slots_free(),
                free_memory_bytes: worker.free_memory_bytes,
                idle_ms: worker.idle_since.map_or(0, |since| now.since(since)),
                labels: labels.worker.cloned().unwrap_or_default(),
                pool_labels: labels.pool.cloned().unwrap_or_default(),
                facts,
            }
        };
        self.registry.all().filter(serving).take(limit).map(sample).collect()
    }
}
