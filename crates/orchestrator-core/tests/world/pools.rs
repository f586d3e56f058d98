//! Pools with memory, for stories of capacity: what is asked of them, a test answers when it likes.
#![allow(dead_code, reason = "each story uses its part")]

use std::collections::BTreeMap;

use api_types::pool::Fit;
use api_types::worker::{WorkerFacts, WorkerStatus};
use api_types::{ErrorCode, ErrorDetail, InstanceId, PoolId, WorkerId};
use orchestrator_core::{Action, Event, PoolModel, PoolProcess, PoolRoom, PoolRow, Step};
use uuid::Uuid;

use crate::world::{World, facts};

pub const MIB: u64 = 1 << 20;

/// Pools that have the same models.
pub struct Pools {
    /// MiB of memory.
    memory: BTreeMap<String, u64>,
    /// MiB of need.
    models: BTreeMap<String, u64>,
    /// What runs where.
    /// The one start of each id.
    starts: BTreeMap<WorkerId, InstanceId>,
    /// Those that run, each with its pool.
    pub processes: BTreeMap<WorkerId, (String, PoolProcess)>,
    /// Whether workers that register from now on may be unloaded.
    pub evictable: bool,
    /// Slots of workers.
    pub slots: u32,
    /// What workers that register from now on are capable of.
    pub capabilities: Vec<String>,
}

/// The pools that a step asks how they are.
pub fn asked(step: &Step) -> Vec<(PoolId, u64)> {
    let asked = step.actions.iter().filter_map(|action| match action {
        Action::AskPool { pool, ask } => Some((pool.pool_id.clone(), *ask)),
        _ => None,
    });
    asked.collect()
}

/// The workers that a step asks for.
pub fn spawned(step: &Step) -> Vec<WorkerId> {
    let spawned = step.actions.iter().filter_map(|action| match action {
        Action::SpawnWorker { worker_id, .. } => Some(worker_id.clone()),
        _ => None,
    });
    spawned.collect()
}

/// The workers that a step has stopped.
pub fn killed(step: &Step) -> Vec<WorkerId> {
    let killed = step.actions.iter().filter_map(|action| match action {
        Action::StopWorker { worker_id, .. } => Some(worker_id.clone()),
        _ => None,
    });
    killed.collect()
}

/// What a pool says of its memory now.
pub fn room(pools: &Pools, pool: &str) -> PoolRoom {
    let total = pools.memory[pool] * MIB;
    let there = || pools.processes.values().filter(|(at, _)| at == pool).map(|(_, process)| process);
    let free = total - there().map(|process| process.bytes).sum::<u64>().min(total);
    let fit = |(model, need): (&String, &u64)| Fit {
        model: model.clone(),
        device: "cpu".to_owned(),
        fits: need * MIB <= free,
        weights_bytes: need * MIB,
        kv_bytes: 0,
        overhead_bytes: 0,
        needed_bytes: need * MIB,
        free_bytes: free,
        total_bytes: total,
        margin_bytes: 0,
        slots: pools.slots,
        context: 4_096,
    };
    PoolRoom { fits: pools.models.iter().map(fit).collect(), processes: there().cloned().collect() }
}

impl Pools {
    /// Registers pools, each with its MiB, that all have these models, each with its need in MiB.
    pub fn new(world: &mut World, pools: &[(&str, u64)], models: &[(&str, u64)]) -> Self {
        let owned =
            |pairs: &[(&str, u64)]| pairs.iter().map(|(name, mib)| ((*name).to_owned(), *mib)).collect();
        let this = Self {
            memory: owned(pools),
            models: owned(models),
            processes: BTreeMap::new(),
            starts: BTreeMap::new(),
            evictable: true,
            slots: 2,
            capabilities: vec!["chat".to_owned()],
        };
        for (name, _) in pools {
            let request = world.request();
            world.event(Event::PutPool { request, pool: this.row(name) });
        }
        this.tell_catalogs(world);
        this
    }

    pub fn id(&self, pool: &str) -> PoolId {
        pool.parse().expect("an id")
    }

    pub fn row(&self, pool: &str) -> PoolRow {
        PoolRow { pool_id: self.id(pool), address: None, repo_dir: None, draining: false }
    }

    /// Every pool tells which models it has.
    pub fn tell_catalogs(&self, world: &mut World) -> Vec<Step> {
        let model = |id: &String| PoolModel {
            id: id.clone(),
            aliases: vec![],
            context_length: None,
            downloaded: true,
        };
        let mut tell = |pool: &String| {
            let models = self.models.keys().map(model).collect();
            world.event(Event::PoolModels { pool_id: self.id(pool), models })
        };
        self.memory.keys().map(&mut tell).collect()
    }

    /// A pool answers a question. What a step asks for is a process from then on.
    pub fn answer(&mut self, world: &mut World, pool: &str, ask: u64) -> Step {
        let room = room(self, pool);
        let step = world.event(Event::PoolSeen { pool_id: self.id(pool), ask, room });
        self.note(&step);
        step
    }

