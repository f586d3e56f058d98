//! Workers by what they can do and how free they are, so that a placement looks at a few of them
//! whatever the size of the fleet.
//!
//! Workers of one model fall into classes (backend, capabilities and context: a handful, as many as
//! there are builds and ways to start them) and within a class into pools. Workers of one class and pool meet the same demands but for
//! those that name a worker, so they stand in one order: that of the built-in policy without
//! affinity. The index says what holds at the time it was last brought up to date; what the mere
//! passing of time changes is kept by when it falls due.

mod by_pool;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use api_types::task::Placement;
use api_types::worker::WorkerStatus;
use api_types::{PoolId, WorkerId};

use self::by_pool::ByPool;
use crate::row::JobRow;
use crate::settings::Settings;
use crate::time::Time;
use crate::worker::Worker;

/// The capability of a worker whose model has a chat template.
const CHAT: &str = "chat";

/// The index. Everything in it follows from the workers and the time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Openings {
    models: BTreeMap<String, OfModel>,
    entries: BTreeMap<WorkerId, Entry>,
    due: BTreeSet<(Time, WorkerId)>,
    /// Pools that workers belong to, with how many.
    pools: BTreeMap<PoolId, u64>,
    /// Contexts of workers, with how many have each.
    contexts: BTreeMap<u32, u64>,
    totals: Totals,
}

/// Sums over all workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Workers that are not given up.
    pub living: u64,
    /// Their slots.
    pub living_slots: u64,
    /// Workers that could take a job now or after their running ones.
    pub serving: u64,
}

/// Workers of one model.
#[derive(Debug, Default, PartialEq, Eq)]
struct OfModel {
    classes: BTreeMap<Class, OfClass>,
    open: BTreeSet<WorkerId>,
    closed: BTreeSet<WorkerId>,
    /// Those that could take a job now or after their running ones.
    serving: u64,
}

/// What a worker can do, as far as a job may require it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    backend: String,
    capabilities: BTreeSet<String>,
    /// Tokens of context per job.
    context: u32,
}

/// Workers of one class, those that are open in order.
#[derive(Debug, Default, PartialEq, Eq)]
struct OfClass {
    members: u64,
    /// Members that said they are ready, whatever their lease.
    ready: u64,
    /// Members that could take a job now or after their running ones.
    serving: ByPool,
    /// Members that have loaded and are not about to go, whatever they are doing.
    loaded: ByPool,
    /// Members of which that will be so once they have loaded, or are heard of.
    coming: ByPool,
    /// The best open worker of each pool.
    heads: BTreeSet<(Standing, Option<PoolId>)>,
    pools: BTreeMap<Option<PoolId>, BTreeSet<Standing>>,
}

/// A place in the order: most points first, between equals the lower id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Standing {
    /// The bits of a number that is not negative, which sort as the number does.
    points: Reverse<u64>,
    worker_id: WorkerId,
}

/// Where a worker stands in the index.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    model: String,
    class: Class,
    pool: Option<PoolId>,
    slots: u32,
    state: State,
}

/// What of a worker changes from event to event.
#[derive(Debug, Default, PartialEq, Eq)]
struct State {
    open: Option<Standing>,
    due: Option<Time>,
    living: bool,
    ready: bool,
    serving: bool,
    staying: bool,
}

impl State {
    fn of(worker: &Worker, settings: &Settings, now: Time) -> Self {
        let living = worker.gone.is_none();
        let open = worker.is_open(settings, now).then(|| Standing {
            points: Reverse(worker.base_points().to_bits()),
            worker_id: worker.row.facts.worker_id.clone(),
        });
        Self {
            open,
            due: worker.next_change(settings, now),
            living,
            ready: living && worker.status == Some(WorkerStatus::Ready),
            serving: worker.is_serving(settings, now),
            staying: worker.is_staying(),
        }
    }
}

impl Class {
    fn of(worker: &Worker) -> Self {
        let facts = &worker.row.facts;
        Self {
            backend: facts.backend.clone(),
            capabilities: facts.capabilities.iter().cloned().collect(),
            context: facts.context_length,
        }
    }

    fn meets(&self, row: &JobRow) -> bool {
        row.fits_context(self.context) && self.can_all(&row.placement.require)
    }

    fn can_all(&self, require: &[String]) -> bool {
        require.iter().all(|name| self.backend == *name || self.capabilities.contains(name))
    }

