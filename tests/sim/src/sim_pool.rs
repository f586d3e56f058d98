//! A pool in small: memory, models that lie there, worker processes that it starts and stops. It
//! answers late, twice, wrongly or never, as its plan says.

use api_types::pool::Fit;
use api_types::{ErrorCode, ErrorDetail, PoolId, WorkerId};
use orchestrator_core::{Event, PoolModel, PoolProcess, PoolRoom, PoolRow};

use crate::bugs::Bug;
use crate::daemon::Caller;
use crate::plan::WorkerPlan;
use crate::rng::Rng;
use crate::sim_worker::SimWorker;
use crate::world::{Happening, World};

/// How often a pool tells by itself how it is, in milliseconds.
const TELLS_EVERY_MS: u64 = 5_000;

/// What a seed says of the pool.
#[derive(Debug, Clone)]
pub struct PoolPlan {
    /// Bytes of memory for workers.
    pub memory: u64,
    /// What lies there, with the bytes that a worker of it takes.
    pub models: Vec<(&'static str, u64)>,
    /// Slots of its workers.
    pub slots: u32,
    /// Milliseconds that its workers take to load.
    pub load_ms: u64,
}

impl PoolPlan {
    /// A pool in which one to three models fit, but never all of them at once.
    pub fn draw(rng: &mut Rng) -> Self {
        let names = ["pooled-a", "pooled-b", "pooled-c"];
        let count = rng.between(1, 3) as usize;
        let models: Vec<_> = names.into_iter().take(count).map(|name| (name, rng.between(30, 70))).collect();
        let largest = models.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        Self {
            memory: rng.between(largest, largest + 60),
            models,
            slots: rng.between(1, 3) as u32,
            load_ms: rng.between(50, 6_000),
        }
    }

    fn bytes(&self, model: &str) -> u64 {
        self.models.iter().find(|(name, _)| *name == model).map_or(0, |(_, bytes)| *bytes)
    }
}

/// The pool.
#[derive(Debug)]
pub struct SimPool {
    /// Its name.
    pub id: PoolId,
    /// What it is.
    pub plan: PoolPlan,
    /// Until when it answers nothing.
    pub silent_until: u64,
    /// Until when no worker that it starts comes up.
    pub failing_until: u64,
}

/// Why a pool's worker runs, beside what every worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The machine starts it, again and again.
    Machine,
    /// The pool started it when it was asked to; once.
    Pool,
}

impl SimPool {
    fn row(&self) -> PoolRow {
        PoolRow { pool_id: self.id.clone(), address: None, repo_dir: None, draining: false }
    }

    fn models(&self) -> Vec<PoolModel> {
        let model = |(name, _): &(&str, u64)| PoolModel {
            id: (*name).to_owned(),
            aliases: Vec::new(),
            context_length: None,
            downloaded: true,
        };
        self.plan.models.iter().map(model).collect()
    }
}

impl World {
    /// Bytes that the pool's processes hold.
    fn pool_holds(&self) -> u64 {
        let Some(pool) = &self.pool else { return 0 };
        let there = self.workers.iter().filter(|worker| worker.is_pooled() && worker.process.is_some());
        there.map(|worker| pool.plan.bytes(worker.plan.model)).sum()
    }

    fn pool_room(&self) -> PoolRoom {
        let Some(pool) = &self.pool else { return PoolRoom::default() };
        let total = pool.plan.memory;
        let free = total.saturating_sub(self.pool_holds());
        let fit = |(model, needed): &(&str, u64)| Fit {
            model: (*model).to_owned(),
            device: "cpu".to_owned(),
            fits: *needed <= free || self.bug == Some(Bug::MemoryForgotten),
            weights_bytes: *needed,
            kv_bytes: 0,
            overhead_bytes: 0,
            needed_bytes: *needed,
            free_bytes: free,
            total_bytes: total,
            margin_bytes: 0,
            slots: pool.plan.slots,
            context: 4_096,
        };
        let there = self.workers.iter().filter(|worker| worker.is_pooled());
        let processes = there.filter_map(|worker| {
            let process = worker.process.as_ref()?;
            Some(PoolProcess {
                worker_id: worker.id.clone(),
                model: worker.plan.model.to_owned(),
                device: "cpu".to_owned(),
                bytes: pool.plan.bytes(worker.plan.model),
                starting: process.is_loading(),
            })
        });
        PoolRoom { fits: pool.plan.models.iter().map(fit).collect(), processes: processes.collect() }
    }

