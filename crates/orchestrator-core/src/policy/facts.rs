//! What a policy may know. Read-only, and nothing that names a worker or a job.

use std::collections::BTreeMap;

use api_types::task::Priority;
use serde::{Deserialize, Serialize};

use crate::time::Time;

/// What a policy may know of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFacts<'a> {
    /// Who it is done for.
    pub tenant: &'a str,
    /// The session it belongs to, if any.
    pub session: Option<&'a str>,
    /// The model, resolved to an id.
    pub model: &'a str,
    /// Its class.
    pub priority: Priority,
    /// Bytes of prompt or messages.
    pub prompt_bytes: u64,
    /// Tokens it may generate at most; `None` is as many as the context leaves.
    pub max_tokens: Option<u32>,
    /// Milliseconds since it was submitted.
    pub waited_ms: u64,
    /// Milliseconds until its answer is worthless, if that was given; 0 once passed.
    pub deadline_in_ms: Option<u64>,
    /// Attempts that failed so far.
    pub tries_failed: u32,
    /// When the question is asked.
    pub hour: Hour,
}

/// What a policy may know of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueFacts {
    /// Jobs that wait.
    pub waiting: u64,
    /// Jobs of the same model that go before the new one.
    pub before: u64,
    /// Jobs that the queue holds; `None` is without bound.
    pub capacity: Option<u64>,
    /// Jobs of the same model that wait; those that are held or rest after a failure not included.
    pub model_waiting: u64,
    /// Workers that could take jobs of this model now or after their running ones.
    pub workers: u64,
    /// Jobs of the same tenant that wait, of whatever model.
    pub tenant_waiting: u64,
    /// Jobs of the same tenant that workers hold.
    pub tenant_running: u64,
}

/// What a policy may know of a worker that could run the job, or that could be evicted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WorkerLoad<'a> {
    /// The model it runs.
    pub model: &'a str,
    /// As in the model's file, for example `Q4_1`.
    pub quantization: Option<&'a str>,
    /// `cpu`, `cuda`, `metal`, `vulkan` or `fake`.
    pub backend: &'a str,
    /// What its engine offloaded to, by the engine's names.
    pub devices: &'a [String],
    /// The pool that started it.
    pub pool: Option<&'a str>,
    /// All its slots; at least 1.
    pub slots: u32,
    /// Slots that no run holds; at least 1 when a job is to be placed.
    pub slots_free: u32,
    /// Tokens of context per job.
    pub context_length: u32,
    /// Free memory of its device, in bytes; 0 when unknown.
    pub free_memory_bytes: u64,
    /// Memory that its model and caches take, in bytes.
    pub memory_bytes: u64,
    /// Share of the job's prompt whose KV cache it holds, from 0 to 1; 0 when evicting.
    pub prefix_share: f64,
    /// Whether it ran the last job of this job's session.
    pub session_here: bool,
    /// Milliseconds since it last had a job; 0 while it has one.
    pub idle_ms: u64,
    /// What the operator says of it.
    pub labels: Labels<'a>,
    /// When the question is asked.
    pub hour: Hour,
}

/// What a policy may know of a failed attempt that could be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureFacts<'a> {
    /// The error's code, for example `WORKER_LOST`.
    pub code: &'a str,
    /// Workers that were lost while they ran the job.
    pub workers_lost: u64,
    /// Attempts the job may have in all.
    pub attempts: u32,
}

/// The time of day and the day where the operator lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hour {
    /// 0 to 23.
    pub of_day: u8,
    /// Minutes of the hour that have passed, 0 to 59.
    pub minute: u8,
    /// 0 is Monday, 6 is Sunday.
    pub weekday: u8,
}

impl Hour {
    /// The hour at `now` where clocks are `offset_minutes` ahead of UTC.
    pub fn at(now: Time, offset_minutes: i32) -> Self {
        let minutes = i64::try_from(now.0 / 60_000)
            .unwrap_or(i64::MAX)
            .saturating_add(i64::from(offset_minutes))
            .max(0);
        let hours = minutes / 60;
        let small = |number: i64| u8::try_from(number).unwrap_or(0);
        // 1970-01-01 was a Thursday.
        Self { of_day: small(hours % 24), minute: small(minutes % 60), weekday: small((hours / 24 + 3) % 7) }
    }
}

/// One thing an operator says of a pool or a worker, for example `watts = 65`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Label {
    /// Yes or no.
    Flag(bool),
    /// A whole number.
    Integer(i64),
    /// A decimal number; finite.
    Decimal(f64),
    /// A text.
    Text(String),
}

/// Decimals are finite, so equality is total.
impl Eq for Label {}

/// What an operator says of one worker: its own labels, and those of its pool beneath them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Labels<'a> {
    /// Of the worker.
    pub worker: Option<&'a BTreeMap<String, Label>>,
    /// Of its pool.
    pub pool: Option<&'a BTreeMap<String, Label>>,
}

impl<'a> Labels<'a> {
    /// A label by name; the worker's own goes before its pool's.
    pub fn get(&self, name: &str) -> Option<&'a Label> {
        let own = self.worker.and_then(|labels| labels.get(name));
        own.or_else(|| self.pool.and_then(|labels| labels.get(name)))
    }

    /// Every label with its value, by name; the worker's own cover its pool's.
    pub fn all(&self) -> BTreeMap<&'a str, &'a Label> {
        let mut all = BTreeMap::new();
        for labels in [self.pool, self.worker].into_iter().flatten() {
            all.extend(labels.iter().map(|(name, label)| (name.as_str(), label)));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hour_follows_the_offset_over_midnight_and_weeks() {
        // 2026-11-21 was a Saturday.
        let now = Time(1_795_219_200_000);
        assert_eq!(now.rfc3339(), "2026-11-21T00:00:00.000Z");
        let at = |of_day, minute, weekday| Hour { of_day, minute, weekday };
        assert_eq!(Hour::at(now, 0), at(0, 0, 5));
        assert_eq!(Hour::at(now, -60), at(23, 0, 4));
        assert_eq!(Hour::at(now, 330), at(5, 30, 5));
        assert_eq!(Hour::at(now + 59_999, -1), at(23, 59, 4));
        assert_eq!(Hour::at(Time(0), -60), at(0, 0, 3));
    }

    #[test]
    fn a_workers_own_label_covers_its_pools() {
        let own = BTreeMap::from([("watts".to_owned(), Label::Integer(40))]);
        let pools = BTreeMap::from([
            ("watts".to_owned(), Label::Integer(65)),
            ("room".to_owned(), Label::Text("attic".to_owned())),
        ]);
        let labels = Labels { worker: Some(&own), pool: Some(&pools) };
        assert_eq!(labels.get("watts"), Some(&Label::Integer(40)));
        assert_eq!(labels.get("room"), Some(&Label::Text("attic".to_owned())));
        assert_eq!(labels.get("noise"), None);
        assert_eq!(labels.all().len(), 2);
    }
}
