//! How a daemon feels.

use serde::{Deserialize, Serialize};

/// One word for a daemon's condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HealthStatus {
    /// All is well.
    Healthy,
    /// It starts and does not take work yet.
    Loading,
    /// It stops and takes no new work.
    Draining,
    /// It works, with something missing or broken.
    Degraded,
}

/// `GET /health` of the orchestrator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OrchestratorHealth {
    /// Its condition.
    pub status: HealthStatus,
    /// How many pools are registered.
    pub pools: u64,
    /// How many workers are registered and not lost.
    pub workers: u64,
    /// How many jobs wait.
    pub queue_depth: u64,
    /// Version of rbees.
    pub version: String,
}
