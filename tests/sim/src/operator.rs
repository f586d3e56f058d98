//! The operator: registers pools, changes policies, has sessions forgotten.

use api_types::{SessionId, TenantId};
use orchestrator_core::policy::PolicyChange;
use orchestrator_core::{Event, PoolModel, PoolRow};

use crate::daemon::Caller;
use crate::world::{Happening, World};

/// Milliseconds between two looks whether a pool is registered and its catalog known.
const HANDSHAKE_MS: u64 = 4_000;

/// One thing that the operator wants.
#[derive(Debug, Clone)]
pub enum Order {
    /// Other policies.
    SetPolicy(PolicyChange),
    /// A session forgotten.
    DeleteSession(TenantId, SessionId),
}

impl World {
    /// The operator's order goes out; without an orchestrator, once there is one.
    pub fn order(&mut self, order: Order) {
        if self.daemon.is_none() {
            return self.after(600, Happening::Order(order));
        }
        let request = self.draw_request();
        let event = match order {
            Order::SetPolicy(change) => Event::SetPolicy { request, change },
            Order::DeleteSession(tenant, session_id) => Event::DeleteSession { request, tenant, session_id },
        };
        let delay = self.latency();
        self.send_to_daemon(delay, event, request, Caller::Nobody);
    }

    /// Sees that a pool is registered, and that the orchestrator knows its catalog.
    pub fn handshake(&mut self, pool: usize) {
        self.after(HANDSHAKE_MS, Happening::Handshake(pool));
        let Some(daemon) = &self.daemon else { return };
        let wanted = self.pool_row(pool);
        if self.now < self.pools[pool].removed_until {
            return;
        }
        if !daemon.brain.pools().into_iter().any(|row| *row == wanted) {
            self.put_pool(wanted);
        }
        if self.now >= self.pools[pool].down_until && !self.loses_message() {
            let delay = self.latency();
            let event = Box::new(Event::PoolModels {
                pool_id: self.pools[pool].id.clone(),
                models: self.pools[pool].plan.models.iter().map(|model| catalogued(model.name)).collect(),
            });
            self.after(delay, Happening::Report { life: self.life, event });
        }
    }

    fn put_pool(&mut self, pool: PoolRow) {
        let request = self.draw_request();
        self.send_to_daemon(1, Event::PutPool { request, pool }, request, Caller::Nobody);
    }

    /// Removes a pool, or lets it take no more workers, for a while. Whether that changes anything.
    pub fn put_away(&mut self, pool: usize, drain: bool, for_ms: u64) -> bool {
        let Some(daemon) = &self.daemon else { return false };
        let pool_id = self.pools[pool].id.clone();
        let registered = daemon.brain.pools().into_iter().any(|row| row.pool_id == pool_id && !row.draining);
        let until = self.now + for_ms;
        if drain {
            self.pools[pool].drained_until = until;
            self.put_pool(self.pool_row(pool));
        } else {
            self.pools[pool].removed_until = until;
            let request = self.draw_request();
            self.send_to_daemon(1, Event::RemovePool { request, pool_id }, request, Caller::Nobody);
        }
        registered
    }

    /// A pool as the operator wants it now.
    fn pool_row(&self, pool: usize) -> PoolRow {
        let pool = &self.pools[pool];
        let draining = self.now < pool.drained_until;
        PoolRow { pool_id: pool.id.clone(), address: None, repo_dir: None, draining }
    }
}

fn catalogued(id: &str) -> PoolModel {
    PoolModel { id: id.to_owned(), aliases: Vec::new(), context_length: None, downloaded: true }
}
