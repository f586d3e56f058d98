//! What a job demands of a worker: jobs of one group fit the same workers.

use std::collections::BTreeSet;

use api_types::{PoolId, WorkerId};
use serde::{Deserialize, Serialize};

use crate::row::JobRow;

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
}