    /// Whether a member may meet the demands once it has loaded. What it can do is known only then.
    fn may_meet(&self, row: &JobRow) -> bool {
        !row.placement.require.iter().any(|name| is_other_backend(name, &self.backend))
    }
}

impl Openings {
    /// Notes how a worker stands now; one that is in the index already must have the same facts. Returns
    /// whether it has opened.
    pub fn put(&mut self, worker: &Worker, settings: &Settings, now: Time) -> bool {
        let facts = &worker.row.facts;
        let state = State::of(worker, settings, now);
        if !self.entries.contains_key(&facts.worker_id) {
            self.add(worker);
        }
        let is_open = state.open.is_some();
        let was_open = self.entries.get(&facts.worker_id).is_some_and(|entry| entry.state.open.is_some());
        self.change(&facts.worker_id, state);
        is_open && !was_open
    }

    fn add(&mut self, worker: &Worker) {
        let facts = &worker.row.facts;
        let entry = Entry {
            model: facts.model.clone(),
            class: Class::of(worker),
            pool: facts.pool_id.clone(),
            slots: facts.slots,
            state: State::default(),
        };
        let of_model = self.models.entry(entry.model.clone()).or_default();
        of_model.closed.insert(facts.worker_id.clone());
        of_model.classes.entry(entry.class.clone()).or_default().members += 1;
        if let Some(pool) = &entry.pool {
            *self.pools.entry(pool.clone()).or_default() += 1;
        }
        *self.contexts.entry(entry.class.context).or_default() += 1;
        self.entries.insert(facts.worker_id.clone(), entry);
    }

    /// Forgets a worker.
    pub fn remove(&mut self, worker_id: &WorkerId) {
        self.change(worker_id, State::default());
        let Some(entry) = self.entries.remove(worker_id) else { return };
        if let Some(pool) = &entry.pool {
            count_down(&mut self.pools, pool);
        }
        count_down(&mut self.contexts, &entry.class.context);
        let Some(of_model) = self.models.get_mut(&entry.model) else { return };
        of_model.closed.remove(worker_id);
        if let Some(of_class) = of_model.classes.get_mut(&entry.class) {
            of_class.members -= 1;
            if of_class.members == 0 {
                of_model.classes.remove(&entry.class);
            }
        }
        if of_model.classes.is_empty() {
            self.models.remove(&entry.model);
        }
    }

    fn change(&mut self, worker_id: &WorkerId, state: State) {
        let Some(entry) = self.entries.get_mut(worker_id) else { return };
        let old = std::mem::replace(&mut entry.state, state);
        let new = &entry.state;
        if old == *new {
            return;
        }
        if old.due != new.due {
            if let Some(at) = old.due {
                self.due.remove(&(at, worker_id.clone()));
            }
            if let Some(at) = new.due {
                self.due.insert((at, worker_id.clone()));
            }
        }
        self.totals.count(&old, new, entry.slots);
        let Some(of_model) = self.models.get_mut(&entry.model) else { return };
        of_model.count(worker_id, &old, new);
        let Some(of_class) = of_model.classes.get_mut(&entry.class) else { return };
        of_class.ready = of_class.ready + u64::from(new.ready) - u64::from(old.ready);
        of_class.serving.set(&entry.pool, worker_id, new.serving);
        of_class.loaded.set(&entry.pool, worker_id, new.staying && new.ready);
        of_class.coming.set(&entry.pool, worker_id, new.staying && !new.ready);
        if old.open != new.open {
            of_class.stand(&entry.pool, old.open.as_ref(), new.open.clone());
        }
    }

    /// Workers whose standing the passing of time has changed by `now`.
    pub fn due(&self, now: Time) -> impl Iterator<Item = &WorkerId> {
        self.due.iter().take_while(move |(at, _)| *at <= now).map(|(_, worker_id)| worker_id)
    }

    /// Whether any worker of this model is open.
    pub fn has_open(&self, model: &str) -> bool {
        self.models.get(model).is_some_and(|of_model| !of_model.open.is_empty())
    }

