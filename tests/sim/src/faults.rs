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
    /// The wall clock jumps to and fro, and the orchestrator dies and starts in the middle of it.
    StrobeClock { by_ms: i64, jumps: u64 },
    /// A pool answers nothing.
    SilencePool { for_ms: u64 },
    /// No worker that a pool starts comes up.
    FailSpawns { for_ms: u64 },
    /// A worker that a pool started ends at once, for good.
    KillPooled,
    /// The operator changes the policies, perhaps for one that fails.
    SetPolicy { number: u64 },
    /// A client has a session forgotten that may be in use.
    ForgetSession { number: u64 },
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
            0..=5 => Self::StrobeClock {
                by_ms: rng.between(1_000, 7_200_000).cast_signed() - 3_600_000,
                jumps: rng.between(4, 30),
            },
            6..=8 => Self::SilencePool { for_ms: rng.between(100, 16_000) },
            9..=10 => Self::FailSpawns { for_ms: rng.between(100, 16_000) },
            11..=13 => Self::KillPooled,
            14..=17 => Self::SetPolicy { number: rng.next() },
            18 => Self::ForgetSession { number: rng.next() },
            19..=32 => Self::KillWorker { worker, back_after_ms: rng.between(20, 15_000) },
            33..=42 => Self::StopWorker { worker, for_ms: rng.between(100, 16_000) },
            43..=47 => Self::CutLink { worker, for_ms: rng.between(100, 16_000) },
            48..=49 => Self::Deafen { worker, for_ms: rng.between(100, 16_000) },
            50..=51 => Self::Mute { worker, for_ms: rng.between(100, 16_000) },
            52..=53 => Self::CutAll { for_ms: rng.between(100, 9_000) },
            54..=57 => Self::DrainWorker { worker },
            58..=65 => Self::BreakStreams { worker },
            66..=69 => {
                let by_ms = rng.between(0, 7_200_000).cast_signed() - 3_600_000;
                Self::SetClock { by_ms: if rng.chance(20) { by_ms * 24 } else { by_ms } }
            }
            70..=94 => Self::CrashDaemon { at: CrashPoint::draw(rng), back_after_ms: rng.between(50, 4_000) },
            _ => Self::StopDaemon { for_ms: rng.between(100, 20_000) },
        }
    }

    /// Does it to the world. Returns whether that made a difference: who is dead cannot be killed.
    pub fn strike(self, world: &mut World) -> bool {
        let now = world.now;
        let lives = |world: &World, worker: usize| world.workers[worker].process.is_some();
        match self {
            Self::KillWorker { worker, back_after_ms } => {
                let lived = lives(world, worker);
                world.kill_worker(worker);
                world.after(back_after_ms, Happening::StartWorker(worker));
                lived
            }
            Self::StopWorker { worker, for_ms } => {
                let until = &mut world.workers[worker].stopped_until;
                longer(until, now, for_ms) && lives(world, worker)
            }
            Self::CutLink { worker, for_ms } => {
                longer(&mut world.workers[worker].cut_until, now, for_ms) && lives(world, worker)
            }
            Self::Deafen { worker, for_ms } => {
                longer(&mut world.workers[worker].deaf_until, now, for_ms) && lives(world, worker)
            }
            Self::Mute { worker, for_ms } => {
                longer(&mut world.workers[worker].mute_until, now, for_ms) && lives(world, worker)
            }
            Self::CutAll { for_ms } => {
                let mut cut = false;
                for worker in 0..world.workers.len() {
                    let back = world.rng.between(for_ms / 2, for_ms);
                    cut |= longer(&mut world.workers[worker].cut_until, now, back) && lives(world, worker);
                }
                cut
            }
            Self::SetClock { by_ms } => {
                world.wall_offset += by_ms;
                by_ms != 0
            }
            Self::StrobeClock { by_ms, jumps } => {
                world.strobe(by_ms, jumps);
                true
            }
            Self::DrainWorker { worker } => {
                let lived = lives(world, worker) && world.daemon.is_some();
                world.drain_worker(worker);
                lived
            }
            Self::BreakStreams { worker } => world.break_streams(worker),
            Self::CrashDaemon { at: CrashPoint::Between, back_after_ms } => {
                world.daemon.is_some() && {
                    world.crash_daemon(back_after_ms);
                    true
                }
            }
            // Counted as the one that waits already, if one does.
            Self::CrashDaemon { at, back_after_ms } => {
                world.daemon.is_some() && world.crash_next.replace((at, back_after_ms)).is_none()
            }
            Self::StopDaemon { for_ms } => {
                longer(&mut world.daemon_stopped_until, now, for_ms) && world.daemon.is_some()
            }
            Self::SilencePool { for_ms } => {
                world.pool.as_mut().is_some_and(|pool| longer(&mut pool.silent_until, now, for_ms))
            }
            Self::FailSpawns { for_ms } => {
                world.pool.as_mut().is_some_and(|pool| longer(&mut pool.failing_until, now, for_ms))
            }
            Self::KillPooled => world.kill_pooled(),
            Self::SetPolicy { number } => {
                world.set_policy(number);
                world.daemon.is_some()
            }
            Self::ForgetSession { number } => {
                world.forget_session(number);
                world.daemon.is_some()
            }
        }
    }
}

/// Something lasts from now on for so long, unless it does already. Returns whether it began.
fn longer(until: &mut u64, now: u64, for_ms: u64) -> bool {
    let begins = *until <= now;
    *until = (*until).max(now + for_ms);
    begins
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
