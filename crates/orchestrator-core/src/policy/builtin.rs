//! The policy that is always there and cannot fail.

use super::facts::WorkerLoad;
use super::{Hook, Policy, Score};

/// The built-in policy: what the worker holds of the prompt and the session goes first where it
/// helps, then the share of free slots, then free memory.
///
/// Affinity is worth the share of the prompt that needs no prefill: all of it outweighs any load, a
/// tenth of it gives way to a worker that has a tenth more of its slots free.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeastLoaded;

impl LeastLoaded {
    /// Points for a prompt that is held whole.
    pub const AFFINITY: f64 = 500.0;
    /// Points for a worker with all slots free.
    pub const LOAD: f64 = 499.0;
    /// The share of the prompt that a session counts for on its last worker, where nothing better is
    /// known of what that worker holds.
    pub const SESSION_SHARE: f64 = 0.25;

    /// Points for what the worker holds of the prompt: 0 to [`Self::AFFINITY`], whole.
    pub fn affinity(prefix_share: f64, session_here: bool) -> f64 {
        let session = if session_here { Self::SESSION_SHARE } else { 0.0 };
        (Self::AFFINITY * prefix_share.clamp(session, 1.0)).floor()
    }

    /// Points for free slots: 0 to [`Self::LOAD`], whole.
    pub fn load(slots_free: u32, slots: u32) -> f64 {
        (Self::LOAD * f64::from(slots_free) / f64::from(slots.max(1))).floor()
    }

    /// Points for free memory: less than 1, in millionths, so that they survive being written down.
    pub fn memory(free_memory_bytes: u64) -> f64 {
        let gigabytes = free_memory_bytes as f64 / 1e9;
        (gigabytes / (gigabytes + 1.0) * 1e6).floor().min(999_999.0) / 1e6
    }

    /// Points of a worker that holds nothing.
    pub fn base(slots_free: u32, slots: u32, free_memory_bytes: u64) -> f64 {
        Self::load(slots_free, slots) + Self::memory(free_memory_bytes)
    }

    /// Points of a worker for a job: 0 to less than 1,000.
    pub fn points(worker: &WorkerLoad<'_>) -> f64 {
        Self::affinity(worker.prefix_share, worker.session_here)
            + Self::base(worker.slots_free, worker.slots, worker.free_memory_bytes)
    }

    /// Scores workers as [`Policy::score`] does, without a way to fail.
    pub fn score_all(workers: &[WorkerLoad<'_>], scores: &mut Vec<Score>) {
        scores.clear();
        scores.extend(workers.iter().map(|worker| Score::Points(Self::points(worker))));
    }

    /// Milliseconds without a job: the least recently used worker goes first.
    pub const fn evict_key(worker: &WorkerLoad<'_>) -> f64 {
        worker.idle_ms as f64
    }
}

impl Policy for LeastLoaded {
    fn describe(&self) -> &'static str {
        "default: prefix or session affinity where it helps, then least loaded by slots, then most free memory, then lowest id"
    }

    fn has(&self, _hook: Hook) -> bool {
        false
    }
}
