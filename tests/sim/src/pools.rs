//! A pool in small: memory, a catalog, worker processes that it starts and ends when it is asked. It
//! answers late, twice, with errors, or not at all.

use api_types::pool::Fit;
use api_types::{ErrorCode, ErrorDetail, PoolId, WorkerId};
use orchestrator_core::{Event, PoolProcess, PoolRoom};

use crate::bugs::Bug;
use crate::plan::{PoolPlan, WorkerPlan};
use crate::rng::mix;
use crate::sim_worker::SimWorker;
use crate::world::{Happening, World};

/// Bytes that are to stay free beside a worker.
const MARGIN: u64 = 5;
/// Where workers of pools run.
const DEVICE: &str = "cpu";

/// A machine that starts workers when it is asked.
#[derive(Debug)]
pub struct SimPool {
    /// Its id.
    pub id: PoolId,
    /// What it is.
    pub plan: PoolPlan,
    /// Until when it cannot be reached.
    pub down_until: u64,
    /// Until when the operator does not want it.
    pub removed_until: u64,
    /// Until when the operator wants no new workers there.
    pub drained_until: u64,
    /// Bytes that another program takes, and until when.
    pub taken: (u64, u64),
    /// Faults that struck it and nobody has noticed yet.
    pub unfelt: u64,
}

/// Where a worker lives that a pool started.
#[derive(Debug, Clone, Copy)]
pub struct Home {
    /// The place of its pool.
    pub pool: usize,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Who waits for it to be ready: an orchestrator, by its life.
    pub asked_by: Option<u64>,
}

/// What a pool is asked.
#[derive(Debug, Clone)]
pub enum Ask {
    /// What fits.
    Room(u64),
    /// To start a worker.
    Spawn(WorkerId, String),
    /// To end one.
    Stop(WorkerId),
}

impl SimPool {
    /// A pool that nothing has happened to.
    pub fn new(plan: PoolPlan) -> anyhow::Result<Self> {
        let id = plan.name.parse()?;
        let (down_until, removed_until, drained_until, unfelt) = (0, 0, 0, 0);
        Ok(Self { id, plan, down_until, removed_until, drained_until, taken: (0, 0), unfelt })
    }

    /// Bytes that a worker of this model needs.
    pub fn need(&self, model: &str) -> u64 {
        self.plan.models.iter().find(|known| known.name == model).map_or(0, |known| known.bytes)
    }
}

impl World {
    /// The place of a pool in the plan.
    pub fn pool_index(&self, id: &PoolId) -> usize {
        self.pools.iter().position(|pool| pool.id == *id).unwrap_or_default()
    }

    /// The question of the living orchestrator goes out.
    pub fn ask_pool(&mut self, pool_id: &PoolId, ask: Ask) {
        let pool = self.pool_index(pool_id);
        let delay = self.pool_latency();
        self.after(delay, Happening::PoolAsked { life: self.life, pool, ask });
    }

    fn pool_latency(&mut self) -> u64 {
        if self.is_faulty() && self.rng.chance(8) { self.rng.between(500, 7_000) } else { self.latency() }
    }

    /// The question arrives, perhaps after the death of who asked.
    pub fn pool_asked(&mut self, life: u64, pool: usize, ask: Ask) {
        if self.now < self.pools[pool].down_until {
            self.feel(pool);
            return self.refuse_ask(life, pool, ask);
        }
        match ask {
            Ask::Room(number) => self.tell_room(life, pool, number),
            // Who asks holds a line to the pool; when it breaks early, nothing is started.
            Ask::Spawn(..) if life != self.life && self.rng.chance(50) => {}
            Ask::Spawn(worker_id, model) => self.pool_spawn(life, pool, worker_id, &model),
            Ask::Stop(worker_id) => self.pool_stop(life, pool, worker_id),
        }
    }

    /// Somebody noticed what struck a pool.
    fn feel(&mut self, pool: usize) {
        self.counts.faults += std::mem::take(&mut self.pools[pool].unfelt);
    }

