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
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// Scores feasible workers; the highest score is taken, and between equals the lower id.
pub trait Policy: Debug + Send {
    /// What `why` calls it: its name and its rule in a few words.
    fn describe(&self) -> &str;

    /// How good this worker looks for this job, from 0 to 1,000. The same facts always give the
    /// same score.
    fn score(&self, job: &JobFacts<'_>, worker: &WorkerLoad<'_>) -> f64;
}

/// The built-in policy: least loaded by slots, then most free memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeastLoaded;

impl Policy for LeastLoaded {
    fn describe(&self) -> &'static str {
        "default: least loaded by slots, then most free memory, then lowest id"
    }

    /// The share of free slots in per mille, and less than 1 on top for free memory.
    fn score(&self, _job: &JobFacts<'_>, worker: &WorkerLoad<'_>) -> f64 {
        let share = u64::from(worker.slots_free) * 999 / u64::from(worker.slots.max(1));
        let gigabytes = worker.free_memory_bytes as f64 / 1e9;
        share as f64 + gigabytes / (gigabytes + 1.0)
    }
}