    fn pool_answers_now(&self) -> bool {
        self.pool.as_ref().is_some_and(|pool| self.now >= pool.silent_until)
    }

    /// The operator's pool is registered, and what it has and runs is told from time to time.
    pub fn pool_tells(&mut self) {
        self.after(TELLS_EVERY_MS, Happening::PoolTells);
        let Some(pool) = &self.pool else { return };
        let (row, models, id) = (pool.row(), pool.models(), pool.id.clone());
        if !self.pool_answers_now() || self.daemon.is_none() {
            return;
        }
        if !self.store.has_pool(&id) {
            let request = self.draw_request();
            let put = Event::PutPool { request, pool: row };
            self.send_to_daemon(1, put, request, Caller::Nobody);
        }
        self.tell(10, Event::PoolModels { pool_id: id.clone(), models });
        let room = self.pool_room();
        self.tell(12, Event::PoolSeen { pool_id: id, ask: 0, room });
    }

    /// Something that nobody waits for reaches this life of the orchestrator.
    fn tell(&mut self, delay_ms: u64, event: Event) {
        let life = self.life;
        self.after(delay_ms, Happening::Report { life, event: Box::new(event) });
    }

    /// The orchestrator asks what fits.
    pub fn ask_pool(&mut self, ask: u64) {
        if self.is_faulty() && self.rng.chance(3) {
            return;
        }
        let delay = self.rng.between(5, 400);
        let life = self.life;
        self.after(delay, Happening::PoolAnswers { life, ask });
        if self.doubles_message() {
            self.after(delay + 300, Happening::PoolAnswers { life, ask });
        }
    }

    /// Its answer.
    pub fn pool_answers(&mut self, ask: u64) {
        let Some(pool_id) = self.pool.as_ref().map(|pool| pool.id.clone()) else { return };
        let event = if self.pool_answers_now() {
            Event::PoolSeen { pool_id, ask, room: self.pool_room() }
        } else {
            Event::PoolSilent { pool_id, ask, error: unreachable_pool() }
        };
        self.deliver(event);
    }

    /// The orchestrator asks for a worker. It may ask again for one that it asked for in an earlier
    /// life; the pool starts no second one of the same id.
    pub fn spawn_in_pool(&mut self, worker_id: WorkerId, model: String) {
        let (delay, life) = (self.rng.between(10, 300), self.life);
        self.after(delay, Happening::PoolSpawns { life, worker_id, model });
    }

    /// The pool is at it.
    pub fn pool_spawns(&mut self, life: u64, worker_id: &WorkerId, model: &str) {
        let Some(pool) = &self.pool else { return };
        let Some((name, needed)) = pool.plan.models.iter().find(|(name, _)| *name == model).copied() else {
            return self.checks.fail("I3", format!("a worker is asked for of {model}, which is not there"));
        };
        let plan = WorkerPlan { model: name, slots: pool.plan.slots, load_ms: pool.plan.load_ms };
        let failing = self.now < pool.failing_until;
        if !self.pool_answers_now() {
            return self.end_spawn(life, worker_id, Some(unreachable_pool()));
        }
        let known = self.workers.iter().position(|worker| worker.id == *worker_id);
        if known.is_some_and(|worker| self.workers[worker].process.is_some()) {
            return self.watch_spawn(life, worker_id.clone());
        }
        let memory = pool.plan.memory;
        if self.pool_holds() + needed > memory && self.bug != Some(Bug::MemoryForgotten) {
            let error = ErrorDetail::new(ErrorCode::InsufficientMemory, "others took the memory");
            return self.end_spawn(life, worker_id, Some(error));
        }
        if failing {
            let error = ErrorDetail::new(ErrorCode::SpawnFailed, "it did not come up");
            return self.end_spawn(life, worker_id, Some(ErrorDetail { retriable: true, ..error }));
        }
        let worker = known.unwrap_or_else(|| {
            self.workers.push(SimWorker::new(worker_id.clone(), plan, Origin::Pool));
            self.workers.len() - 1
        });
        self.counts.spawns += 1;
        self.begin_process(worker);
        if self.pool_holds() > memory {
            self.checks.fail("I10", format!("workers hold {} of {memory} bytes", self.pool_holds()));
        }
        self.watch_spawn(life, worker_id.clone());
    }

