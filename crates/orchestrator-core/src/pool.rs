//! The registry of pools and what each of them has.

use api_types::{ErrorCode, ErrorDetail, PoolId};

use crate::event::{PoolModel, RequestId};
use crate::orchestrator::Orchestrator;
use crate::row::PoolRow;
use crate::step::{Answer, Write};
use crate::turn::Turn;

impl Orchestrator {
    /// Adds a pool or changes it.
    pub(crate) fn put_pool(&mut self, request: RequestId, pool: PoolRow, turn: &mut Turn) {
        if self.pools.get(&pool.pool_id) != Some(&pool) {
            turn.write(Write::PutPool(pool.clone()));
            self.pools.insert(pool.pool_id.clone(), pool);
            turn.supply = true;
        }
        turn.answer(request, Answer::Done);
    }

    /// Removes a pool. Its workers stay for as long as they hold their leases.
    pub(crate) fn remove_pool(&mut self, request: RequestId, pool_id: PoolId, turn: &mut Turn) {
        if self.pools.remove(&pool_id).is_none() {
            let error = ErrorDetail::new(ErrorCode::PoolNotFound, format!("No pool has the id `{pool_id}`."))
                .with_hint("`rbees status` lists the pools.");
            return turn.refuse(request, error);
        }
        self.catalogs.remove(&pool_id);
        self.supply.forget_pool(&pool_id);
        turn.supply = true;
        turn.write(Write::DeletePool(pool_id));
        turn.answer(request, Answer::Done);
    }

    /// A pool told what models it has. Kept in memory: the pool tells again after a restart. One that
    /// was removed since it was asked has nothing to tell.
    pub(crate) fn pool_models(&mut self, pool_id: PoolId, models: Vec<PoolModel>, turn: &mut Turn) {
        if !self.pools.contains_key(&pool_id) {
            return turn.drop_stale("pool_models");
        }
        turn.supply |= self.catalogs.get(&pool_id) != Some(&models);
        self.catalogs.insert(pool_id, models);
    }
}