    /// Answers everything that a step asked, and what the answers ask. Gives all that came of it.
    pub fn answer_all(&mut self, world: &mut World, step: &Step) -> Step {
        let mut all = step.clone();
        self.note(step);
        let mut open = asked(step);
        while let Some((pool, ask)) = open.pop() {
            let next = self.answer(world, pool.as_str(), ask);
            open.extend(asked(&next));
            all.actions.extend(next.actions);
        }
        all
    }

    /// As [`Self::answer_all`], for the questions of a brain that has just started, after `edit`.
    pub fn answer_all_with(&mut self, world: &mut World, edit: impl Fn(&mut PoolRoom)) -> Step {
        let mut all = Step::default();
        for pool in self.memory.keys().cloned().collect::<Vec<_>>() {
            let mut room = room(self, &pool);
            edit(&mut room);
            let step = world.event(Event::PoolSeen { pool_id: self.id(&pool), ask: 1, room });
            all.actions.extend(step.actions);
        }
        all
    }

    /// Spawns that were asked for become processes.
    pub fn note(&mut self, step: &Step) {
        for action in &step.actions {
            if let Action::SpawnWorker { pool, worker_id, model } = action {
                self.process(worker_id.as_str(), pool.pool_id.as_str(), model, true);
            }
        }
    }

    /// A process in a pool.
    pub fn process(&mut self, worker: &str, pool: &str, model: &str, starting: bool) {
        let process = PoolProcess {
            worker_id: worker.parse().expect("an id"),
            model: model.to_owned(),
            device: "cpu".to_owned(),
            bytes: self.models[model] * MIB,
            starting,
        };
        let start = InstanceId(Uuid::from_u128(1_000 + self.starts.len() as u128));
        self.starts.entry(process.worker_id.clone()).or_insert(start);
        self.processes.insert(process.worker_id.clone(), (pool.to_owned(), process));
    }

    /// MiB that processes of a pool hold.
    pub fn held(&self, pool: &str) -> u64 {
        let there = self.processes.values().filter(|(at, _)| at == pool);
        there.map(|(_, process)| process.bytes / MIB).sum()
    }

    pub fn pool_of(&self, worker: &WorkerId) -> String {
        self.processes[worker].0.clone()
    }

    /// Submits a job for a model until a worker is asked for, and gives that worker.
    pub fn first_worker(&mut self, world: &mut World, n: u128, model: &str) -> WorkerId {
        let submission =
            orchestrator_core::Submission { model: Some(model.to_owned()), ..crate::world::submission(n) };
        let step = world.event(Event::Submit(submission));
        spawned(&self.answer_all(world, &step)).pop().expect("a worker is asked for")
    }

    /// A process introduces itself.
    pub fn register(&mut self, world: &mut World, worker: &str, status: WorkerStatus) -> Step {
        let id: WorkerId = worker.parse().expect("an id");
        let (pool, process) = self.processes[&id].clone();
        let facts = WorkerFacts {
            instance: self.starts[&id],
            pool_id: Some(self.id(&pool)),
            model: process.model,
            evictable: self.evictable,
            capabilities: self.capabilities.clone(),
            backend: "cpu".to_owned(),
            ..facts(worker, self.slots)
        };
        world.register(facts, status, vec![])
    }

    /// A worker that was asked for registers, is ready, and its pool says so.
    pub fn come_up(&mut self, world: &mut World, worker: &WorkerId) -> Step {
        let mut step = self.register(world, worker.as_str(), WorkerStatus::Ready);
        let (pool, process) = self.processes.get_mut(worker).expect("a process");
        process.starting = false;
        let pool_id = pool.parse().expect("an id");
        let ended = world.event(Event::SpawnEnded { pool_id, worker_id: worker.clone(), error: None });
        step.actions.extend(ended.actions);
        step
    }

    /// A worker that is there and ready.
    pub fn resident(&mut self, world: &mut World, worker: &str, pool: &str, model: &str) {
        self.process(worker, pool, model, false);
        self.register(world, worker, WorkerStatus::Ready);
    }

    /// A pool could not start a worker.
    pub fn fail(&mut self, world: &mut World, worker: &WorkerId, code: ErrorCode) -> Step {
        let (pool, _) = self.processes.remove(worker).expect("a process");
        let error = ErrorDetail::new(code, "no luck");
        world.event(Event::SpawnEnded {
            pool_id: self.id(&pool),
            worker_id: worker.clone(),
            error: Some(error),
        })
    }

    /// A pool has stopped a worker.
    pub fn stopped(&mut self, world: &mut World, worker: &WorkerId) -> Step {
        let (pool, _) = self.processes.remove(worker).expect("a process");
        world.event(Event::StopEnded { pool_id: self.id(&pool), worker_id: worker.clone(), error: None })
    }
}
