//! What Prometheus sees. Names `rbees_worker_*`, base units, bounded labels.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use api_types::event::StopReason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::generation::{Finish, Generation};

/// How a run ended, as a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `eos`, `stop`, `max_tokens`, `tool_call`, `cancelled` or `failed`.
    pub outcome: &'static str,
}

/// The worker's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Prompts whose processing began.
    pub prefills: Counter,
    /// Their tokens.
    pub prompt_tokens: Counter,
    /// Those of them that were held already.
    pub prompt_tokens_cached: Counter,
    /// Tokens chosen, those that ended an answer included.
    pub tokens: Counter,
    steps: Counter,
    step_rows: Histogram,
    step_rows_last: Gauge,
    step_rows_max: Gauge,
    step_prefill_rows: Histogram,
    step_seconds: Histogram,
    first_token_seconds: Histogram,
    runs: Family<Outcome, Counter>,
    slots: Gauge,
    slots_busy: Gauge,
    ready: Gauge,
    load_progress: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let rows = || Histogram::new([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0, 128.0, 256.0]);
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let mut metrics = Self {
            registry: Registry::with_prefix("rbees_worker"),
            prefills: Counter::default(),
            prompt_tokens: Counter::default(),
            prompt_tokens_cached: Counter::default(),
            tokens: Counter::default(),
            steps: Counter::default(),
            step_rows: rows(),
            step_rows_last: Gauge::default(),
            step_rows_max: Gauge::default(),
            step_prefill_rows: rows(),
            step_seconds: seconds(),
            first_token_seconds: seconds(),
            runs: Family::default(),
            slots: Gauge::default(),
            slots_busy: Gauge::default(),
            ready: Gauge::default(),
            load_progress: Gauge::default(),
        };
        metrics.register_counts();
        metrics.register_steps();
        metrics
    }

    fn register_counts(&mut self) {
        let registry = &mut self.registry;
        registry.register("prefills", "Prompts whose processing began", self.prefills.clone());
        registry.register("prompt_tokens", "Tokens of those prompts", self.prompt_tokens.clone());
        registry.register(
            "prompt_tokens_cached",
            "Tokens of prompts that were held already",
            self.prompt_tokens_cached.clone(),
        );
        registry.register("tokens", "Tokens chosen", self.tokens.clone());
        registry.register("runs", "Runs that ended, by how", self.runs.clone());
        registry.register("slots", "Runs that fit at once", self.slots.clone());
        registry.register("slots_busy", "Slots with a run", self.slots_busy.clone());
        registry.register("ready", "1 when the worker takes runs", self.ready.clone());
        registry.register("load_progress", "Share of the model read, 0 to 1", self.load_progress.clone());
    }

    fn register_steps(&mut self) {
        let registry = &mut self.registry;
        registry.register("steps", "Steps of the decode loop", self.steps.clone());
        registry.register(
            "step_rows",
            "Decode rows of a step: one for each generating slot",
            self.step_rows.clone(),
        );
        registry.register("step_rows_last", "Decode rows of the last step", self.step_rows_last.clone());
        registry.register("step_rows_max", "Most decode rows of any step", self.step_rows_max.clone());
        registry.register(
            "step_prefill_rows",
            "Prompt tokens of a step that has some",
            self.step_prefill_rows.clone(),
        );
        registry.register_with_unit(
            "step_duration",
            "Time of a step in the engine",
            Unit::Seconds,
            self.step_seconds.clone(),
        );
        registry.register_with_unit(
            "time_to_first_token",
            "From the request to the first token",
            Unit::Seconds,
            self.first_token_seconds.clone(),
        );
    }

    /// One step of the loop.
    pub fn step(&self, decode_rows: usize, prefill_rows: usize, time: Duration) {
        self.steps.inc();
        self.step_seconds.observe(time.as_secs_f64());
        if prefill_rows > 0 {
            self.step_prefill_rows.observe(prefill_rows as f64);
        }
        if decode_rows > 0 {
            self.step_rows.observe(decode_rows as f64);
            self.step_rows_last.set(decode_rows as i64);
            let max = self.step_rows_max.get().max(decode_rows as i64);
            self.step_rows_max.set(max);
        }
    }

    /// One run ended.
    pub fn run_ended(&self, generation: &Generation, finish: &Finish) {
        let outcome = match finish {
            Finish::Stopped(StopReason::Eos) => "eos",
            Finish::Stopped(StopReason::Stop) => "stop",
            Finish::Stopped(StopReason::MaxTokens) => "max_tokens",
            Finish::Stopped(StopReason::ToolCall) => "tool_call",
            Finish::Stopped(StopReason::Cancelled) => "cancelled",
            Finish::Failed(_) => "failed",
        };
        self.runs.get_or_create(&Outcome { outcome }).inc();
        if let Some(time) = generation.time_to_first_token() {
            self.first_token_seconds.observe(time.as_secs_f64());
        }
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// Never in practice; formatting into a string cannot fail.
    pub fn encode(&self, now: &Snapshot) -> Result<String, std::fmt::Error> {
        self.slots.set(i64::from(now.slots));
        self.slots_busy.set(i64::from(now.slots_busy));
        self.ready.set(i64::from(now.ready));
        self.load_progress.set(f64::from(now.load_progress));
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What is read off at the moment of a scrape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Snapshot {
    /// Runs that fit at once.
    pub slots: u32,
    /// Slots with a run.
    pub slots_busy: u32,
    /// Whether runs are taken.
    pub ready: bool,
    /// Share of the model read.
    pub load_progress: f32,
}
