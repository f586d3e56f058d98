//! Tasks as a client sees them: the request, its status, its list, its explanation.

use serde::{Deserialize, Serialize};

use crate::error::ErrorDetail;
use crate::event::{Eta, RunEnd};
use crate::id::{CorrelationId, JobId, PoolId, SessionId, WorkerId};
use crate::sampling::request_with_sampling;
use crate::why::{Counterfactual, RuledOut, ScoreTerms};

request_with_sampling! {
    /// What a client asks for. Unknown fields are refused by name.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
    pub struct TaskRequest {
        /// The model; may be left out when exactly one can be served.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub model: Option<String>,
        /// Text that goes to the model as it is. Give this or `messages`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub prompt: Option<String>,
        /// A conversation that goes through the model's chat template. Give this or `prompt`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub messages: Option<Vec<ChatMessage>>,
        /// Which class of the queue; interactive jobs go first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub priority: Option<Priority>,
        /// Milliseconds from submission after which the answer is worthless.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub deadline_ms: Option<u64>,
        /// Ties jobs together: they share a budget and, where it helps, a worker. Naming it makes it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub session_id: Option<SessionId>,
        /// The same key with the same request gives the same job; also a header.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub idempotency_key: Option<String>,
        /// What happens when the last reader leaves.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub on_disconnect: Option<OnDisconnect>,
        /// What happens when the worker is lost.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub retry: Option<RetryMode>,
        /// Where the job may run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub placement: Option<Placement>,
        /// Whether the job survives the orchestrator's crash.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub durability: Option<Durability>,
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

/// The classes of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// It may wait; it is aged so that it never waits forever.
    Batch,
}

/// What happens to a job whose last reader has been gone for 10 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OnDisconnect {
    /// It is cancelled; the default for interactive jobs.
    Cancel,
    /// It goes on; the default for batch jobs.
    Continue,
}

/// What happens to a job whose worker is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RetryMode {
    /// It fails.
    Never,
    /// Another attempt is made while no token has been sent.
    #[default]
    BeforeFirstToken,
    /// Another attempt is made at any time; it goes on after the last token that was sent, and a
    /// `seam` event says so.
    Continue,
}

/// Whether a job is on disk before it is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Durability {
    /// It is, and survives any crash.
    #[default]
    Durable,
    /// It is lost with the orchestrator; the answer says so.
    Memory,
}

/// Where a job may run. A pool that nobody added is refused; for a worker that is not there the job waits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Placement {
    /// Only on this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolId>,
    /// Only on this worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// Only on workers with all of these capabilities (`cuda`, `metal`, `chat`, ...); at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<String>,
    /// Rather on these workers or pools; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<String>,
    /// Not on these workers or pools; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<String>,
}

/// Where a job stands. A terminal state never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TaskStatus {
    /// Waiting for a slot.
    Queued,
    /// Handed to a worker; no token has been sent on.
    Dispatched,
    /// Tokens may have been sent on.
    Running,
    /// Ended by itself.
    Completed,
    /// Ended by a failure.
    Failed,
    /// Ended by request.
    Cancelled,
}

impl TaskStatus {
    /// Whether the job has ended.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Dispatched => "dispatched",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Answer to a submission: the job is on disk and will end exactly once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskAccepted {
    /// The job.
    pub job_id: JobId,
    /// Where it stands.
    pub status: TaskStatus,
    /// Jobs that go before it.
    pub queue_position: u64,
    /// When it may end, absent when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<Eta>,
    /// Path of its event stream.
    pub events_url: String,
    /// Ties the answer to log lines.
    pub correlation_id: CorrelationId,
    /// What was promised about crashes.
    pub durability: Durability,
    /// What may keep the job from ever running, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A job as `GET /v2/tasks/{id}` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskView {
    /// The job.
    pub job_id: JobId,
    /// Where it stands.
    pub status: TaskStatus,
    /// The model it asked for.
    pub model: String,
    /// Its class.
    pub priority: Priority,
    /// The current or last try; 0 before the first.
    pub attempt: u32,
    /// The worker of that try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<WorkerId>,
    /// Jobs that go before it, while queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u64>,
    /// When it may end, absent when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<Eta>,
    /// RFC 3339, UTC.
    pub submitted_at: String,
    /// When the current or last try was handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatched_at: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// Path of its event stream.
    pub events_url: String,
    /// Ties it to log lines.
    pub correlation_id: CorrelationId,
    /// The prompt, once ended, where the orchestrator keeps prompts (`keep_prompts`); not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The turns of the conversation, as `prompt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<ChatMessage>>,
    /// The completion, once ended and while kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// The figures, once completed or cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<RunEnd>,
    /// What went wrong, once failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
}

