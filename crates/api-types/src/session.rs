//! A session as a client sees it.

use serde::{Deserialize, Serialize};

use crate::id::{SessionId, WorkerId};

/// Where a session stands. Tokens are those of prompts and answers together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionView {
    /// Its id, as its client named it.
    pub session_id: SessionId,
    /// Tokens that its ended jobs took.
    pub tokens_used: u64,
    /// Tokens that its open jobs may take at most.
    pub tokens_reserved: u64,
    /// Tokens that it may take in all; absent when there is no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_budget: Option<u64>,
    /// What is left of the budget for new jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_remaining: Option<u64>,
    /// Jobs that were completed.
    pub turns: u64,
    /// Jobs that have not ended.
    pub jobs_open: u64,
    /// The worker that last generated for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// When it was first named; RFC 3339.
    pub created_at: String,
    /// When a job of it was last submitted or ended; RFC 3339.
    pub last_used_at: String,
    /// Milliseconds of disuse after which it is forgotten; counted once no job is open.
    pub expires_in_ms: u64,
}
