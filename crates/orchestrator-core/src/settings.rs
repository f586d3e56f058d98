//! Every number the brain goes by, with its default and unit.

use std::collections::{BTreeMap, BTreeSet};

use api_types::{PoolId, WorkerId};
use serde::{Deserialize, Serialize};

use crate::policy::{Hour, Label, Labels};
use crate::quota::Quotas;
use crate::time::Time;

/// What the operator may tune. [`Settings::default`] is what the documentation promises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Jobs that may wait; `None` is without bound. Default 1,000.
    pub queue_capacity: Option<u64>,
    /// What a full queue does with the next job. Default `Reject`.
    pub full_policy: FullPolicy,
    /// Milliseconds one attempt may run, from its dispatch. Default 300,000 (5 min).
    pub job_time_limit_ms: u64,
    /// Shares and bounds of tenants. Default: equal shares, no bounds.
    pub quotas: Quotas,
    /// How long sessions last and what they may use.
    pub sessions: SessionSettings,
    /// How jobs are tried again.
    pub retry: RetrySettings,
    /// When a silent worker is given up.
    pub lease: LeaseSettings,
    /// How workers are made and taken away.
    pub supply: SupplySettings,
    /// Milliseconds without a reader after which an `on_disconnect: cancel` job ends. Default 10,000.
    pub disconnect_grace_ms: u64,
    /// Milliseconds after which a cancellation is final for the client, whatever the worker does.
    /// Default 5,000.
    pub cancel_final_ms: u64,
    /// Milliseconds after which a waiting batch job is aged. Default 300,000 (5 min).
    pub batch_ageing_ms: u64,
    /// Of this many placements at most one goes to an aged batch job while interactive jobs wait.
    /// Default 4.
    pub aged_share: u32,
    /// Protocol errors after which a worker gets no new job for a while; each further one renews
    /// that. Default 3.
    pub protocol_errors_allowed: u32,
    /// Milliseconds for which such a worker gets no new job, unless it starts anew. Default 300,000
    /// (5 min).
    pub quarantine_ms: u64,
    /// Milliseconds for which the end of a job is remembered for late questions. Default 600,000
    /// (10 min).
    pub ended_kept_ms: u64,
    /// Milliseconds for which an idempotency key counts after its job ended. Default 86,400,000
    /// (1 day).
    pub idempotency_kept_ms: u64,
    /// Ended jobs held in memory, oldest forgotten first. Default 10,000.
    pub ended_capacity: usize,
    /// Idempotency keys of ended jobs held in memory, oldest forgotten first. Default 100,000.
    pub idempotency_capacity: usize,
    /// Minutes by which the operator's clocks are ahead of UTC, for the hour that policies see.
    /// Default 0.
    #[serde(default)]
    pub utc_offset_minutes: i32,
    /// What the operator says of pools and workers, for policies. Default nothing.
    #[serde(default)]
    pub labels: LabelBook,
}

impl Settings {
    /// The hour that policies see at `now`.
    pub fn hour(&self, now: Time) -> Hour {
        Hour::at(now, self.utc_offset_minutes)
    }
}

/// What the operator says of pools and workers, by their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelBook {
    /// Of pools: of every worker they started.
    pub pools: BTreeMap<PoolId, BTreeMap<String, Label>>,
    /// Of single workers.
    pub workers: BTreeMap<WorkerId, BTreeMap<String, Label>>,
}

impl LabelBook {
    /// The labels of a worker.
    pub fn of(&self, worker_id: &WorkerId, pool_id: Option<&PoolId>) -> Labels<'_> {
        Labels {
            worker: self.workers.get(worker_id),
            pool: pool_id.and_then(|pool_id| self.pools.get(pool_id)),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_capacity: Some(1_000),
            full_policy: FullPolicy::Reject,
            job_time_limit_ms: 300_000,
            quotas: Quotas::default(),
            sessions: SessionSettings::default(),
            retry: RetrySettings::default(),
            lease: LeaseSettings::default(),
            supply: SupplySettings::default(),
            disconnect_grace_ms: 10_000,
            cancel_final_ms: 5_000,
            batch_ageing_ms: 300_000,
            aged_share: 4,
            protocol_errors_allowed: 3,
            quarantine_ms: 300_000,
            ended_kept_ms: 600_000,
            idempotency_kept_ms: 86_400_000,
            ended_capacity: 10_000,
            idempotency_capacity: 100_000,
            utc_offset_minutes: 0,
            labels: LabelBook::default(),
        }
    }
}

/// What a full queue does with one more job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FullPolicy {
    /// It is refused with `QUEUE_FULL`.
    #[default]
    Reject,
    /// The oldest waiting batch job ends with `QUEUE_FULL` in its place; without one, as `Reject`.
    DropOldestBatch,
}

/// How long sessions last and what they may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSettings {
    /// Milliseconds of disuse after which a session is forgotten. Default 600,000 (10 min).
    pub ttl_ms: u64,
    /// Tokens of prompts and answers that a session may take; `None` is without bound. Default none.
    pub token_budget: Option<u64>,
    /// Sessions without open jobs that are remembered, least recently used forgotten first. Default
    /// 10,000.
    pub capacity: usize,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self { ttl_ms: 600_000, token_budget: None, capacity: 10_000 }
    }
}