    fn refuse_ask(&mut self, life: u64, pool: usize, ask: Ask) {
        let error = ErrorDetail::new(ErrorCode::SshFailed, "scripted");
        let delay = self.rng.between(50, 3_000);
        let pool_id = self.pools[pool].id.clone();
        let event = match ask {
            Ask::Room(ask) => Event::PoolSilent { pool_id, ask, error },
            Ask::Spawn(worker_id, _) => Event::SpawnEnded { pool_id, worker_id, error: Some(error) },
            Ask::Stop(worker_id) => Event::StopEnded { pool_id, worker_id, error: Some(error) },
        };
        self.after(delay, Happening::Report { life, event: Box::new(event) });
    }

    /// Whether what a pool says of a worker's start or end is lost for good. It follows from the worker,
    /// so that what is drawn elsewhere stays as it was.
    fn is_never_heard(&mut self, event: &Event) -> bool {
        let (Event::SpawnEnded { worker_id, .. } | Event::StopEnded { worker_id, .. }) = event else {
            return false;
        };
        let number = worker_id.as_str().bytes().fold(self.now, |sum, byte| mix(sum ^ u64::from(byte)));
        let lost = self.is_faulty() && number % 16 == 0;
        self.counts.faults += u64::from(lost);
        lost
    }

    /// An answer of a pool: now and then late, twice, or both, or none at all.
    fn pool_reports(&mut self, life: u64, event: Event) {
        if self.is_never_heard(&event) {
            return;
        }
        let copies = 1 + u64::from(self.doubles_message());
        for _ in 0..copies {
            let delay = self.pool_latency();
            self.after(delay, Happening::Report { life, event: Box::new(event.clone()) });
        }
    }

    fn tell_room(&mut self, life: u64, pool: usize, ask: u64) {
        if self.now < self.pools[pool].taken.1 {
            self.feel(pool);
        }
        let (pool_id, room) = (self.pools[pool].id.clone(), self.room(pool));
        // An answer that is lost on the way is asked for again.
        if !(self.is_faulty() && self.rng.chance(2)) {
            self.pool_reports(life, Event::PoolSeen { pool_id, ask, room });
        }
    }

    /// Places of the workers of a pool that have a process.
    pub fn living_in(&self, pool: usize) -> impl Iterator<Item = (usize, &SimWorker, Home)> {
        self.workers.iter().enumerate().filter_map(move |(place, worker)| {
            let home = worker.home.filter(|home| home.pool == pool && worker.process.is_some())?;
            Some((place, worker, home))
        })
    }

    fn free_in(&self, pool: usize) -> u64 {
        let here = &self.pools[pool];
        let taken = if self.now < here.taken.1 { here.taken.0 } else { 0 };
        let held: u64 = self.living_in(pool).map(|(_, _, home)| home.bytes).sum();
        here.plan.memory.saturating_sub(held + taken)
    }

    fn room(&self, pool: usize) -> PoolRoom {
        let (plan, free) = (&self.pools[pool].plan, self.free_in(pool));
        let fits = plan.models.iter().map(|model| Fit {
            model: model.name.to_owned(),
            device: DEVICE.to_owned(),
            fits: model.bytes + MARGIN <= free,
            weights_bytes: model.bytes,
            kv_bytes: 0,
            overhead_bytes: 0,
            needed_bytes: model.bytes,
            free_bytes: free,
            total_bytes: plan.memory,
            margin_bytes: MARGIN,
            slots: plan.slots,
            context: 4_096,
        });
        let processes = self.living_in(pool).map(|(_, worker, home)| PoolProcess {
            worker_id: worker.id.clone(),
            model: worker.plan.model.to_owned(),
            device: DEVICE.to_owned(),
            bytes: home.bytes,
            starting: worker.is_loading(),
        });
        PoolRoom { fits: fits.collect(), processes: processes.collect() }
    }

