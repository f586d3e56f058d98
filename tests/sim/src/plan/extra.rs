//! What a part of the seeds has besides workers and clients: pools, policies, orders of the operator,
//! a disk that is full at times, clocks that strobe.
//!
//! It is drawn from a stream of its own, so that it changes nothing of the rest of the plan.

use api_types::task::{Durability, Placement, Priority, RetryMode};

use super::{ClientPlan, Fate, HEAL_AT, Plan, client};
use crate::faults::Fault;
use crate::operator::Order;
use crate::rng::Rng;
use crate::scripts;

/// Models that pools may have, and the bytes that a worker of each needs.
const MODELS: [ModelPlan; 3] = [
    ModelPlan { name: "alpha", bytes: 60 },
    ModelPlan { name: "beta", bytes: 45 },
    ModelPlan { name: "gamma", bytes: 25 },
];
/// Fits nowhere.
const GIANT: ModelPlan = ModelPlan { name: "giant", bytes: 150 };
/// In nobody's catalog.
const UNKNOWN: &str = "unheard-of";

/// A machine that starts workers when it is asked.
#[derive(Debug, Clone)]
pub struct PoolPlan {
    /// Its name.
    pub name: &'static str,
    /// Bytes of its memory.
    pub memory: u64,
    /// Its catalog.
    pub models: Vec<ModelPlan>,
    /// Jobs that each of its workers can run at once.
    pub slots: u32,
    /// Milliseconds a worker takes to load.
    pub load_ms: u64,
}

/// A model of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelPlan {
    /// Its name.
    pub name: &'static str,
    /// Bytes of memory that a worker of it needs.
    pub bytes: u64,
}

impl Plan {
    /// Draws the rest of the plan.
    pub(super) fn add_more(&mut self, seed: u64) {
        let mut rng = Rng::new(seed ^ 0x9001_5eed);
        if rng.chance(60) {
            self.add_pools(&mut rng);
        }
        if rng.chance(50) {
            self.add_policies(&mut rng);
        }
        self.add_forgetting(&mut rng);
        self.add_faults(&mut rng);
        self.add_late_clients(&mut rng);
        self.add_abandoning(&mut rng);
    }

    /// Some of the clients that leave, and can be known again, hold their jobs by a connection.
    fn add_abandoning(&mut self, rng: &mut Rng) {
        let leaves = |client: &&mut ClientPlan| client.keyed && client.reads && client.leaves.is_some();
        for client in self.clients.iter_mut().filter(leaves) {
            client.abandons = rng.chance(40);
        }
    }

    pub(super) fn add_pools(&mut self, rng: &mut Rng) {
        self.pools = vec![pool(rng, "attic", 100)];
        if rng.chance(50) {
            self.pools.push(pool(rng, "cellar", 80));
        }
        let supply = &mut self.settings.supply;
        supply.keep_alive_ms = [Some(0), Some(4_000), Some(15_000), None][rng.between(0, 3) as usize];
        (supply.min_residency_ms, supply.swap_patience_ms) = (3_000, 8_000);
        (supply.backoff_first_ms, supply.backoff_max_ms) = (500, 5_000);
        (supply.spawn_timeout_ms, supply.stop_timeout_ms) = (12_000, 6_000);
        let spawnable = self.spawnable();
        for _ in 0..rng.between(10, 22) {
            let mut client = client(rng, &spawnable);
            client.placement = self.placement(rng, client.model);
            self.clients.push(client);
        }
        for name in [GIANT.name, UNKNOWN] {
            if rng.chance(30) {
                self.clients.push(client(rng, &[name]));
            }
        }
    }

    /// The models that some pool has room for.
    fn spawnable(&self) -> Vec<&'static str> {
        let all = MODELS.iter().map(|model| model.name);
        all.filter(|name| self.pools.iter().any(|pool| pool.models.iter().any(|m| m.name == *name))).collect()
    }

    /// Now and then a job wants a certain pool, or none but another one.
    fn placement(&self, rng: &mut Rng, model: &str) -> Placement {
        let has = |pool: &&PoolPlan| pool.models.iter().any(|known| known.name == model);
        let pools: Vec<_> = self.pools.iter().filter(has).map(|pool| pool.name).collect();
        let mut placement = Placement::default();
        let named = pools[rng.next() as usize % pools.len()];
        match rng.between(0, 9) {
            0 => placement.pool = named.parse().ok(),
            1 if pools.len() > 1 => placement.avoid = vec![named.to_owned()],
            2 => placement.prefer = vec![named.to_owned()],
            _ => {}
        }
        placement
    }

    fn add_policies(&mut self, rng: &mut Rng) {
        for _ in 0..rng.between(2, 8) {
            let at = rng.between(100, HEAL_AT);
            self.orders.push((at, Order::SetPolicy(scripts::draw_change(rng))));
        }
        self.watchdog_every = rng.chance(60).then(|| rng.between(5, 60));
    }

    fn add_forgetting(&mut self, rng: &mut Rng) {
        for _ in 0..rng.between(0, 4) {
            let client = &self.clients[rng.next() as usize % self.clients.len()];
            if let Some(session_id) = client.session_id.clone() {
                let order = Order::DeleteSession(client.tenant.clone(), session_id);
                self.orders.push((rng.between(5_000, HEAL_AT + 20_000), order));
            }
        }
    }

    fn add_faults(&mut self, rng: &mut Rng) {
        let pools = self.pools.len() as u64;
        let mut add =
            |rng: &mut Rng, fault: Fault| self.faults.push((rng.between(1_000, HEAL_AT - 1), fault));
        for _ in 0..if pools > 0 { rng.between(4, 14) } else { 0 } {
            let fault = Fault::draw_for_pools(rng, pools);
            add(rng, fault);
        }
        for _ in 0..if rng.chance(40) { rng.between(1, 3) } else { 0 } {
            let fault = Fault::RefuseCommits { full: rng.chance(70), for_ms: rng.between(300, 9_000) };
            add(rng, fault);
        }
        for _ in 0..if rng.chance(40) { rng.between(1, 2) } else { 0 } {
            let fault = Fault::draw_strobe(rng);
            add(rng, fault);
        }
    }

    /// When the faults are over, what can be served is: one job for each model must be completed.
    fn add_late_clients(&mut self, rng: &mut Rng) {
        let mut models = self.spawnable();
        models.extend(self.workers.iter().map(|worker| worker.model));
        models.sort_unstable();
        models.dedup();
        for model in models {
            let plain = client(rng, &[model]);
            self.clients.push(ClientPlan {
                at: None,
                priority: Priority::Interactive,
                deadline_ms: None,
                retry: RetryMode::Continue,
                durability: Durability::Durable,
                keyed: true,
                doubled: false,
                reads: true,
                cancels_after: None,
                leaves: None,
                fate: Fate::Fine,
                ..plain
            });
        }
    }
}

fn pool(rng: &mut Rng, name: &'static str, memory: u64) -> PoolPlan {
    let mut models: Vec<ModelPlan> = MODELS.into_iter().filter(|_| rng.chance(75)).collect();
    if models.is_empty() {
        models.push(MODELS[0]);
    }
    if rng.chance(30) {
        models.push(GIANT);
    }
    PoolPlan { name, memory, models, slots: rng.between(1, 2) as u32, load_ms: rng.between(100, 5_000) }
}