    fn watch_spawn(&mut self, life: u64, worker_id: WorkerId) {
        self.after(200, Happening::PoolWatches { life, worker_id });
    }

    /// Whether a worker that was started has come up, or has died meanwhile.
    pub fn pool_watches(&mut self, life: u64, worker_id: &WorkerId) {
        let process = self.workers[self.worker_index(worker_id)].process.as_ref();
        match process.map(crate::sim_worker::Process::is_loading) {
            Some(true) => self.watch_spawn(life, worker_id.clone()),
            Some(false) => self.end_spawn(life, worker_id, None),
            None => {
                let error = ErrorDetail::new(ErrorCode::SpawnFailed, "it ended while it loaded");
                self.end_spawn(life, worker_id, Some(ErrorDetail { retriable: true, ..error }));
            }
        }
    }

    /// Tells the orchestrator that asked; another one is told nothing.
    fn end_spawn(&mut self, life: u64, worker_id: &WorkerId, error: Option<ErrorDetail>) {
        let Some(pool_id) = self.pool.as_ref().map(|pool| pool.id.clone()) else { return };
        let event = Event::SpawnEnded { pool_id, worker_id: worker_id.clone(), error };
        self.after(5, Happening::Report { life, event: Box::new(event) });
    }

    /// The orchestrator wants a worker ended, which holds no run as far as it knows.
    pub fn stop_in_pool(&mut self, mut worker_id: WorkerId) {
        if let Some(daemon) = &self.daemon {
            let workers = daemon.brain.workers(self.time());
            if self.bug == Some(Bug::UnloadBusy)
                && let Some(busy) = workers.iter().find(|worker| worker.slots_busy > 0)
            {
                worker_id = busy.facts.worker_id.clone();
            }
            let busy = workers.iter().find(|worker| worker.facts.worker_id == worker_id);
            let busy = busy.map_or(0, |worker| worker.slots_busy);
            if busy > 0 {
                self.checks.fail("I7", format!("{worker_id} is stopped with {busy} runs"));
            }
        }
        self.counts.unloads += 1;
        let (delay, life) = (self.rng.between(10, 300), self.life);
        self.after(delay, Happening::PoolStops { life, worker_id });
    }

    /// The pool ends it.
    pub fn pool_stops(&mut self, life: u64, worker_id: &WorkerId) {
        let Some(pool_id) = self.pool.as_ref().map(|pool| pool.id.clone()) else { return };
        let answers = self.pool_answers_now();
        if answers {
            let worker = self.worker_index(worker_id);
            if self.workers[worker].id == *worker_id {
                self.end_process(worker);
            }
        }
        let error = (!answers).then(unreachable_pool);
        let event = Event::StopEnded { pool_id, worker_id: worker_id.clone(), error };
        self.after(5, Happening::Report { life, event: Box::new(event) });
    }

    /// A pool's worker dies of its own accord: one of those that live.
    pub fn kill_pooled(&mut self) -> bool {
        let living =
            |worker: &usize| self.workers[*worker].is_pooled() && self.workers[*worker].process.is_some();
        let living: Vec<usize> = (0..self.workers.len()).filter(living).collect();
        let Some(worker) = living.get(self.rng.next() as usize % living.len().max(1)).copied() else {
            return false;
        };
        self.kill_worker(worker);
        true
    }
}

fn unreachable_pool() -> ErrorDetail {
    let error = ErrorDetail::new(ErrorCode::SshFailed, "the pool does not answer");
    ErrorDetail { retriable: true, ..error }
}
