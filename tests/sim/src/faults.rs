//! What can go wrong, and how it is done to the world.
//!
//! A fault counts when it had an effect: a crash when the process dies, a cut when somebody would have
//! been heard, a clock when a process starts by it. One that would change nothing is aimed elsewhere,
//! and the faults go on until enough of them counted.

use crate::rng::Rng;
use crate::world::{FAULTS_AT_LEAST, Happening, World};

/// Longer than a worker is silent by itself, in milliseconds.
const FELT_MS: u64 = 3_000;
/// How often a fault that would change nothing is aimed elsewhere.
const AIMED_AT_MOST: usize = 6;
/// How long after their time the faults may go on, in milliseconds.
const GOES_ON_MS: u64 = 60_000;

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A worker's process ends at once and is started anew later.
    KillWorker { worker: usize, back_after_ms: u64 },
    /// A worker's process stands still, as after SIGSTOP.
    StopWorker { worker: usize, for_ms: u64 },
    /// Nothing gets through between the orchestrator and a worker.
    CutLink { worker: usize, for_ms: u64 },
    /// A worker is asked to finish and end, and is started anew later.
    DrainWorker { worker: usize },
    /// The streams from a worker break; the process lives.
    BreakStreams { worker: usize },
    /// The orchestrator's process ends at once, at the named point of its next step.
    CrashDaemon { at: CrashPoint, back_after_ms: u64 },
    /// The orchestrator's process stands still.
    StopDaemon { for_ms: u64 },
    /// A worker hears nothing, but what it says arrives.
    Deafen { worker: usize, for_ms: u64 },
    /// Nothing that a worker says arrives, but it hears.
    Mute { worker: usize, for_ms: u64 },
    /// Every link is cut at once and they come back one after the other.
    CutAll { for_ms: u64 },
    /// The wall clock is set.
    SetClock { by_ms: i64 },
    /// The wall clock jumps to and fro, and the orchestrator is started anew meanwhile.
    StrobeClock { by_ms: i64, times: u32, every_ms: u64 },
    /// A pool cannot be reached.
    SilencePool { pool: usize, for_ms: u64 },
    /// All workers of a pool end at once.
    KillPool { pool: usize },
    /// A worker ends while it loads.
    KillLoading,
    /// Another program takes memory of a pool.
    TakeMemory { pool: usize, bytes: u64, for_ms: u64 },
    /// The operator removes a pool and adds it again.
    RemovePool { pool: usize, for_ms: u64 },
    /// The operator lets a pool start no workers for a while.
    DrainPool { pool: usize, for_ms: u64 },
    /// The disk takes no commits, because it is full or because somebody else holds it.
    RefuseCommits { full: bool, for_ms: u64 },
}

/// Where in a step the orchestrator dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// Between two steps.
    Between,
    /// After deciding, before the commit.
    BeforeCommit,
    /// After the commit, before the first action.
    AfterCommit,
    /// After this many actions.
    AmongActions(u64),
}

/// What a fault did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Nothing.
    None,
    /// Something changed at once.
    Now,
    /// It waits; whoever feels it counts it.
    Waits,
}

impl Effect {
    const fn when(now: bool) -> Self {
        if now { Self::Now } else { Self::None }
    }
}

impl Fault {
    /// Some fault on some of so many workers.
    pub const fn draw(rng: &mut Rng, workers: u64) -> Self {
        let worker = rng.between(0, workers - 1) as usize;
        match rng.between(0, 99) {
            0..=24 => Self::KillWorker { worker, back_after_ms: rng.between(20, 15_000) },
            25..=39 => Self::StopWorker { worker, for_ms: rng.between(100, 16_000) },
            40..=46 => Self::CutLink { worker, for_ms: rng.between(100, 16_000) },
            47..=48 => Self::Deafen { worker, for_ms: rng.between(100, 16_000) },
            49..=50 => Self::Mute { worker, for_ms: rng.between(100, 16_000) },
            51..=52 => Self::CutAll { for_ms: rng.between(100, 9_000) },
            53..=56 => Self::DrainWorker { worker },
            57..=65 => Self::BreakStreams { worker },
            66..=69 => {
                let by_ms = rng.between(0, 7_200_000).cast_signed() - 3_600_000;
                Self::SetClock { by_ms: if rng.chance(20) { by_ms * 24 } else { by_ms } }
            }
            70..=94 => Self::CrashDaemon { at: CrashPoint::draw(rng), back_after_ms: rng.between(50, 4_000) },
            _ => Self::StopDaemon { for_ms: rng.between(100, 20_000) },
        }
    }

