//! Workers by the pool they belong to.

use std::collections::{BTreeMap, BTreeSet};

use api_types::task::Placement;
use api_types::{PoolId, WorkerId};

/// Workers, some of which a job's placement may allow.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ByPool(BTreeMap<Option<PoolId>, BTreeSet<WorkerId>>);

impl ByPool {
    /// Puts a worker in or takes it out. Returns whether that changed anything.
    pub fn set(&mut self, pool: &Option<PoolId>, worker_id: &WorkerId, is_in: bool) -> bool {
        if is_in {
            return self.0.entry(pool.clone()).or_default().insert(worker_id.clone());
        }
        let Some(workers) = self.0.get_mut(pool) else { return false };
        let was_in = workers.remove(worker_id);
        if workers.is_empty() {
            self.0.remove(pool);
        }
        was_in
    }

    /// A worker of the pool that a placement names, or of any, that it does not avoid. Looks at no more
    /// workers and pools than it avoids, and one each.
    pub fn allowed(&self, placement: &Placement) -> Option<&WorkerId> {
        let is_avoided = |name: &str| placement.avoid.iter().any(|avoided| avoided == name);
        if let Some(pool) = &placement.pool {
            let workers = self.0.get(&Some(pool.clone())).filter(|_| !is_avoided(pool.as_str()))?;
            return workers.iter().find(|id| !is_avoided(id.as_str()));
        }
        let pools = self.0.iter().filter(|(pool, _)| !pool.as_ref().is_some_and(|p| is_avoided(p.as_str())));
        pools.flat_map(|(_, workers)| workers).find(|id| !is_avoided(id.as_str()))
    }
}
