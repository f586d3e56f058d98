//! Recorded traffic decided again: `POST /v2/policy/replay`.

use serde::{Deserialize, Serialize};

use crate::id::{JobId, WorkerId};

/// What to replay and under which policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReplayRequest {
    /// A policy script; absent replays what was decided, to show that it can be had again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What to call the policy in the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How far back to go, in milliseconds; everything that is kept when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
}

/// What a replay found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReplayReport {
    /// When the record begins, RFC 3339 in UTC. It begins with a snapshot, at or before the time
    /// asked for.
    pub from: String,
    /// Inputs of the brain that were handled again.
    pub inputs: u64,
    /// Placements that were made again under the policies that were in force.
    pub placements: u64,
    /// Whether these were the recorded ones, every one of them.
    pub identical: bool,
    /// Since when they differ, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differs_at: Option<String>,
    /// The same jobs under the policy that was asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what_if: Option<WhatIfReport>,
}

/// The recorded jobs under another policy. Runs take as long as they took, and longer than they were
/// seen to where they were cut off; failures of runs are not repeated; workers come and go as they did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhatIfReport {
    /// The policy.
    pub policy: String,
    /// Jobs that would have run on another worker.
    pub moved: u64,
    /// Times a hook of the policy failed; the policy behind it answered then.
    pub policy_failures: u64,
    /// Jobs without an end on record, because they still waited or ran or were lost: they are in none
    /// of these figures.
    pub left_out: u64,
    /// All jobs, then each class, then each tenant.
    pub groups: Vec<WaitsOfGroup>,
    /// The jobs whose waits differ most, worst first.
    pub jobs: Vec<WaitOfJob>,
}

/// Waits of one group of jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WaitsOfGroup {
    /// `all`, `interactive`, `batch`, or `tenant NAME`.
    pub group: String,
    /// As it was.
    pub before: Waits,
    /// As it would have been.
    pub after: Waits,
}

/// From submission to the first dispatch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Waits {
    /// Jobs that were let in.
    pub jobs: u64,
    /// Jobs that were refused.
    pub refused: u64,
    /// Of those that were let in, jobs that completed.
    pub completed: u64,
    /// Median wait in milliseconds; absent when none was handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<u64>,
    /// Nine in ten waited less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90_ms: Option<u64>,
    /// All but one in a hundred waited less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<u64>,
    /// The longest wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ms: Option<u64>,
}

/// One job in both worlds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WaitOfJob {
    /// The job.
    pub job_id: JobId,
    /// Its wait; absent when it was refused or ended before it was handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_ms: Option<u64>,
    /// Its wait under the other policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
    /// Whether it was refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused_before: bool,
    /// Whether the other policy would have refused it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused_after: bool,
    /// Where it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_before: Option<WorkerId>,
    /// Where it would have run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_after: Option<WorkerId>,
}