/// How jobs are tried again after a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetrySettings {
    /// Attempts in all. Default 5.
    pub attempts: u32,
    /// Milliseconds before the second attempt; doubles with each further one. Default 1,000.
    pub backoff_first_ms: u64,
    /// The longest pause, in milliseconds. Default 60,000.
    pub backoff_max_ms: u64,
    /// Workers a job may lose before it is failed as poison. Default 2.
    pub poison_after: usize,
    /// Retries of all jobs together that may happen at once; one a second comes back. Default 100.
    pub budget: u64,
    /// Retries that come back for each hundred admitted jobs. Default 20.
    pub budget_percent: u64,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            attempts: 5,
            backoff_first_ms: 1_000,
            backoff_max_ms: 60_000,
            poison_after: 2,
            budget: 100,
            budget_percent: 20,
        }
    }
}

/// When a silent worker is given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSettings {
    /// Milliseconds of silence after which a worker gets no new job. Default 6,000.
    pub suspect_ms: u64,
    /// Milliseconds of silence after which its jobs go on elsewhere or fail. Default 10,000.
    pub lost_ms: u64,
    /// Milliseconds without mass rescheduling after more than half of the workers fell silent at
    /// one time. Default 30,000.
    pub brake_ms: u64,
    /// Milliseconds for which a lost or failed worker stays in the registry. Default 60,000.
    pub gone_kept_ms: u64,
    /// A wake-up this many milliseconds late means that the orchestrator itself stood still, so
    /// silence proves nothing. Default 3,000.
    pub stall_ms: u64,
    /// Milliseconds after a dispatch in which a worker need not list the run yet. Default 5,000.
    pub run_listed_ms: u64,
    /// Milliseconds before a broken stream is taken up again for the first time; doubles up to
    /// `resume_max_ms`. Default 100.
    pub resume_first_ms: u64,
    /// The longest pause between two tries to take a stream up again, in milliseconds. Default
    /// 2,000.
    pub resume_max_ms: u64,
    /// Breaks of one run's stream in short succession after which the run is given up although its
    /// worker's lease is good. Default 12.
    pub resume_tries: u32,
    /// Milliseconds for which a worker that refused a run as busy is not asked again. Default 250.
    pub busy_pause_ms: u64,
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self {
            suspect_ms: api_types::worker::SUSPECT_MS,
            lost_ms: api_types::worker::LOST_MS,
            brake_ms: 30_000,
            gone_kept_ms: 60_000,
            stall_ms: 3_000,
            run_listed_ms: 5_000,
            resume_first_ms: 100,
            resume_max_ms: 2_000,
            resume_tries: 12,
            busy_pause_ms: 250,
        }
    }
}

/// How workers are made when jobs wait for a model that none serves, and when they are taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupplySettings {
    /// Whether pools are asked for workers at all. Default true.
    pub on_demand: bool,
    /// Milliseconds without a job after which an evictable worker is unloaded; 0 at once, `None`
    /// never. Default 300,000 (5 min).
    pub keep_alive_ms: Option<u64>,
    /// The same for single models, by name.
    pub keep_alive_of: BTreeMap<String, Option<u64>>,
    /// Models whose workers are never unloaded, however they were started.
    pub pinned: BTreeSet<String>,
    /// Milliseconds for which a worker serves the jobs of its model at least, from when it is ready,
    /// before it gives way to a model that waits. Default 10,000.
    pub min_residency_ms: u64,
    /// Milliseconds that a model waits at most before busy workers take no new job for its sake; at
    /// least `min_residency_ms`. Default 30,000.
    pub swap_patience_ms: u64,
    /// Failed spawns of a model in one pool after which jobs do not wait for it any more. Default 3.
    pub spawn_tries: u32,
    /// Milliseconds until a failed spawn is tried again; doubles up to `backoff_max_ms`. Default 2,000.
    pub backoff_first_ms: u64,
    /// The longest such pause, in milliseconds. Default 60,000.
    pub backoff_max_ms: u64,
    /// Milliseconds in which a pool has to answer a spawn, that is to have the worker ready or to say
    /// that it cannot; then the spawn is called off. Default 600,000 (10 min).
    pub spawn_timeout_ms: u64,
    /// Milliseconds in which a pool has to answer a stop; then it is asked again. Default 120,000 (2 min).
    pub stop_timeout_ms: u64,
}

impl Default for SupplySettings {
    fn default() -> Self {
        Self {
            on_demand: true,
            keep_alive_ms: Some(300_000),
            keep_alive_of: BTreeMap::new(),
            pinned: BTreeSet::new(),
            min_residency_ms: 10_000,
            swap_patience_ms: 30_000,
            spawn_tries: 3,
            backoff_first_ms: 2_000,
            backoff_max_ms: 60_000,
            spawn_timeout_ms: 600_000,
            stop_timeout_ms: 120_000,
        }
    }
}
