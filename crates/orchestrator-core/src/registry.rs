//! All workers, found by id and by model, and the numbers they are given.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use api_types::{Incarnation, InstanceId, WorkerId};
use serde::{Deserialize, Serialize};

use crate::event::RunKey;
use crate::openings::Openings;
use crate::settings::Settings;
use crate::time::Time;
use crate::worker::{SlotUse, Worker};

/// Starts that are known to have ended and are remembered, so that what they still had on the way does
/// not bring them back.
const ENDED_INSTANCES: usize = 64;

/// The registry of workers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Registry {
    workers: BTreeMap<WorkerId, Worker>,
    by_model: BTreeMap<String, BTreeSet<WorkerId>>,
    /// Follows from the workers, so it is built anew rather than read back.
    #[serde(skip)]
    openings: Openings,
    #[serde(skip)]
    is_indexed: bool,
    /// Workers that may have changed since the index was last brought up to date.
    #[serde(skip)]
    changed: BTreeSet<WorkerId>,
    /// Workers that have opened since that was last asked for, by model.
    opened: BTreeMap<String, BTreeSet<WorkerId>>,
    /// The number the next registration gets.
    pub next_incarnation: Incarnation,
    /// Until when silence is not believed.
    pub brake_until: Option<Time>,
    /// Workers given up for silence lately, by time.
    pub silenced: Vec<Time>,
    /// The last starts whose processes are known to have ended, oldest first.
    ended: VecDeque<InstanceId>,
}

impl Registry {
    /// An empty registry that numbers on from `next_incarnation`.
    pub fn new(next_incarnation: Incarnation) -> Self {
        Self {
            workers: BTreeMap::new(),
            by_model: BTreeMap::new(),
            openings: Openings::default(),
            is_indexed: false,
            changed: BTreeSet::new(),
            opened: BTreeMap::new(),
            next_incarnation,
            brake_until: None,
            silenced: Vec::new(),
            ended: VecDeque::new(),
        }
    }

    /// Notes that the process of a start has ended: it never speaks again.
    pub fn note_ended(&mut self, instance: InstanceId) {
        self.ended.push_back(instance);
        if self.ended.len() > ENDED_INSTANCES {
            self.ended.pop_front();
        }
    }

    /// Whether the process of a start is known to have ended.
    pub fn has_ended(&self, instance: InstanceId) -> bool {
        self.ended.contains(&instance)
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
        self.changed.insert(worker_id.clone());
        self.by_model.entry(worker.row.facts.model.clone()).or_default().insert(worker_id.clone());
        self.workers.insert(worker_id, worker);
    }

    /// Forgets a worker.
    pub fn remove(&mut self, worker_id: &WorkerId) -> Option<Worker> {
        let worker = self.workers.remove(worker_id)?;
        self.changed.remove(worker_id);
        self.openings.remove(worker_id);
        let model = &worker.row.facts.model;
        for by_model in [&mut self.by_model, &mut self.opened] {
            if let Some(ids) = by_model.get_mut(model) {
                ids.remove(worker_id);
                if ids.is_empty() {
                    by_model.remove(model);
                }
            }
        }
        Some(worker)
    }

    /// A worker by id.
    pub fn get(&self, worker_id: &WorkerId) -> Option<&Worker> {
        self.workers.get(worker_id)
    }

    /// A worker by id, to change anything but its facts, which `put` replaces.
    pub fn get_mut(&mut self, worker_id: &WorkerId) -> Option<&mut Worker> {
        let worker = self.workers.get_mut(worker_id)?;
        if !self.changed.contains(worker_id) {
            self.changed.insert(worker_id.clone());
        }
        Some(worker)
    }

    /// The worker that holds a run, if that incarnation is still its current one.
    pub fn holder(&self, run: &RunKey) -> Option<&Worker> {
        self.workers.get(&run.worker_id).filter(|worker| worker.row.incarnation == run.incarnation)
    }

    /// Every worker, by id.
    pub fn all(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    /// Every worker, by id, to change anything but its facts.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.changed.extend(self.workers.keys().cloned());
        self.workers.values_mut()
    }

    /// Brings the index of open workers up to `now`. Costs what has changed since the last time.
    pub fn refresh(&mut self, settings: &Settings, now: Time) {
        if !std::mem::replace(&mut self.is_indexed, true) {
            self.changed.extend(self.workers.keys().cloned());
        }
        self.changed.extend(self.openings.due(now).cloned());
        for worker_id in std::mem::take(&mut self.changed) {
            let Some(worker) = self.workers.get(&worker_id) else {
                self.openings.remove(&worker_id);
                continue;
            };
            if self.openings.put(worker, settings, now) {
                self.opened.entry(worker.row.facts.model.clone()).or_default().insert(worker_id);
            }
        }
    }

    /// Builds the index of a registry that was read back as of `seen`. Nobody has opened by that.
    pub fn reindex(&mut self, settings: &Settings, seen: Time) {
        let opened = std::mem::take(&mut self.opened);
        self.refresh(settings, seen);
        self.opened = opened;
    }

    /// Workers of a model that have opened since this was last asked, as of the last `refresh`.
    pub fn take_opened(&mut self, model: &str) -> BTreeSet<WorkerId> {
        self.opened.remove(model).unwrap_or_default()
    }

    /// The index of open workers, as of the last `refresh`.
    pub const fn openings(&self) -> &Openings {
        &self.openings
    }

    /// Whether a start of a worker is its current one and not given up. Looks at every worker.
    pub fn is_living(&self, incarnation: Incarnation) -> bool {
        self.all().any(|worker| worker.row.incarnation == incarnation && worker.gone.is_none())
    }

    /// Whether the index says what a look at every worker finds.
    pub fn openings_are_exact(&self, settings: &Settings, now: Time) -> bool {
        let mut from_scratch = Openings::default();
        for worker in self.workers.values() {
            from_scratch.put(worker, settings, now);
        }
        self.openings == from_scratch
    }

    /// Workers that are not given up, and those that could take a job now or after their running
    /// ones.
    pub fn living_and_serving(&self, settings: &Settings, now: Time) -> (u64, u64) {
        if !self.is_indexed {
            let living = self.all().filter(|worker| worker.gone.is_none()).count();
            let serving = self.all().filter(|worker| worker.is_serving(settings, now)).count();
            return (living as u64, serving as u64);
        }
        let openings = &self.openings;
        let counts_now = |worker_id: &&WorkerId| {
            self.workers.get(worker_id).is_some_and(|worker| worker.is_serving(settings, now))
        };
        let (fell, rose) = openings.due(now).fold((0, 0), |(fell, rose), worker_id| {
            match (openings.counts_as_serving(worker_id), counts_now(&worker_id)) {
                (true, false) => (fell + 1, rose),
                (false, true) => (fell, rose + 1),
                (true, true) | (false, false) => (fell, rose),
            }
        });
        (openings.totals().living, openings.totals().serving + rose - fell)
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
        self.get_mut(&run.worker_id).filter(|worker| worker.row.incarnation == run.incarnation)
    }
}
