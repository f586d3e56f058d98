//! Larger worlds, for placements: many workers and jobs, sessions, wishes, policies that are scripts,
//! and pools with little memory.

use api_types::task::Placement;

use super::{ClientPlan, HEAL_AT, Plan, WorkerPlan, client};
use crate::faults::Fault;
use crate::operator::Order;
use crate::rng::Rng;
use crate::scripts;

/// Models of a fleet.
const MODELS: [&str; 2] = ["small", "large"];

impl Plan {
    /// The fleet of a seed.
    pub fn fleet(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0xf1ee_7000);
        let mut plan = Self::of(seed);
        plan.add_workers(&mut rng);
        if plan.pools.is_empty() {
            plan.add_pools(&mut rng);
        }
        for _ in 0..rng.between(4, 10) {
            let at = rng.between(10, HEAL_AT);
            plan.orders.push((at, Order::SetPolicy(scripts::draw_change(&mut rng))));
        }
        plan.watchdog_every = rng.chance(30).then(|| rng.between(20, 200));
        plan.add_clients(&mut rng);
        plan
    }

    /// A plan in which these policies decide from the start to the end.
    pub fn under(mut self, policy: orchestrator_core::policy::PolicyText) -> Self {
        self.orders.retain(|(_, order)| !matches!(order, Order::SetPolicy(_)));
        let change = orchestrator_core::policy::PolicyChange::Live(policy);
        self.orders.insert(0, (0, Order::SetPolicy(change)));
        self.watchdog_every = None;
        self
    }

    fn add_workers(&mut self, rng: &mut Rng) {
        let more = rng.between(2, 20);
        for _ in 0..more {
            let model = MODELS[rng.next() as usize % MODELS.len()];
            let (slots, load_ms) = (rng.between(1, 6) as u32, rng.between(50, 2_000));
            self.workers.push(WorkerPlan { model, slots, load_ms });
        }
        let workers = self.workers.len() as u64;
        for _ in 0..more {
            self.faults.push((rng.between(1_000, HEAL_AT - 1), Fault::draw(rng, workers)));
        }
    }

    fn add_clients(&mut self, rng: &mut Rng) {
        let models: Vec<&'static str> = self.workers.iter().map(|worker| worker.model).collect();
        for _ in 0..rng.between(30, 80) {
            let plain = client(rng, &models);
            let conversation = rng.between(0, 5);
            let named = format!("session-{conversation}").parse().ok();
            let session_id = if rng.chance(50) { named } else { plain.session_id.clone() };
            let placement = self.wishes(rng, plain.model);
            self.clients.push(ClientPlan { session_id, placement, ..plain });
        }
    }

    /// Now and then a job prefers a worker, or avoids one where there is another.
    fn wishes(&self, rng: &mut Rng, model: &str) -> Placement {
        let mut placement = Placement::default();
        let named = format!("worker-fake-{}", rng.between(0, self.workers.len() as u64 - 1));
        let has_choice = self.workers.iter().filter(|worker| worker.model == model).count() > 1;
        match rng.between(0, 9) {
            0..=1 => placement.prefer = vec![named],
            2 if has_choice => placement.avoid = vec![named],
            _ => {}
        }
        placement
    }
}