    fn pool_spawn(&mut self, life: u64, pool: usize, worker_id: WorkerId, model: &str) {
        let place = self.workers.iter().position(|worker| worker.id == worker_id);
        if let Some(place) = place.filter(|place| self.workers[*place].process.is_some()) {
            return self.spawn_known(life, place);
        }
        let bytes = self.pools[pool].need(model);
        let error = if bytes > self.free_in(pool) {
            Some(ErrorDetail::new(ErrorCode::InsufficientMemory, "scripted"))
        } else if self.is_faulty() && self.rng.chance(12) {
            Some(ErrorDetail::new(ErrorCode::SpawnFailed, "scripted"))
        } else {
            None
        };
        if error.is_some() {
            let pool_id = self.pools[pool].id.clone();
            return self.pool_reports(life, Event::SpawnEnded { pool_id, worker_id, error });
        }
        let home = Home { pool, bytes, asked_by: Some(life) };
        let place = self.settle(place, worker_id, model, home);
        self.begin_process(place);
        if self.is_faulty() && self.rng.chance(8) {
            let delay = self.rng.between(10, self.pools[pool].plan.load_ms);
            let start = self.starts;
            self.after(delay, Happening::DieLoading { worker: place, start });
        }
    }

    /// A worker of this id runs or loads there already: no second one is started.
    fn spawn_known(&mut self, life: u64, place: usize) {
        let Some(home) = &mut self.workers[place].home else { return };
        home.asked_by = Some(life);
        if !self.workers[place].is_loading() {
            self.tell_spawned(place, None);
        }
    }

    /// The place of a worker that is about to be started.
    fn settle(&mut self, place: Option<usize>, id: WorkerId, model: &str, home: Home) -> usize {
        if let Some(place) = place {
            self.workers[place].home = Some(home);
            return place;
        }
        let plan = &self.pools[home.pool].plan;
        let model = plan.models.iter().find(|known| known.name == model).map_or("?", |known| known.name);
        let plan = WorkerPlan { model, slots: plan.slots, load_ms: plan.load_ms };
        self.workers.push(SimWorker { home: Some(home), ..SimWorker::new(id, plan) });
        self.workers.len() - 1
    }

    /// Who asked for a worker hears what became of it.
    pub fn tell_spawned(&mut self, place: usize, error: Option<ErrorDetail>) {
        let Some(home) = &mut self.workers[place].home else { return };
        let (pool, Some(life)) = (home.pool, home.asked_by.take()) else { return };
        let (pool_id, worker_id) = (self.pools[pool].id.clone(), self.workers[place].id.clone());
        self.pool_reports(life, Event::SpawnEnded { pool_id, worker_id, error });
    }

    fn pool_stop(&mut self, life: u64, pool: usize, worker_id: WorkerId) {
        let pool_id = self.pools[pool].id.clone();
        let place = self.living_in(pool).find(|(_, worker, _)| worker.id == worker_id).map(|found| found.0);
        let error = match place {
            None => Some(ErrorDetail::new(ErrorCode::WorkerNotFound, "scripted")),
            Some(_) if self.is_faulty() && self.rng.chance(10) => {
                Some(ErrorDetail::new(ErrorCode::SshFailed, "scripted"))
            }
            Some(place) => {
                self.check_nothing_runs(life, place);
                self.kill_worker(place);
                None
            }
        };
        self.pool_reports(life, Event::StopEnded { pool_id, worker_id, error });
    }

    /// The orchestrator's process ended: pools take back most of what it was waiting for.
    pub fn take_back_spawns(&mut self) {
        for place in 0..self.workers.len() {
            let waited_for = self.workers[place].home.is_some_and(|home| home.asked_by.is_some());
            if waited_for && self.workers[place].is_loading() && self.rng.chance(60) {
                self.kill_worker(place);
            }
        }
    }

    /// The planted bug: a pool's memory is read as if nothing were in it.
    pub fn misread_room(&self, event: Event) -> Event {
        match event {
            Event::PoolSeen { pool_id, ask, mut room } if self.bug == Some(Bug::RoomMisread) => {
                room.fits.iter_mut().for_each(|fit| fit.free_bytes = fit.total_bytes);
                Event::PoolSeen { pool_id, ask, room }
            }
            other => other,
        }
    }
}