    /// Open workers of this model, by id from the one after `after` on and then from the first.
    pub fn open_after<'a>(
        &'a self,
        model: &str,
        after: Option<&'a WorkerId>,
    ) -> impl Iterator<Item = &'a WorkerId> {
        let open = self.models.get(model).map(|of_model| &of_model.open);
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest =
            open.into_iter().flat_map(move |open| open.range::<WorkerId, _>((start, Bound::Unbounded)));
        let before = open.zip(after).into_iter().flat_map(|(open, after)| open.range(..=after));
        rest.chain(before)
    }

    /// Workers of this model that are not open, by id.
    pub fn closed(&self, model: &str) -> impl Iterator<Item = &WorkerId> {
        self.models.get(model).into_iter().flat_map(|of_model| &of_model.closed)
    }

    /// Whether any worker belongs to this pool.
    pub fn has_pool(&self, pool: &PoolId) -> bool {
        self.pools.contains_key(pool)
    }

    /// Sums over all workers.
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    /// Whether a worker counts as one that serves, as of the last change.
    pub fn counts_as_serving(&self, worker_id: &WorkerId) -> bool {
        self.entries.get(worker_id).is_some_and(|entry| entry.state.serving)
    }

    /// Whether every worker of the model that is ready lacks a chat template, and there is one.
    pub fn lacks_chat(&self, model: &str) -> bool {
        let Some(of_model) = self.models.get(model) else { return false };
        let ready = || of_model.classes.iter().filter(|(_, of_class)| of_class.ready > 0);
        ready().next().is_some() && !ready().any(|(class, _)| class.capabilities.contains(CHAT))
    }

    /// The best open workers that meet the demands of a placement, but for a worker it names: about
    /// `breadth` in all, at least three of each class and best first within it.
    ///
    /// The best of all that is neither preferred nor has affinity is among them, even without any two
    /// of them (the one that failed the job, the one that is taken): a worker that is passed over
    /// stands behind three that were found.
    pub fn best(&self, row: &JobRow, breadth: usize) -> Vec<&WorkerId> {
        let classes = || self.classes(&row.model).filter(|(class, _)| class.meets(row));
        let each = (breadth / classes().count().max(1)).max(3);
        classes().flat_map(|(_, of_class)| of_class.best(&row.placement, each)).collect()
    }

    /// Whether a worker that stays meets the demands of a job, or may once it has loaded; but for a
    /// worker that the job names. Looks at each class and at no worker but those that the job avoids.
    pub fn serves(&self, row: &JobRow) -> bool {
        self.is_served_by(row, |_| true)
    }

    /// As [`Self::serves`], by a worker whose context, as far as it has told, holds the job.
    pub fn holds(&self, row: &JobRow) -> bool {
        self.is_served_by(row, |class| row.fits_context(class.context))
    }

    fn is_served_by(&self, row: &JobRow, is_meant: impl Fn(&Class) -> bool) -> bool {
        let placement = &row.placement;
        self.classes(&row.model).filter(|(class, _)| is_meant(class)).any(|(class, of_class)| {
            (class.meets(row) && of_class.loaded.allowed(placement).is_some())
                || (class.may_meet(row) && of_class.coming.allowed(placement).is_some())
        })
    }

    /// The serving worker with the largest context that meets the demands of a placement, but for a
    /// worker it names.
    pub fn largest_context(&self, model: &str, placement: &Placement) -> Option<&WorkerId> {
        self.classes(model)
            .filter(|(class, _)| class.can_all(&placement.require))
            .filter_map(|(class, of_class)| Some((class.context, of_class.serving.allowed(placement)?)))
            .max()
            .map(|(_, worker_id)| worker_id)
    }

    /// Whether some worker of its model is too small for a job.
    pub fn is_too_long_for_some(&self, row: &JobRow) -> bool {
        self.least_context_of(&row.model).is_some_and(|least| !row.fits_context(least))
    }

    /// The most tokens of context that any worker of a model has.
    pub fn most_context(&self, model: &str) -> Option<u32> {
        self.classes(model).map(|(class, _)| class.context).max()
    }

    /// The fewest tokens of context that any worker of a model has.
    pub fn least_context_of(&self, model: &str) -> Option<u32> {
        self.classes(model).map(|(class, _)| class.context).min()
    }

    /// The fewest tokens of context that any worker has.
    pub fn least_context(&self) -> Option<u32> {
        self.contexts.first_key_value().map(|(context, _)| *context)
    }

    /// Workers of a model that could take a job now or after their running ones.
    pub fn serving(&self, model: &str) -> u64 {
        self.models.get(model).map_or(0, |of_model| of_model.serving)
    }

    fn classes(&self, model: &str) -> impl Iterator<Item = (&Class, &OfClass)> {
        self.models.get(model).into_iter().flat_map(|of_model| &of_model.classes)
    }

    /// Open workers of other classes than the job requires, one of each.
    pub fn unfit<'a>(&'a self, row: &'a JobRow) -> impl Iterator<Item = &'a WorkerId> {
        self.classes(&row.model)
            .filter(|(class, _)| !class.meets(row))
            .filter_map(|(_, of_class)| of_class.heads.first().map(|(standing, _)| &standing.worker_id))
    }

    /// The best open workers of a pool, three of each class.
    pub fn of_pool<'a>(&'a self, model: &str, pool: &PoolId) -> impl Iterator<Item = &'a WorkerId> {
        let pool = Some(pool.clone());
        self.classes(model)
            .filter_map(move |(_, of_class)| of_class.pools.get(&pool))
            .flat_map(|order| order.iter().take(3).map(|standing| &standing.worker_id))
    }
}

