//! The one error shape of every API, and the one table from a code to its HTTP status.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::CorrelationId;
use crate::sampling::FieldProblem;

/// Defines [`ErrorCode`] and its table in one place: wire name, HTTP status, whether trying again
/// can help, and the meaning.
macro_rules! error_codes {
    ($($variant:ident $wire:literal $status:literal $retriable:literal $meaning:literal;)*) => {
        /// What went wrong, as a word that never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum ErrorCode {
            $(#[doc = $meaning] #[serde(rename = $wire)] $variant,)*
        }

        impl ErrorCode {
            /// Every code, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code as it stands on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $wire,)* }
            }

            /// The HTTP status this code is answered with.
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// Whether the same request may succeed later.
            pub const fn retriable(self) -> bool {
                match self { $(Self::$variant => $retriable,)* }
            }

            /// The meaning, for documentation.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

error_codes! {
    InvalidJson "INVALID_JSON" 400 false "The body is not JSON, or not one object.";
    InvalidField "INVALID_FIELD" 422 false "A field is unknown, of the wrong type or out of range.";
    InvalidHeader "INVALID_HEADER" 400 false "A header has a form that is not accepted.";
    InvalidModelRef "INVALID_MODEL_REF" 422 false "A model reference has a form that is not accepted.";
    InvalidHost "INVALID_HOST" 422 false "A host name has a form that is not accepted.";
    BodyTooLarge "BODY_TOO_LARGE" 413 false "The body is larger than this server takes.";
    ClientCut "CLIENT_CUT" 408 true "The client took nothing of a stream for too long, so the stream ends; the job does not.";
    RequestTimeout "REQUEST_TIMEOUT" 408 true "The request did not arrive in time.";
    HostNotAllowed "HOST_NOT_ALLOWED" 421 false "The Host header names no address of this server.";
    OriginNotAllowed "ORIGIN_NOT_ALLOWED" 403 false "A web page of another site may not call this server.";
    Unauthenticated "UNAUTHENTICATED" 401 false "A credential is missing or wrong.";
    Forbidden "FORBIDDEN" 403 false "The credential does not allow this.";
    NotFound "NOT_FOUND" 404 false "There is no such thing, or no such route.";
    MethodNotAllowed "METHOD_NOT_ALLOWED" 405 false "The route exists, with another method.";
    JobNotFound "JOB_NOT_FOUND" 404 false "No job has this id.";
    SessionNotFound "SESSION_NOT_FOUND" 404 false "No session has this id, or it was not used for too long.";
    WorkerNotFound "WORKER_NOT_FOUND" 404 false "No worker has this id.";
    PoolNotFound "POOL_NOT_FOUND" 404 false "No pool has this id.";
    ModelNotFound "MODEL_NOT_FOUND" 404 false "No pool and no worker knows this model.";
    ModelNotReady "MODEL_NOT_READY" 409 true "The model is known but its files are not complete.";
    ModelAmbiguous "MODEL_AMBIGUOUS" 422 false "More than one model could be meant.";
    AmbiguousId "AMBIGUOUS_ID" 422 false "More than one id starts like this.";
    ContextOverflow "CONTEXT_OVERFLOW" 422 false "The prompt has more tokens than the context holds.";
    NoChatTemplate "NO_CHAT_TEMPLATE" 422 false "The model has no chat template, so messages cannot be turned into a prompt.";
    TemplateFailed "TEMPLATE_FAILED" 422 false "The model's chat template refused these messages or ran past its limits.";
    FormatFailed "FORMAT_FAILED" 422 false "The answer could not be kept to its response format.";
    IdempotencyConflict "IDEMPOTENCY_CONFLICT" 409 false "The idempotency key was used with another request.";
    EventsEvicted "EVENTS_EVICTED" 410 false "The events of this job are no longer kept.";
    QueueFull "QUEUE_FULL" 429 true "The queue holds as many jobs as it may.";
    QuotaExceeded "QUOTA_EXCEEDED" 429 true "The caller used up its share.";
    TooManyRequests "TOO_MANY_REQUESTS" 429 true "More requests at once than this server takes.";
    TooManyStreams "TOO_MANY_STREAMS" 503 true "More connections at once than this server may hold.";
    PolicyRefused "POLICY_REFUSED" 403 false "The operator's policy does not take this job.";
    PolicyNotFound "POLICY_NOT_FOUND" 404 false "There is no such policy: no shadow, or none before the live one.";
    ScriptError "SCRIPT_ERROR" 422 false "A policy script does not compile, broke a limit or gave a wrong answer.";
    DeadlineUnmet "DEADLINE_UNMET" 422 false "The job cannot end before its deadline.";
    DeadlineExceeded "DEADLINE_EXCEEDED" 504 false "The deadline passed before the job ended.";
    ExecutionTimeout "EXECUTION_TIMEOUT" 504 false "The job ran longer than a job may.";
    StreamStalled "STREAM_STALLED" 504 true "The worker sent nothing for too long.";
    NoCapacity "NO_CAPACITY" 503 true "Nothing can take this right now.";
    ShuttingDown "SHUTTING_DOWN" 503 true "This server is stopping.";
    WorkerLost "WORKER_LOST" 502 true "The worker died or became unreachable while the job ran.";
    WorkerProtocolError "WORKER_PROTOCOL_ERROR" 502 true "The worker broke the protocol.";
    WorkerUnreachable "WORKER_UNREACHABLE" 502 true "The worker could not be reached.";
    Poison "POISON" 500 false "The job ended two workers and is not tried again.";
    RetriesExhausted "RETRIES_EXHAUSTED" 503 true "Every attempt this job may have has failed.";
    AllSlotsBusy "ALL_SLOTS_BUSY" 503 true "Every slot of the worker is taken.";
    WorkerLoading "WORKER_LOADING" 503 true "The worker is still loading its model.";
    WorkerDraining "WORKER_DRAINING" 503 true "The worker takes no new work.";
    JobNotEnded "JOB_NOT_ENDED" 409 true "The job has not ended; only ended jobs can be erased.";
    JobConflict "JOB_CONFLICT" 409 false "This job and attempt ran with another request.";
    AttemptGone "ATTEMPT_GONE" 410 false "This attempt ended and its log is gone.";
    StaleAttempt "STALE_ATTEMPT" 409 false "A newer attempt of this job exists.";
    StaleIncarnation "STALE_INCARNATION" 409 false "The message is from or for another incarnation of the worker.";
    ModelLoadFailed "MODEL_LOAD_FAILED" 500 false "The engine could not load the model.";
    CorruptModel "CORRUPT_MODEL" 422 false "The model file is damaged; the offset and the reason are given.";
    UnsupportedModel "UNSUPPORTED_MODEL" 422 false "The model file is of a kind that this build does not run.";
    BackendNotBuilt "BACKEND_NOT_BUILT" 422 false "This worker binary was built without that backend.";
    DeviceNotFound "DEVICE_NOT_FOUND" 422 false "The machine has no such device.";
    InsufficientVram "INSUFFICIENT_VRAM" 507 false "The device has less free memory than the model needs.";
    InsufficientMemory "INSUFFICIENT_MEMORY" 507 false "The machine has less free memory than the model needs.";
    UnsupportedCpu "UNSUPPORTED_CPU" 500 false "The processor lacks instructions that this build needs.";
    EngineFailed "ENGINE_FAILED" 500 true "The engine reported a failure while it ran.";
    DownloadFailed "DOWNLOAD_FAILED" 502 true "The download did not complete; what arrived is kept.";
    ChecksumMismatch "CHECKSUM_MISMATCH" 502 false "The bytes that arrived are not the bytes that were asked for.";
    GatedModel "GATED_MODEL" 403 false "The repository needs a token that was not given or not accepted.";
    Offline "OFFLINE" 503 false "Downloads are switched off by HF_HUB_OFFLINE.";
    StorageFull "STORAGE_FULL" 507 true "The disk has no room for this.";
    StorageFailed "STORAGE_FAILED" 500 true "The database or a file could not be read or written.";
    PortTaken "PORT_TAKEN" 409 true "Another process listens on this port.";
    SpawnFailed "SPAWN_FAILED" 502 true "The worker process ended before it was ready.";
    SpawnTimeout "SPAWN_TIMEOUT" 504 true "The worker process was not ready in time.";
    OrchestratorUnreachable "ORCHESTRATOR_UNREACHABLE" 502 true "The orchestrator could not be reached.";
    SshFailed "SSH_FAILED" 502 true "The machine could not be reached over SSH.";
    HostKeyUnknown "HOST_KEY_UNKNOWN" 502 false "The machine's SSH host key is not known yet.";
    HostKeyChanged "HOST_KEY_CHANGED" 502 false "The machine's SSH host key is not the one that is known.";
    RemoteBinaryMissing "REMOTE_BINARY_MISSING" 502 false "rbees-pool was not found on the machine.";
    VersionSkew "VERSION_SKEW" 502 false "The other program speaks another version of the protocol.";
    InvalidConfig "INVALID_CONFIG" 422 false "The configuration cannot be used.";
    Cancelled "CANCELLED" 499 false "The request was cancelled.";
    Internal "INTERNAL" 500 true "A fault of rbees itself.";
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The body of every failed answer on `/v2` and between the daemons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// What went wrong; always an object, never a bare string.
    pub error: ErrorDetail,
}

/// What went wrong, what is allowed, and what to do next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[error("{code}: {message}")]
pub struct ErrorDetail {
    /// The stable word for programs.
    pub code: ErrorCode,
    /// What is wrong and what is allowed, for people. Never holds prompt or completion text.
    pub message: String,
    /// Path of the field that is wrong, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Counts and names behind the message; for `INVALID_FIELD` a `reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
    /// The next thing to do, a command where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether the same request may succeed later.
    pub retriable: bool,
    /// How long to wait before trying again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Ties this answer to the log lines about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<CorrelationId>,
}

impl ErrorDetail {
    /// An error of this code; whether it is retriable follows from the code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            field: None,
            details: None,
            hint: None,
            retriable: code.retriable(),
            retry_after_ms: None,
            correlation_id: None,
        }
    }

    /// Names the field that is wrong.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Adds counts and names for programs.
    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says how long to wait before trying again.
    #[must_use]
    pub fn with_retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// The whole body as it is sent.
    pub fn into_body(self) -> ErrorBody {
        ErrorBody { error: self }
    }
}

impl From<FieldProblem> for ErrorDetail {
    fn from(problem: FieldProblem) -> Self {
        Self::new(ErrorCode::InvalidField, problem.message)
            .with_field(problem.field)
            .with_details(serde_json::json!({ "reason": problem.reason }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_have_an_error_status() {
        let mut names: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorCode::ALL.len());
        assert!(ErrorCode::ALL.iter().all(|code| (400..600).contains(&code.http_status())));
    }

    #[test]
    fn a_code_reads_back_from_its_wire_name() {
        for code in ErrorCode::ALL {
            let json = serde_json::to_string(code).expect("a code is a string");
            assert_eq!(json, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<ErrorCode>(&json).expect("known"), *code);
        }
    }
}
