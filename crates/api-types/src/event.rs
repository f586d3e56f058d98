//! What a reader of a job's stream sees.

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::id::{Attempt, JobId, WorkerId};

/// One event of a job's stream. `type` in the JSON repeats the `event:` line of the frame.
///
/// Numbered events have an `id:` that counts from 0 without a gap; reading them again from the
/// start always gives the same events. What only a live reader cares about (later queue positions,
/// progress before the first token) is sent without an id and not kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TaskEvent {
    /// The job waits. Numbered once, with id 0; repeats are live only.
    Queued {
        /// The job.
        job_id: JobId,
        /// Jobs that go before it.
        queue_position: u64,
        /// When it may end, absent when unknown.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eta_ms: Option<Eta>,
    },
    /// A worker generates.
    Started {
        /// The job, as the caller of `/execute` named it.
        job_id: String,
        /// The model that answers.
        model: String,
        /// The worker that runs it.
        worker_id: WorkerId,
        /// Which try this is.
        attempt: Attempt,
        /// RFC 3339, UTC.
        started_at: String,
    },
    /// One token. `t` is whole UTF-8 and may be empty inside a multi-token character.
    Token {
        /// Its text.
        t: String,
        /// Its index in the completion, from 0; never repeated or skipped.
        i: u32,
        /// Its id in the model's vocabulary. Only in runs that were asked for it with
        /// `token_ids`, which are those of jobs with `retry: continue`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        k: Option<u32>,
    },
    /// How it goes.
    Metrics(RunMetrics),
    /// The job went on on another worker. Stands where that began, or, when the orchestrator was
    /// lost as well, behind the last token that any reader can have had from the old one.
    Seam {
        /// Who ran it before.
        from_worker: WorkerId,
        /// Who runs it now.
        to_worker: WorkerId,
        /// The first token of the new worker.
        i: u32,
        /// Whether the new worker went every step of the old one on the same build, so that the
        /// tokens are those the old one would have given. Where it is false, later text may
        /// differ from what an undisturbed run would have said.
        exact: bool,
    },
    /// The job completed or was cancelled; the last event.
    End(RunEnd),
    /// The job failed; the last event.
    Error {
        /// The stable word for programs.
        code: ErrorCode,
        /// For people.
        message: String,
        /// Whether the same request may succeed later.
        retriable: bool,
        /// Counts and names behind the message.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        details: Option<serde_json::Value>,
    },
}

impl TaskEvent {
    /// The name on the frame's `event:` line.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Started { .. } => "started",
            Self::Token { .. } => "token",
            Self::Metrics(_) => "metrics",
            Self::Seam { .. } => "seam",
            Self::End(_) => "end",
            Self::Error { .. } => "error",
        }
    }

    /// Whether nothing follows this event.
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::End(_) | Self::Error { .. })
    }
}

/// A range of estimates, in milliseconds from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Eta {
    /// Half of such jobs end before this.
    pub p50: u64,
    /// Nine in ten end before this.
    pub p90: u64,
}

/// Progress of a running generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunMetrics {
    /// Prompt tokens processed so far, before the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_done: Option<u32>,
    /// Prompt tokens in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u32>,
    /// Tokens generated so far.
    pub tokens_out: u32,
    /// Decode rate since the first token; 0 before it.
    pub tokens_per_second: f32,
}

/// The figures of a completed or cancelled generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunEnd {
    /// Prompt tokens, template included. Estimated from its bytes where a job was cancelled and its
    /// worker gave no figures.
    pub tokens_in: u32,
    /// Tokens generated.
    pub tokens_out: u32,
    /// From submission to dispatch. Filled in by the orchestrator; 0 from a worker.
    pub queue_time_ms: u64,
    /// From `/execute` to the first token.
    pub prefill_time_ms: u64,
    /// From the first token to the last.
    pub decode_time_ms: u64,
    /// Why it stopped.
    pub stop_reason: StopReason,
    /// The seed that was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Prompt tokens whose KV cache was still there, so that they were not processed again; absent
    /// from a worker that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_cached: Option<u32>,
}

/// Why a generation stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum StopReason {
    /// The model ended its answer.
    #[serde(rename = "EOS")]
    Eos,
    /// A stop string appeared.
    Stop,
    /// `max_tokens` or the context was used up.
    MaxTokens,
    /// The model calls a tool.
    ToolCall,
    /// Somebody cancelled the job.
    Cancelled,
}