    /// Some fault on some of so many pools.
    pub const fn draw_for_pools(rng: &mut Rng, pools: u64) -> Self {
        let pool = rng.between(0, pools - 1) as usize;
        match rng.between(0, 99) {
            0..=24 => Self::SilencePool { pool, for_ms: rng.between(500, 15_000) },
            25..=39 => Self::KillPool { pool },
            40..=54 => Self::KillLoading,
            55..=79 => {
                Self::TakeMemory { pool, bytes: rng.between(10, 90), for_ms: rng.between(1_000, 20_000) }
            }
            80..=89 => Self::RemovePool { pool, for_ms: rng.between(100, 15_000) },
            _ => Self::DrainPool { pool, for_ms: rng.between(100, 15_000) },
        }
    }

    /// A clock that jumps to and fro.
    pub const fn draw_strobe(rng: &mut Rng) -> Self {
        let by_ms = rng.between(1_000, 3_600_000).cast_signed();
        Self::StrobeClock { by_ms, times: rng.between(4, 16) as u32, every_ms: rng.between(100, 1_500) }
    }

    /// The same fault on a worker that lives.
    fn at(self, worker: usize) -> Self {
        match self {
            Self::KillWorker { back_after_ms, .. } => Self::KillWorker { worker, back_after_ms },
            Self::StopWorker { for_ms, .. } => Self::StopWorker { worker, for_ms },
            Self::CutLink { for_ms, .. } => Self::CutLink { worker, for_ms },
            Self::DrainWorker { .. } => Self::DrainWorker { worker },
            Self::BreakStreams { .. } => Self::BreakStreams { worker },
            Self::Deafen { for_ms, .. } => Self::Deafen { worker, for_ms },
            Self::Mute { for_ms, .. } => Self::Mute { worker, for_ms },
            other => other,
        }
    }

    fn strike(self, world: &mut World) -> Effect {
        match self {
            Self::KillWorker { worker, back_after_ms } => {
                let lived = world.workers[worker].process.is_some();
                world.kill_worker(worker);
                world.after(back_after_ms, Happening::StartWorker(worker));
                Effect::when(lived)
            }
            Self::StopWorker { worker, for_ms } => {
                world.part(worker, for_ms, |machine| &mut machine.stopped_until)
            }
            Self::CutLink { worker, for_ms } => world.part(worker, for_ms, |machine| &mut machine.cut_until),
            Self::Deafen { worker, for_ms } => world.part(worker, for_ms, |machine| &mut machine.deaf_until),
            Self::Mute { worker, for_ms } => world.part(worker, for_ms, |machine| &mut machine.mute_until),
            Self::CutAll { for_ms } => world.part_all(for_ms),
            Self::DrainWorker { worker } => Effect::when(world.drain_worker(worker)),
            Self::BreakStreams { worker } => Effect::when(world.break_streams(worker)),
            Self::KillLoading => Effect::when(world.kill_one_loading()),
            Self::KillPool { pool } => Effect::when(world.kill_pool(pool)),
            Self::RemovePool { pool, for_ms } => Effect::when(world.put_away(pool, false, for_ms)),
            Self::DrainPool { pool, for_ms } => Effect::when(world.put_away(pool, true, for_ms)),
            Self::CrashDaemon { .. } | Self::StopDaemon { .. } => self.strike_daemon(world),
            Self::SetClock { .. } | Self::StrobeClock { .. } => self.strike_clock(world),
            Self::SilencePool { .. } | Self::TakeMemory { .. } | Self::RefuseCommits { .. } => {
                self.strike_for_a_while(world)
            }
        }
    }

    fn strike_daemon(self, world: &mut World) -> Effect {
        let lives = world.daemon.is_some();
        match self {
            Self::CrashDaemon { at: CrashPoint::Between, back_after_ms } if lives => {
                world.crash_daemon(back_after_ms);
                Effect::Waits
            }
            Self::CrashDaemon { at, back_after_ms } if lives && world.crash_next.is_none() => {
                world.crash_next = Some((at, back_after_ms));
                Effect::Waits
            }
            Self::StopDaemon { for_ms } if lives => {
                let until = world.now + for_ms;
                let longer = until > world.daemon_stopped_until + FELT_MS;
                world.daemon_stopped_until = world.daemon_stopped_until.max(until);
                Effect::when(longer)
            }
            _ => Effect::None,
        }
    }

    fn strike_clock(self, world: &mut World) -> Effect {
        match self {
            Self::SetClock { by_ms } => world.wall_offset += by_ms,
            Self::StrobeClock { by_ms, times, every_ms } => world.strobe(by_ms, times, every_ms),
            _ => return Effect::None,
        }
        Effect::Waits
    }

