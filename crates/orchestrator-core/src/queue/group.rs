//! What a job demands of a worker: jobs of one group fit the same workers.

use std::collections::BTreeSet;

use api_types::{PoolId, WorkerId};
use serde::{Deserialize, Serialize};

use crate::feasible::{can, is_called};
use crate::row::{JobRow, fits_context};
use crate::worker::Worker;

/// What a job demands of a worker besides the model. What it merely prefers is not part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Group {
    pool: Option<PoolId>,
    worker: Option<WorkerId>,
    require: BTreeSet<String>,
    avoid: BTreeSet<String>,
    tokens_at_least: u32,
}

impl Group {
    /// The group of a job.
    pub fn of(row: &JobRow) -> Self {
        let placement = &row.placement;
        Self {
            pool: placement.pool.clone(),
            worker: placement.worker.clone(),
            require: placement.require.iter().cloned().collect(),
            avoid: placement.avoid.iter().cloned().collect(),
            tokens_at_least: row.tokens_at_least,
        }
    }

    /// The group of a job as far as it keeps the job from some worker: `None` for one that any may
    /// take. `is_too_long`: for the context of some.
    pub fn restricting(row: &JobRow, is_too_long: bool) -> Option<Self> {
        let group = Self::of(row);
        let group = if is_too_long { group } else { Self { tokens_at_least: 0, ..group } };
        let is_free = group.pool.is_none()
            && group.worker.is_none()
            && group.require.is_empty()
            && group.avoid.is_empty()
            && group.tokens_at_least == 0;
        (!is_free).then_some(group)
    }

    /// Whether a worker of the model meets these demands, whatever it is doing.
    pub fn is_met_by(&self, worker: &Worker) -> bool {
        let facts = &worker.row.facts;
        fits_context(self.tokens_at_least, facts.context_length)
            && self.worker.as_ref().is_none_or(|wanted| *wanted == facts.worker_id)
            && self.pool.as_ref().is_none_or(|wanted| Some(wanted) == facts.pool_id.as_ref())
            && !self.avoid.iter().any(|name| is_called(worker, name))
            && self.require.iter().all(|name| can(worker, name))
    }
}
