//! What serves a model, as far as a job may demand it: workers of one kind meet the same demands but
//! for those that name a worker.

use api_types::PoolId;
use api_types::worker::WorkerFacts;
use serde::{Deserialize, Serialize};

use crate::estimate::rates::Engine;
use crate::row::JobRow;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Kind {
    pub engine: Engine,
    pool: Option<PoolId>,
    context: u32,
    capabilities: Vec<String>,
}

impl Kind {
    pub fn of(facts: &WorkerFacts) -> Self {
        Self {
            engine: Engine::of(facts),
            pool: facts.pool_id.clone(),
            context: facts.context_length,
            capabilities: facts.capabilities.clone(),
        }
    }

    pub fn is_of(&self, facts: &WorkerFacts) -> bool {
        self.engine.is_of(facts)
            && self.pool == facts.pool_id
            && self.context == facts.context_length
            && self.capabilities == facts.capabilities
    }

    /// Whether its workers may take a job, but for those that the job names.
    pub fn meets(&self, row: &JobRow) -> bool {
        let placement = &row.placement;
        let is_pool = |name: &String| self.pool.as_ref().is_some_and(|pool| pool.as_str() == name);
        let can = |name: &String| self.engine.backend == *name || self.capabilities.contains(name);
        row.fits_context(self.context)
            && placement.pool.as_ref().is_none_or(|wanted| Some(wanted) == self.pool.as_ref())
            && !placement.avoid.iter().any(is_pool)
            && placement.require.iter().all(can)
    }
}
