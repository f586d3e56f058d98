//! Making capacity: workers are started on pools when jobs wait for a model that none serves, and
//! taken away when they were idle for long or when another model needs their memory.
//!
//! The pools are the truth about memory. A pool is asked before each decision about it, and an answer
//! counts only until something changes there; so a worker is never promised memory that was seen
//! before somebody else took it. A spawn is a row before it is an action: after a restart the pool
//! tells what became of it, and it is asked for again under the same id, never twice.

mod demand;
mod evict;
mod hope;
mod judge;
mod keep;
mod look;
mod pools;
mod spawn;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use api_types::{PoolId, WorkerId};
use serde::{Deserialize, Serialize};

use crate::orchestrator::Orchestrator;
use crate::time::Time;
use crate::turn::Turn;
use crate::worker::Worker;

use demand::{Blocked, Want};
pub(crate) use demand::{misplaced, suits};
use evict::Stop;
use judge::Verdict;
pub(crate) use keep::is_pinned;
use pools::Seen;
use spawn::Spawn;

/// What the brain knows about capacity that could be.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Supply {
    /// What pools said.
    pools: BTreeMap<PoolId, Seen>,
    /// Workers that were asked for and are not known to be ready.
    spawns: BTreeMap<WorkerId, Spawn>,
    /// Workers that are to end once they hold no run.
    stops: BTreeMap<WorkerId, Stop>,
    /// What jobs wait for that nobody serves.
    blocked: BTreeMap<Want, Blocked>,
    /// Worker ids drawn since the start.
    drawn: u64,
    /// When to look again, if that changed in this turn.
    #[serde(skip)]
    alarm: Option<Option<Time>>,
    /// When the first stop is to be asked for again.
    stops_due: Option<Time>,
    /// The same, if it changed in this turn.
    #[serde(skip)]
    stops_alarm: Option<Option<Time>>,
}

impl Supply {
    /// The new alarm, when it is to be set or taken away.
    pub fn take_alarm(&mut self) -> Option<Option<Time>> {
        self.alarm.take()
    }

    /// The new alarm for stops that nobody answers, when it is to be set or taken away.
    pub fn take_stops_alarm(&mut self) -> Option<Option<Time>> {
        self.stops_alarm.take()
    }

    /// A pool was removed.
    pub fn forget_pool(&mut self, pool_id: &PoolId) {
        self.pools.remove(pool_id);
    }

    /// A worker is gone, and its memory with it.
    pub fn worker_left(&mut self, worker: &Worker, turn: &mut Turn) {
        turn.supply = true;
        self.stops.remove(&worker.row.facts.worker_id);
        // Its pool may never say that it had started it.
        self.spawns.remove(&worker.row.facts.worker_id);
        if let Some(pool_id) = &worker.row.facts.pool_id {
            self.changed(pool_id);
        }
    }

    /// Something changed in a pool: what it said before tells nothing any more.
    fn changed(&mut self, pool_id: &PoolId) {
        if let Some(seen) = self.pools.get_mut(pool_id) {
            seen.change();
        }
    }
}

impl Orchestrator {
    /// The end of every turn: notes who is idle, sees who waits for a model that nobody serves, and
    /// starts or ends workers. `models` may have new waiting jobs or other workers.
    pub(crate) fn make_capacity(&mut self, models: &BTreeSet<String>, turn: &mut Turn) {
        let freed = self.note_use(turn);
        self.stop_released(turn);
        if !self.settings.supply.on_demand {
            return;
        }
        self.registry.refresh(&self.settings, turn.now);
        let look_at_all = turn.supply || (freed && !self.supply.blocked.is_empty());
        let new = if look_at_all { self.note_all_wants(turn.now) } else { self.note_wants(models, turn.now) };
        let open = !self.supply.blocked.is_empty() || !self.supply.spawns.is_empty();
        if open && (new || look_at_all) {
            self.relieve(turn);
        }
    }

    /// Goes through all that is waited for, in the order of waiting, and does what can be done now.
    ///
    /// Nobody takes from a pool what an older one waits for there: this is what bounds the waiting,
    /// see [`evict`].
    fn relieve(&mut self, turn: &mut Turn) {
        let mut wake = self.look_after_spawns(turn);
        let mut taken = BTreeSet::new();
        let mut order: Vec<(Time, Want)> =
            self.supply.blocked.iter().map(|(want, blocked)| (blocked.since, want.clone())).collect();
        order.sort();
        for (_, want) in order {
            wake = earlier(wake, self.relieve_one(&want, &mut taken, turn));
        }
        wake = earlier(wake, self.first_spawn_limit());
        // An alarm for now would ring for ever; what could be done now has been.
        self.supply.alarm = Some(wake.map(|at| at.max(turn.now + 1)));
    }

    /// Gives when to look again.
    fn relieve_one(&mut self, want: &Want, taken: &mut BTreeSet<PoolId>, turn: &mut Turn) -> Option<Time> {
        let row = self.waiting_row(want)?.clone();
        self.ask_for(&row, taken, turn);
        let since = self.supply.blocked.get(want).map_or(turn.now, |blocked| blocked.since);
        let chosen = self.waits_for(want).cloned();
        let judged = self.judge(&row, since, chosen.as_ref(), taken, turn.now, Some(&mut turn.policy));
        let until = judged.until;
        let pool = match judged.verdict {
            Verdict::Spawn { pool_id, device, bytes } => {
                self.begin_spawn(&pool_id, &row.model, &device, bytes, turn);
                Some(pool_id)
            }
            Verdict::Release { pool_id, victims } => {
                self.release(&victims, &row.model, turn);
                taken.insert(pool_id.clone());
                Some(pool_id)
            }
            Verdict::Wait { pools, of } => {
                taken.extend(pools);
                of
            }
            Verdict::Stuck => None,
            Verdict::Hopeless(error) => {
                self.fail_all(want, &error, turn);
                return None;
            }
        };
        if let Some(blocked) = self.supply.blocked.get_mut(want) {
            blocked.pool = pool;
        }
        until
    }
}

fn earlier(one: Option<Time>, other: Option<Time>) -> Option<Time> {
    [one, other].into_iter().flatten().min()
}
