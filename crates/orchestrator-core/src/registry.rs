//! All workers, found by id and by model, and the numbers they are given.

use std::collections::{BTreeMap, BTreeSet};

use api_types::{Incarnation, WorkerId};
use serde::{Deserialize, Serialize};

use crate::event::RunKey;
use crate::time::Time;
use crate::worker::{SlotUse, Worker};

/// The registry of workers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Registry {
    workers: BTreeMap<WorkerId, Worker>,
    by_model: BTreeMap<String, BTreeSet<WorkerId>>,
    /// The number the next registration gets.
    pub next_incarnation: Incarnation,
    /// Until when silence is not believed.
    pub brake_until: Option<Time>,
    /// Workers given up for silence lately, by time.
    pub silenced: Vec<Time>,
}

impl Registry {
    /// An empty registry that numbers on from `next_incarnation`.
    pub const fn new(next_incarnation: Incarnation) -> Self {
        Self {
            workers: BTreeMap::new(),
            by_model: BTreeMap::new(),
            next_incarnation,
            brake_until: None,
            silenced: Vec::new(),
        }
    }

    /// The number for a new registration; never given again.
    pub const fn draw_incarnation(&mut self) -> Incarnation {
        let drawn = self.next_incarnation;
        self.next_incarnation = Incarnation(drawn.0 + 1);
        drawn
    }

    /// Adds a worker or replaces it.
    pub fn put(&mut self, worker: Worker) {
        let worker_id = worker.row.facts.worker_id.clone();
        self.remove(&worker_id);
        self.by_model.entry(worker.row.facts.model.clone()).or_default().insert(worker_id.clone());
        self.workers.insert(worker_id, worker);
    }

    /// Forgets a worker.
    pub fn remove(&mut self, worker_id: &WorkerId) -> Option<Worker> {
        let worker = self.workers.remove(worker_id)?;
        let model = &worker.row.facts.model;
        if let Some(ids) = self.by_model.get_mut(model) {
            ids.remove(worker_id);
            if ids.is_empty() {
                self.by_model.remove(model);
            }
        }
        Some(worker)
    }

    /// A worker by id.
    pub fn get(&self, worker_id: &WorkerId) -> Option<&Worker> {
        self.workers.get(worker_id)
    }

    /// A worker by id, to change what the indexes do not depend on.
    pub fn get_mut(&mut self, worker_id: &WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(worker_id)
    }

    /// The worker that holds a run, if that incarnation is still its current one.
    pub fn holder(&self, run: &RunKey) -> Option<&Worker> {
        self.workers.get(&run.worker_id).filter(|worker| worker.row.incarnation == run.incarnation)
    }

    /// Every worker, by id.
    pub fn all(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    /// Every worker, by id, to change what the indexes do not depend on.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.workers.values_mut()
    }

    /// The workers that run a model, by id.
    pub fn of_model(&self, model: &str) -> impl Iterator<Item = &Worker> {
        self.by_model.get(model).into_iter().flatten().filter_map(|worker_id| self.workers.get(worker_id))
    }

    /// Models that workers run, by name, with those workers.
    pub fn models(&self) -> impl Iterator<Item = (&String, &BTreeSet<WorkerId>)> {
        self.by_model.iter()
    }

    /// Gives a run one of its worker's slots.
    pub fn hold_slot(&mut self, run: &RunKey) {
        if let Some(worker) = self.holder_mut(run) {
            worker.runs.insert((run.job_id, run.attempt), SlotUse::Wanted);
        }
    }

    /// Keeps the slot of a run that was told to stop until the worker says that it did.
    pub fn await_stop(&mut self, run: &RunKey) {
        if let Some(slot) = self.holder_mut(run).and_then(|w| w.runs.get_mut(&(run.job_id, run.attempt))) {
            *slot = SlotUse::Stopping;
        }
    }

    /// Frees the slot of a run that ended.
    pub fn free_slot(&mut self, run: &RunKey) {
        if let Some(worker) = self.holder_mut(run) {
            worker.runs.remove(&(run.job_id, run.attempt));
        }
    }

    fn holder_mut(&mut self, run: &RunKey) -> Option<&mut Worker> {
        self.workers.get_mut(&run.worker_id).filter(|worker| worker.row.incarnation == run.incarnation)
    }
}
