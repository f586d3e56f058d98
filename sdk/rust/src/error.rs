//! How a call to the orchestrator can fail.

use api_types::{ErrorCode, ErrorDetail};

/// A call that did not give what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The address given to the client is no HTTP address.
    #[error("`{url}` is not an address such as http://127.0.0.1:8080: {reason}")]
    InvalidUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answered at the orchestrator's address.
    #[error("no orchestrator answers at {url}: {reason}")]
    Unreachable {
        /// Whom we called.
        url: String,
        /// The system's words.
        reason: String,
    },
    /// The orchestrator answered with an error, or the job ended with one.
    #[error("{0}")]
    Api(Box<ErrorDetail>),
    /// A stream broke and could not be taken up again. The job may still run.
    #[error("the stream of {job_id} broke and could not be taken up again: {reason}")]
    Lost {
        /// The job.
        job_id: api_types::JobId,
        /// Why the last try failed.
        reason: String,
    },
    /// The other side answered with something that is not this API.
    #[error("{url} does not answer as an orchestrator: {reason}")]
    Protocol {
        /// Whom we called.
        url: String,
        /// What was odd.
        reason: String,
    },
}

impl Error {
    /// The stable word for the failure.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::InvalidUrl { .. } => ErrorCode::InvalidConfig,
            Self::Unreachable { .. } | Self::Lost { .. } => ErrorCode::OrchestratorUnreachable,
            Self::Api(detail) => detail.code,
            Self::Protocol { .. } => ErrorCode::VersionSkew,
        }
    }

    /// The failure in the one error shape of the API, whoever found it.
    pub fn into_detail(self) -> ErrorDetail {
        let code = self.code();
        let message = self.to_string();
        match self {
            Self::Api(detail) => *detail,
            Self::InvalidUrl { .. } => ErrorDetail::new(code, message),
            Self::Unreachable { .. } => ErrorDetail::new(code, message)
                .with_hint("start it with `rbees up`, or name its address with --endpoint or RBEES_ENDPOINT"),
            Self::Lost { job_id, .. } => ErrorDetail::new(code, message)
                .with_hint(format!("see what became of it: rbees jobs watch {job_id}")),
            Self::Protocol { .. } => ErrorDetail::new(code, message)
                .with_hint("check that the address is an orchestrator of the same version"),
        }
    }
}

impl From<ErrorDetail> for Error {
    fn from(detail: ErrorDetail) -> Self {
        Self::Api(Box::new(detail))
    }
}
