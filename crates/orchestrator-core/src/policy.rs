//! How good a worker looks for a job. Feasibility is not its business, so a bad policy can be slow
//! or silly but never unsafe.

use std::fmt::Debug;

use api_types::task::Priority;

/// What a policy may know of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFacts<'a> {
    /// The model, resolved to an id.
    pub model: &'a str,
    /// Its class.
    pub priority: Priority,
    /// Bytes of prompt or messages.
    pub prompt_bytes: u64,
    /// Milliseconds it has waited.
    pub waited_ms: u64,
}

/// What a policy may know of a feasible worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerLoad<'a> {
    /// `cpu`, `cuda`, `metal`, `vulkan` or `fake`.
    pub backend: &'a str,
    /// All its slots; at least 1.
    pub slots: u32,
    /// Slots that no run holds; at least 1.
    pub slots_free: u32,
    /// Tokens of context per job.
    pub context_length: u32,
    /// Free memory of its device, in bytes; 0 when unknown.
    pub free_memory_bytes: u64,
    /// Share of the job's prompt whose KV cache it holds, from 0 to 1.
    pub prefix_share: f64,
    /// Whether it ran the last job of this job's session.
    pub session_here: bool,
}

/// Scores feasible workers; the highest score is taken, and between equals the lower id.
pub trait Policy: Debug + Send {
    /// What `why` calls it: its name and its rule in a few words.
    fn describe(&self) -> &str;

    /// How good this worker looks for this job, from 0 to 1,000. The same facts always give the
    /// same score.
    fn score(&self, job: &JobFacts<'_>, worker: &WorkerLoad<'_>) -> f64;
}

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
}

impl Policy for LeastLoaded {
    fn describe(&self) -> &'static str {
        "default: prefix or session affinity where it helps, then least loaded by slots, then most free memory, then lowest id"
    }

    fn score(&self, _job: &JobFacts<'_>, worker: &WorkerLoad<'_>) -> f64 {
        Self::affinity(worker.prefix_share, worker.session_here)
            + Self::base(worker.slots_free, worker.slots, worker.free_memory_bytes)
    }
}