/// A page of jobs, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskList {
    /// The jobs.
    pub tasks: Vec<TaskView>,
    /// Hand back as `cursor` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Answer to a cancellation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CancelAccepted {
    /// The job.
    pub job_id: JobId,
    /// Where it stands now.
    pub status: TaskStatus,
}

/// What was erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Erased {
    /// Ended jobs that are gone now.
    pub erased: u64,
}

/// Why a job went where it went, or why it waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhyView {
    /// The job.
    pub job_id: JobId,
    /// Where it stands.
    pub status: TaskStatus,
    /// One sentence that answers the question.
    pub summary: String,
    /// The placements made so far, oldest first.
    pub decisions: Vec<Decision>,
    /// What a placement would look like now, while the job waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Decision>,
    /// When it was expected to end, and when it did; absent when nothing was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<EstimateView>,
}

/// When a job was expected to end, as of its submission, and when it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EstimateView {
    /// What was told, in milliseconds from the submission.
    pub eta_ms: Eta,
    /// Of the expectation behind it: time until it would be handed out.
    pub wait_ms: u64,
    /// Of the expectation behind it: time from there to its end.
    pub service_ms: u64,
    /// What the service was known from: `exact` (this model on such a device), `model` (this model
    /// elsewhere) or `backend` (other models on such a device).
    pub basis: String,
    /// From submission to end, once ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual_ms: Option<u64>,
}

/// One placement: everybody who was looked at, and who was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Decision {
    /// The try that this placement began; 0 for one that was not made.
    pub attempt: u32,
    /// RFC 3339, UTC.
    pub at: String,
    /// Who scored, and by which rule.
    pub policy: String,
    /// Jobs that were queued at that moment.
    pub queue_depth: u64,
    /// Time since the job was queued.
    pub waited_ms: u64,
    /// The best of those who were looked at, best first; then a few who could not run the job.
    pub candidates: Vec<Candidate>,
    /// Who was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picked: Option<WorkerId>,
    /// The nearest change that would have led to another choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counterfactual: Option<Counterfactual>,
    /// Names in the job's `placement` that mean no known worker or pool; the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_names: Vec<String>,
}

/// One worker in a placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Candidate {
    /// The worker.
    pub worker_id: WorkerId,
    /// Whether it could run the job.
    pub feasible: bool,
    /// What ruled it out, in words; absent when feasible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ruled_out: Option<String>,
    /// The same as a code with its numbers; the first of all that rule it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<RuledOut>,
    /// How good it looked; absent when infeasible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// What the score is made of; absent when infeasible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<ScoreTerms>,
    /// Bytes of the prompt that it holds in its KV cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_bytes_held: Option<u64>,
    /// Free slots at that moment.
    pub slots_free: u32,
    /// All its slots.
    pub slots: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error =
            serde_json::from_str::<TaskRequest>(r#"{"prompt":"x","temprature":1}"#).expect_err("unknown");
        assert!(error.to_string().contains("temprature"), "{error}");
    }

    #[test]
    fn a_request_reads_and_writes_its_sampling() {
        let request: TaskRequest =
            serde_json::from_str(r#"{"prompt":"x","temperature":0,"stop":["a"],"logit_bias":{"5":-1.5}}"#)
                .expect("well formed");
        let sampling = request.sampling();
        assert_eq!((sampling.temperature, sampling.top_p), (0.0, 1.0));
        assert_eq!(sampling.logit_bias, [(5, -1.5)].into());
        assert_eq!(TaskRequest::default().with_sampling(&sampling).sampling(), sampling);
    }
}
