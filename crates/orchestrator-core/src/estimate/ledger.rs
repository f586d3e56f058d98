//! The work that lies ahead, as sums: what waits for each model by class and tenant, when the
//! running jobs are expected to end, how many slots serve. Every change and every question costs
//! O(log n), however many jobs wait.

mod kind;
mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api_types::task::Priority;
use api_types::worker::WorkerFacts;
use api_types::{JobId, TenantId, WorkerId};
use serde::{Deserialize, Serialize};

use self::kind::Kind;
pub use self::load::{Asked, Reach, Work};
use self::load::{ModelLoad, Span};
use super::rates::Engine;
use crate::queue::Group;
use crate::row::JobRow;

/// See the module.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Ledger {
    models: BTreeMap<Arc<str>, ModelLoad>,
    jobs: BTreeMap<JobId, Entry>,
    workers: BTreeMap<WorkerId, Serving>,
}

/// A worker that takes jobs.
#[derive(Debug, Serialize, Deserialize)]
struct Serving {
    kind: Kind,
    slots: u64,
}

/// Where a job stands in the sums.
#[derive(Debug, Serialize, Deserialize)]
enum Entry {
    Waiting { model: Arc<str>, place: Place },
    Running { model: Arc<str>, run: Running },
}

/// A place in a tenant's line.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    class: Priority,
    tenant: TenantId,
    /// What it demands, if it may not run on every worker.
    demands: Option<Arc<Group>>,
    /// `None`: nothing like it was ever seen.
    work: Option<Work>,
    /// Work that had been put into the line before it.
    mark: Work,
}

/// A job on a worker.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Running {
    /// When it began, in microseconds.
    pub began: Work,
    /// When it is expected to end, in microseconds; `None` when unknown.
    pub end: Option<Work>,
    /// Expected milliseconds of the attempt.
    pub service_ms: Option<f64>,
    /// Runs on its worker when it began, itself included.
    pub load: u32,
}

impl Running {
    fn span(&self) -> Option<Span> {
        self.end.map(|end| Span { began: self.began.min(end), end })
    }
}

impl Ledger {
    /// A worker as it stands now; `slots` is 0 while it takes no jobs.
    pub fn put_worker(&mut self, facts: &WorkerFacts, slots: u64) {
        let known = self.workers.get(&facts.worker_id);
        if known.map_or(slots == 0, |known| known.slots == slots && known.kind.is_of(facts)) {
            return;
        }
        self.remove_worker(&facts.worker_id);
        if slots > 0 {
            let kind = Kind::of(facts);
            let load = self.model_mut(&kind.engine.model);
            load.workers += 1;
            load.slots += slots;
            *load.engines.entry(kind.engine.clone()).or_default() += slots;
            *load.kinds.entry(kind.clone()).or_default() += slots;
            self.workers.insert(facts.worker_id.clone(), Serving { kind, slots });
        }
    }

    /// What a serving worker is.
    pub fn engine(&self, worker_id: &WorkerId) -> Option<&Engine> {
        self.workers.get(worker_id).map(|serving| &serving.kind.engine)
    }

    /// A worker that is no longer known.
    pub fn remove_worker(&mut self, worker_id: &WorkerId) {
        let Some(Serving { kind, slots }) = self.workers.remove(worker_id) else { return };
        let Some(load) = self.models.get_mut(kind.engine.model.as_str()) else { return };
        load.workers = load.workers.saturating_sub(1);
        load.slots = load.slots.saturating_sub(slots);
        take_slots(&mut load.engines, &kind.engine, slots);
        take_slots(&mut load.kinds, &kind, slots);
        self.tidy(&kind.engine.model);
    }

    /// Work of this class was admitted.
    pub fn note_arrival(&mut self, model: &str, class: Priority, work: Work, now: Work) {
        if class == Priority::Interactive {
            self.model_mut(model).inflow.add(work, now);
        }
    }