    fn strike_for_a_while(self, world: &mut World) -> Effect {
        match self {
            Self::SilencePool { pool, for_ms } => {
                world.pools[pool].down_until = world.now + for_ms;
                world.pools[pool].unfelt = 1;
            }
            Self::TakeMemory { pool, bytes, for_ms } => {
                world.pools[pool].taken = (bytes, world.now + for_ms);
                world.pools[pool].unfelt = 1;
            }
            Self::RefuseCommits { full, for_ms } => {
                let until = world.now + for_ms;
                (world.disk.refuses_until, world.disk.is_full, world.disk.unfelt) = (until, full, 1);
            }
            _ => return Effect::None,
        }
        Effect::Waits
    }
}

impl World {
    /// A fault of the plan strikes; where it would change nothing, something else does.
    pub fn strike(&mut self, planned: Fault) {
        let mut fault = planned;
        for _ in 0..AIMED_AT_MOST {
            let aimed = self.aim(fault);
            let effect = aimed.strike(self);
            if self.trace.verbose {
                println!("{aimed:?}: {effect:?}");
            }
            self.counts.faults += u64::from(effect == Effect::Now);
            if effect != Effect::None {
                return;
            }
            fault = Fault::draw(&mut self.rng, self.plan.workers.len() as u64);
        }
    }

    /// Half of what is meant for a worker is meant for any that lives, those of pools included.
    fn aim(&mut self, fault: Fault) -> Fault {
        let living: Vec<usize> =
            (0..self.workers.len()).filter(|worker| self.workers[*worker].process.is_some()).collect();
        if living.is_empty() || self.rng.chance(50) {
            return fault;
        }
        fault.at(living[self.rng.next() as usize % living.len()])
    }

    /// Whether the faults have to go on because too few of them had an effect.
    pub fn needs_faults(&self) -> bool {
        self.counts.faults < FAULTS_AT_LEAST && self.now < self.heal_at + GOES_ON_MS
    }

    /// Another fault than those of the plan.
    pub fn strike_again(&mut self) {
        let fault = Fault::draw(&mut self.rng, self.plan.workers.len() as u64);
        self.strike(fault);
    }

    /// Parts a worker from the rest in some way. It counts when the worker would have been heard.
    fn part(
        &mut self,
        worker: usize,
        for_ms: u64,
        until: fn(&mut crate::sim_worker::SimWorker) -> &mut u64,
    ) -> Effect {
        let (now, machine) = (self.now, &mut self.workers[worker]);
        let lives = machine.process.is_some();
        let until = until(machine);
        let before = (*until).max(now);
        *until = before.max(now + for_ms);
        Effect::when(lives && *until - before >= FELT_MS)
    }

    fn part_all(&mut self, for_ms: u64) -> Effect {
        let mut effect = Effect::None;
        for worker in 0..self.workers.len() {
            let back = self.rng.between(for_ms / 2, for_ms);
            if self.part(worker, back, |machine| &mut machine.cut_until) == Effect::Now {
                effect = Effect::Now;
            }
        }
        effect
    }

    /// One jump of a strobing clock. Every third finds the orchestrator starting anew.
    pub fn strobe(&mut self, by_ms: i64, left: u32, every_ms: u64) {
        self.wall_offset += by_ms;
        if left == 0 || !self.is_faulty() {
            return;
        }
        if left.is_multiple_of(3) {
            let back = self.rng.between(20, 400);
            self.crash_daemon(back);
        }
        self.after(every_ms, Happening::Strobe { by_ms: -by_ms, left: left - 1, every_ms });
    }

    fn kill_one_loading(&mut self) -> bool {
        let loading: Vec<usize> = (0..self.workers.len()).filter(|n| self.workers[*n].is_loading()).collect();
        let Some(worker) = loading.get(self.rng.next() as usize % loading.len().max(1)).copied() else {
            return false;
        };
        self.kill_worker(worker);
        let delay = self.rng.between(100, 5_000);
        self.after(delay, Happening::StartWorker(worker));
        true
    }

    fn kill_pool(&mut self, pool: usize) -> bool {
        let places: Vec<usize> = self.living_in(pool).map(|found| found.0).collect();
        places.iter().for_each(|place| self.kill_worker(*place));
        !places.is_empty()
    }
}

impl CrashPoint {
    const fn draw(rng: &mut Rng) -> Self {
        match rng.between(0, 3) {
            0 => Self::Between,
            1 => Self::BeforeCommit,
            2 => Self::AfterCommit,
            _ => Self::AmongActions(rng.between(1, 3)),
        }
    }
}