impl Totals {
    fn count(&mut self, old: &State, new: &State, slots: u32) {
        self.living = self.living + u64::from(new.living) - u64::from(old.living);
        self.serving = self.serving + u64::from(new.serving) - u64::from(old.serving);
        let slots = u64::from(slots);
        self.living_slots = self.living_slots + u64::from(new.living) * slots - u64::from(old.living) * slots;
    }
}

impl OfModel {
    fn count(&mut self, worker_id: &WorkerId, old: &State, new: &State) {
        self.serving = self.serving + u64::from(new.serving) - u64::from(old.serving);
        match (old.open.is_some(), new.open.is_some()) {
            (false, true) => {
                self.open.insert(worker_id.clone());
                self.closed.remove(worker_id);
            }
            (true, false) => {
                self.open.remove(worker_id);
                self.closed.insert(worker_id.clone());
            }
            (true, true) | (false, false) => {}
        }
    }
}

impl OfClass {
    fn stand(&mut self, pool: &Option<PoolId>, old: Option<&Standing>, new: Option<Standing>) {
        let order = self.pools.entry(pool.clone()).or_default();
        let head = order.first().cloned();
        if let Some(old) = old {
            order.remove(old);
        }
        order.extend(new);
        let new_head = order.first().cloned();
        if order.is_empty() {
            self.pools.remove(pool);
        }
        if head != new_head {
            if let Some(head) = head {
                self.heads.remove(&(head, pool.clone()));
            }
            self.heads.extend(new_head.map(|head| (head, pool.clone())));
        }
    }

    /// The best open workers that no name in `avoid` means: of the pool that the placement names, or
    /// of the pools with the best heads. An avoided worker hides at most its own pool's true head.
    fn best<'a>(&'a self, placement: &Placement, count: usize) -> Vec<&'a WorkerId> {
        let avoid = &placement.avoid;
        let allowed = |standing: &&Standing| !avoid.iter().any(|name| name == standing.worker_id.as_str());
        let of_pool = |pool: &Option<PoolId>, count: usize| {
            self.pools.get(pool).into_iter().flatten().filter(allowed).take(count)
        };
        if let Some(pool) = &placement.pool {
            let avoided = avoid.iter().any(|name| name == pool.as_str());
            let count = if avoided { 0 } else { count };
            return of_pool(&Some(pool.clone()), count).map(|standing| &standing.worker_id).collect();
        }
        let each = if self.pools.len() == 1 { count } else { 3 };
        let is_avoided = |pool: &Option<PoolId>| {
            pool.as_ref().is_some_and(|pool| avoid.iter().any(|name| name == pool.as_str()))
        };
        let pools = self.heads.iter().map(|(_, pool)| pool).filter(|pool| !is_avoided(pool));
        let mut best: Vec<&Standing> =
            pools.take(count + avoid.len()).flat_map(|pool| of_pool(pool, each)).collect();
        best.sort_unstable();
        best.truncate(count);
        best.into_iter().map(|standing| &standing.worker_id).collect()
    }
}

/// Takes one from a count; nothing is kept of one that is used up.
fn count_down<K: Ord>(counts: &mut BTreeMap<K, u64>, key: &K) {
    let Some(count) = counts.get_mut(key) else { return };
    *count -= 1;
    if *count == 0 {
        counts.remove(key);
    }
}

/// Whether a name in `require` is a backend, and not this one.
pub(crate) fn is_other_backend(name: &str, backend: &str) -> bool {
    const BACKENDS: [&str; 5] = ["cpu", "cuda", "metal", "vulkan", "fake"];
    BACKENDS.contains(&name) && name != backend
}