    /// A job waits for a model from now on.
    pub fn put_waiting(
        &mut self,
        job_id: JobId,
        model: &str,
        class: Priority,
        tenant: &TenantId,
        demands: Option<Group>,
        work: Option<Work>,
    ) {
        self.remove(job_id);
        let name = self.name(model);
        let class_load = self.model_mut(model).class_mut(class);
        let line = class_load.lines.entry(tenant.clone()).or_default();
        let place = Place {
            class,
            tenant: tenant.clone(),
            demands: demands.clone().map(Arc::new),
            work,
            mark: line.pushed,
        };
        line.pushed = line.pushed.saturating_add(work.unwrap_or(0));
        line.sum.add(work);
        class_load.sum.add(work);
        if let Some(demands) = demands {
            class_load.restricted.entry(demands).or_default().add(work);
        }
        self.jobs.insert(job_id, Entry::Waiting { model: name, place });
    }

    /// A worker holds a job from now on.
    pub fn put_running(&mut self, job_id: JobId, model: &str, run: Running) {
        self.remove(job_id);
        let name = self.name(model);
        self.model_mut(model).running.add(job_id, run.span());
        self.jobs.insert(job_id, Entry::Running { model: name, run });
    }

    /// Takes a job out; gives its run if a worker held it.
    pub fn remove(&mut self, job_id: JobId) -> Option<Running> {
        match self.jobs.remove(&job_id)? {
            Entry::Waiting { model, place } => {
                self.leave_line(&model, &place);
                self.tidy(&model);
                None
            }
            Entry::Running { model, run } => {
                if let Some(load) = self.models.get_mut(&model) {
                    load.running.remove(job_id, run.span());
                }
                self.tidy(&model);
                Some(run)
            }
        }
    }

    /// The run of a job that a worker holds.
    pub fn running(&self, job_id: JobId) -> Option<&Running> {
        match self.jobs.get(&job_id)? {
            Entry::Running { run, .. } => Some(run),
            Entry::Waiting { .. } => None,
        }
    }

    /// Whether a job is known to wait.
    pub fn is_waiting(&self, job_id: JobId) -> bool {
        matches!(self.jobs.get(&job_id), Some(Entry::Waiting { .. }))
    }

    /// The kinds of engine that serve a model, with their slots.
    pub fn engines(&self, model: &str) -> impl Iterator<Item = (&Engine, u64)> {
        self.models.get(model).into_iter().flat_map(|load| &load.engines).map(|(key, slots)| (key, *slots))
    }

    /// As [`Self::engines`], of those whose workers may take this job.
    pub fn engines_for(&self, row: &JobRow) -> BTreeMap<&Engine, u64> {
        let mut engines = BTreeMap::new();
        let Some(load) = self.models.get(row.model.as_str()) else { return engines };
        let meets = |id: &WorkerId| {
            let serving = self.workers.get(id)?;
            (serving.kind.engine.model == row.model && serving.kind.meets(row)).then_some(serving)
        };
        let avoided = |id: &WorkerId| row.placement.avoid.iter().any(|name| name == id.as_str());
        if let Some(named) = &row.placement.worker {
            let serving = meets(named).filter(|_| !avoided(named));
            engines.extend(serving.map(|serving| (&serving.kind.engine, serving.slots)));
            return engines;
        }
        for (kind, slots) in load.kinds.iter().filter(|(kind, _)| kind.meets(row)) {
            *engines.entry(&kind.engine).or_default() += slots;
        }
        let avoided: BTreeSet<WorkerId> =
            row.placement.avoid.iter().filter_map(|name| name.parse().ok()).collect();
        for serving in avoided.iter().filter_map(meets) {
            take_slots(&mut engines, &&serving.kind.engine, serving.slots);
        }
        engines
    }

    /// Slots that serve a model.
    pub fn slots(&self, model: &str) -> u64 {
        self.models.get(model).map_or(0, |load| load.slots)
    }

    /// Runs that will share the worker of the next job of this model, itself included: as many as a
    /// worker has slots when it has to wait, else as many as there are now on average.
    pub fn load_of_next(&self, model: &str, waits: bool) -> u32 {
        let Some(load) = self.models.get(model) else { return 1 };
        let full = load.slots / load.workers.max(1);
        let now = load.running.jobs / load.workers.max(1) + 1;
        u32::try_from(if waits { full } else { now.min(full) }).unwrap_or(u32::MAX).max(1)
    }

    /// Whether the next job of this class would wait.
    pub fn is_busy(&self, model: &str, class: Priority) -> bool {
        self.models.get(model).is_none_or(|load| {
            let before = match class {
                Priority::Interactive => load.interactive.sum.jobs,
                Priority::Batch => load.interactive.sum.jobs + load.batch.sum.jobs,
            };
            before > 0 || load.running.jobs >= load.slots
        })
    }

