//! What jobs wait for that no worker serves, and since when.

use std::collections::BTreeSet;

use api_types::task::Placement;
use api_types::worker::{WorkerFacts, WorkerStatus};
use api_types::{ErrorDetail, JobId, PoolId};
use serde::{Deserialize, Serialize};

use crate::feasible::too_small;
use crate::openings::is_other_backend;
use crate::orchestrator::Orchestrator;
use crate::queue::Group;
use crate::row::JobRow;
use crate::time::Time;
use crate::turn::Turn;
use crate::worker::Worker;

/// A model, and what its jobs demand of a worker besides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Want {
    pub model: String,
    pub group: Group,
}

/// How long something is waited for, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Blocked {
    /// Since when nobody serves it.
    pub since: Time,
    /// The pool that is to serve it, once that is settled.
    pub pool: Option<PoolId>,
}

impl Orchestrator {
    /// Looks at every model again. Returns whether something new is waited for.
    pub(super) fn note_all_wants(&mut self, now: Time) -> bool {
        let waiting = self.queue.models().map(str::to_owned);
        let known = self.supply.blocked.keys().map(|want| want.model.clone());
        let models: BTreeSet<String> = waiting.chain(known).collect();
        self.note_wants(&models, now)
    }

    /// Looks at these models again. Returns whether something new is waited for.
    pub(super) fn note_wants(&mut self, models: &BTreeSet<String>, now: Time) -> bool {
        let mut wants = BTreeSet::new();
        for model in models {
            for (group, job_id) in self.queue.groups(model) {
                if !self.is_served(job_id) {
                    wants.insert(Want { model: model.clone(), group: group.clone() });
                }
            }
        }
        let blocked = &mut self.supply.blocked;
        blocked.retain(|want, _| !models.contains(&want.model) || wants.contains(want));
        let before = blocked.len();
        for want in wants {
            blocked.entry(want).or_insert(Blocked { since: now, pool: None });
        }
        blocked.len() > before
    }

    fn is_served(&self, job_id: JobId) -> bool {
        self.jobs.get(&job_id).is_none_or(|job| self.serves(&job.row))
    }

    /// Whether some worker serves such jobs, or will once it has loaded.
    pub(crate) fn serves(&self, row: &JobRow) -> bool {
        let Some(named) = &row.placement.worker else { return self.registry.openings().serves(row) };
        let worker = self.registry.get(named).filter(|worker| worker.row.facts.model == row.model);
        worker.is_some_and(|worker| worker.is_staying() && suits(row, worker).is_none())
    }

    /// Whether some worker serves such jobs, or will, and has told of a context that holds them.
    pub(crate) fn holds(&self, row: &JobRow) -> bool {
        let Some(named) = &row.placement.worker else { return self.registry.openings().holds(row) };
        let context = self.registry.get(named).map(|worker| worker.row.facts.context_length);
        self.serves(row) && context.is_some_and(|context| row.fits_context(context))
    }

    /// One of the jobs that wait for it.
    pub(super) fn waiting_row(&self, want: &Want) -> Option<&JobRow> {
        let (_, job_id) = self.queue.groups(&want.model).find(|(group, _)| **group == want.group)?;
        self.jobs.get(&job_id).map(|job| &job.row)
    }

    /// The pool that is to serve it, once that is settled.
    pub(super) fn waits_for(&self, want: &Want) -> Option<&PoolId> {
        self.supply.blocked.get(want)?.pool.as_ref()
    }

    /// Ends every job that waits for it, for none of them can ever run.
    pub(super) fn fail_all(&mut self, want: &Want, error: &ErrorDetail, turn: &mut Turn) {
        while let Some(job_id) = self.waiting_row(want).map(|row| row.job_id) {
            self.fail_job(job_id, error.clone(), turn);
        }
        self.supply.blocked.remove(want);
    }
}

/// Which demand of a job a worker does not meet. What it can do is known once it has loaded.
pub(crate) fn suits(row: &JobRow, worker: &Worker) -> Option<String> {
    let (facts, placement) = (&worker.row.facts, &row.placement);
    if let Some(wanted) = placement.worker.as_ref().filter(|wanted| **wanted != facts.worker_id) {
        return Some(format!("the job asks for the worker `{wanted}`"));
    }
    if let Some(reason) = misplaced(placement, facts.pool_id.as_ref(), Some(&facts.backend)) {
        return Some(reason);
    }
    if placement.avoid.iter().any(|name| name == facts.worker_id.as_str()) {
        return Some(format!("the job avoids `{}`", facts.worker_id));
    }
    let loaded = worker.status == Some(WorkerStatus::Ready);
    if loaded && !row.fits_context(facts.context_length) {
        return Some(too_small(facts.context_length, row.tokens_at_least).to_string());
    }
    let lacks = placement.require.iter().find(|name| loaded && !can(facts, name))?;
    Some(format!("the job requires `{lacks}`; it has {}", facts.capabilities.join(", ")))
}

fn can(facts: &WorkerFacts, capability: &str) -> bool {
    facts.backend == capability || facts.capabilities.iter().any(|has| has == capability)
}

/// Why no worker of a pool, or of none, on this backend, could be what the job demands.
pub(crate) fn misplaced(
    placement: &Placement,
    pool: Option<&PoolId>,
    backend: Option<&str>,
) -> Option<String> {
    if let Some(wanted) = placement.pool.as_ref().filter(|wanted| Some(*wanted) != pool) {
        return Some(format!("the job asks for the pool `{wanted}`"));
    }
    if pool.is_some_and(|pool| placement.avoid.iter().any(|name| name == pool.as_str())) {
        return Some("the job avoids it".to_owned());
    }
    let backend = backend?;
    let lacks = placement.require.iter().find(|name| is_other_backend(name, backend))?;
    Some(format!("the job requires `{lacks}`, and it runs there on `{backend}`"))
}
