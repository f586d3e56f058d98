//! The few workers that a placement looks at, out of any number.

use std::collections::BTreeMap;

use api_types::{PoolId, WorkerId};

use crate::affinity::Affinity;
use crate::feasible::is_feasible;
use crate::orchestrator::Orchestrator;
use crate::row::JobRow;
use crate::time::Time;
use crate::worker::Worker;

/// Workers without affinity that a policy gets to see, about: the least loaded of each class that
/// meets the job's demands, and at least two of each. The built-in policy's best is always among
/// them; a script chooses among these, or where it keeps all of them free, among [`FURTHER`] at a time.
const BREADTH: usize = 16;
/// Workers that cannot take the job and are looked at to say why, on top of those with affinity.
const RULED_OUT_LOOKED_AT: usize = 4;

/// Workers that a turn looks at on top of the shortlist when the policy keeps all of that free of a job.
const FURTHER: usize = 16;
/// Open workers among which these are looked for.
const FURTHER_LOOKED_AT: usize = 64;

/// More workers that could take a job than are on its shortlist.
#[derive(Debug)]
pub(crate) struct Further<'a> {
    /// The workers.
    pub feasible: Vec<&'a Worker>,
    /// The last that was looked at.
    pub last: Option<WorkerId>,
}

impl Orchestrator {
    /// Workers that might take this job, by id: the one it asks for, or the least loaded, those that
    /// the job prefers and those that hold something of it. Some of them may not be able to.
    ///
    /// The index must be up to date.
    pub(crate) fn shortlist(&self, row: &JobRow, affinity: &Affinity<'_>) -> Vec<&Worker> {
        self.find(row, affinity).workers.into_values().collect()
    }

    /// The shortlist, and a few workers of the model that cannot take the job, to say why.
    pub(crate) fn looked_at(&self, row: &JobRow, affinity: &Affinity<'_>) -> Vec<&Worker> {
        let mut found = self.find(row, affinity);
        let openings = self.registry.openings();
        let closed = openings.closed(&row.model).take(RULED_OUT_LOOKED_AT);
        let unfit = openings.unfit(row).take(RULED_OUT_LOOKED_AT);
        closed.chain(unfit).for_each(|worker_id| found.add(worker_id));
        found.workers.into_values().collect()
    }

    /// A few more open workers that could take the job, where the policy keeps those of the shortlist free
    /// of it: the next by id after `after`. From turn to turn this comes round to all of them.
    pub(crate) fn further(
        &self,
        row: &JobRow,
        seen: &[&Worker],
        after: Option<&WorkerId>,
        now: Time,
    ) -> Further<'_> {
        let mut further = Further { feasible: Vec::new(), last: after.cloned() };
        if row.placement.worker.is_some() {
            return further;
        }
        let open = self.registry.openings().open_after(&row.model, after).take(FURTHER_LOOKED_AT);
        for worker in open.filter_map(|worker_id| self.registry.get(worker_id)) {
            let worker_id = &worker.row.facts.worker_id;
            further.last = Some(worker_id.clone());
            let is_new = !seen.iter().any(|seen| seen.row.facts.worker_id == *worker_id);
            if is_new && is_feasible(row, worker, &self.settings, now) {
                further.feasible.push(worker);
            }
            if further.feasible.len() == FURTHER {
                break;
            }
        }
        further
    }

    fn find<'r>(&self, row: &'r JobRow, affinity: &Affinity<'_>) -> Found<'_, 'r> {
        let mut found = Found { brain: self, row, workers: BTreeMap::new() };
        if let Some(asked) = &row.placement.worker {
            found.add(asked);
            return found;
        }
        let best = self.registry.openings().best(row, BREADTH);
        best.into_iter().chain(affinity.workers()).for_each(|worker_id| found.add(worker_id));
        row.placement.prefer.iter().for_each(|name| found.add_called(name));
        found
    }
}

/// A shortlist in the making: each worker once, and only of the job's model.
struct Found<'a, 'r> {
    brain: &'a Orchestrator,
    row: &'r JobRow,
    workers: BTreeMap<&'a WorkerId, &'a Worker>,
}

impl Found<'_, '_> {
    fn add(&mut self, worker_id: &WorkerId) {
        let worker = self.brain.registry.get(worker_id);
        if let Some(worker) = worker.filter(|worker| worker.row.facts.model == self.row.model) {
            self.workers.insert(&worker.row.facts.worker_id, worker);
        }
    }

    /// Adds the worker of this name, or the best of the pool of this name.
    fn add_called(&mut self, name: &str) {
        if let Ok(worker_id) = name.parse::<WorkerId>() {
            self.add(&worker_id);
        }
        if let Ok(pool_id) = name.parse::<PoolId>() {
            let brain = self.brain;
            brain.registry.openings().of_pool(&self.row.model, &pool_id).for_each(|id| self.add(id));
        }
    }
}

#[cfg(test)]
mod tests;