    /// How long a new job would wait, in microseconds; `None` while no worker serves the model. With
    /// `reach`: a job that may not run everywhere, and finds no free slot.
    pub fn wait_of_new(&mut self, model: &str, asked: &Asked<'_>, reach: Option<&Reach<'_>>) -> Option<Work> {
        let load = self.models.get_mut(model)?;
        load.running.pass_time(asked.now);
        match reach {
            None => load.wait(asked, load.own(asked)),
            Some(reach) => load.restricted_wait(asked, load.own(asked), reach),
        }
    }

    /// What goes before a new job once its model is served, as microseconds of one slot.
    pub fn ahead_of_new(&self, model: &str, asked: &Asked<'_>) -> Work {
        let Some(load) = self.models.get(model) else { return 0 };
        load.ahead(asked, load.own(asked))
    }

    /// Notes what time has made of the runs of a job's model, so that questions about waits stay cheap.
    pub fn pass_time(&mut self, job_id: JobId, now: Work) {
        if let Some(Entry::Waiting { model, .. }) = self.jobs.get(&job_id)
            && let Some(load) = self.models.get_mut(model)
        {
            load.running.pass_time(now);
        }
    }

    /// How much longer a waiting job waits, in microseconds; `reach` is the slots that may take it.
    pub fn wait_of(&self, job_id: JobId, work: Work, reach: Option<u64>, now: Work) -> Option<Work> {
        let (load, place, own) = self.place_of(job_id, work)?;
        let asked = Asked { class: place.class, tenant: &place.tenant, work, now };
        match (&place.demands, reach) {
            (Some(demands), Some(slots)) => load.restricted_wait(&asked, own, &Reach { demands, slots }),
            (None, _) | (_, None) => load.wait(&asked, own),
        }
    }

    /// What goes before a waiting job, as microseconds of one slot.
    pub fn ahead_of(&self, job_id: JobId, work: Work, now: Work) -> Option<Work> {
        let (load, place, own) = self.place_of(job_id, work)?;
        Some(load.ahead(&Asked { class: place.class, tenant: &place.tenant, work, now }, own))
    }

    /// Where a job waits, and what waits before it in its own line.
    fn place_of(&self, job_id: JobId, work: Work) -> Option<(&ModelLoad, &Place, Work)> {
        let Some(Entry::Waiting { model, place }) = self.jobs.get(&job_id) else { return None };
        let load = self.models.get(model)?;
        let line = load.class(place.class).lines.get(&place.tenant)?;
        let known = place.mark.saturating_sub(line.taken);
        let own = known.saturating_add(line.sum.unknown.saturating_mul(work)).min(line.sum.size(work));
        Some((load, place, own))
    }

    fn leave_line(&mut self, model: &Arc<str>, place: &Place) {
        let Some(load) = self.models.get_mut(model) else { return };
        let class_load = load.class_mut(place.class);
        class_load.sum.take(place.work);
        if let Some(demands) = place.demands.as_deref()
            && let Some(sum) = class_load.restricted.get_mut(demands)
        {
            sum.take(place.work);
            if sum.jobs == 0 {
                class_load.restricted.remove(demands);
            }
        }
        let Some(line) = class_load.lines.get_mut(&place.tenant) else { return };
        line.sum.take(place.work);
        line.taken = line.taken.saturating_add(place.work.unwrap_or(0));
        if line.sum.jobs == 0 {
            class_load.lines.remove(&place.tenant);
        }
    }

    fn model_mut(&mut self, model: &str) -> &mut ModelLoad {
        let name = self.name(model);
        self.models.entry(name).or_default()
    }

    fn name(&self, model: &str) -> Arc<str> {
        self.models.get_key_value(model).map_or_else(|| Arc::from(model), |(name, _)| Arc::clone(name))
    }

    fn tidy(&mut self, model: &str) {
        if self.models.get(model).is_some_and(ModelLoad::is_idle) {
            self.models.remove(model);
        }
    }
}

/// Takes slots from a count; nothing is kept of one that is used up.
fn take_slots<K: Ord>(counts: &mut BTreeMap<K, u64>, key: &K, slots: u64) {
    let Some(count) = counts.get_mut(key) else { return };
    *count = count.saturating_sub(slots);
    if *count == 0 {
        counts.remove(key);
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
