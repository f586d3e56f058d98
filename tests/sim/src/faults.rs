//! What can go wrong, and how it is done to the world.

use crate::rng::Rng;
use crate::world::{Happening, World};

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

    /// Does it to the world.
    pub fn strike(self, world: &mut World) {
        match self {
            Self::KillWorker { worker, back_after_ms } => {
                world.kill_worker(worker);
                world.after(back_after_ms, Happening::StartWorker(worker));
            }
            Self::StopWorker { worker, for_ms } => {
                world.workers[worker].stopped_until = world.now + for_ms;
            }
            Self::CutLink { worker, for_ms } => world.workers[worker].cut_until = world.now + for_ms,
            Self::Deafen { worker, for_ms } => world.workers[worker].deaf_until = world.now + for_ms,
            Self::Mute { worker, for_ms } => world.workers[worker].mute_until = world.now + for_ms,
            Self::CutAll { for_ms } => {
                for worker in 0..world.workers.len() {
                    let back = world.rng.between(for_ms / 2, for_ms);
                    world.workers[worker].cut_until = world.now + back;
                }
            }
            Self::SetClock { by_ms } => world.wall_offset += by_ms,
            Self::DrainWorker { worker } => world.drain_worker(worker),
            Self::BreakStreams { worker } => world.break_streams(worker),
            Self::CrashDaemon { at: CrashPoint::Between, back_after_ms } => world.crash_daemon(back_after_ms),
            Self::CrashDaemon { at, back_after_ms } => world.crash_next = Some((at, back_after_ms)),
            Self::StopDaemon { for_ms } => world.daemon_stopped_until = world.now + for_ms,
        }
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
