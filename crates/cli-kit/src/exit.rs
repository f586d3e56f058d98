//! How a program ends: one number per kind of outcome, and one table from error codes to it.

use api_types::{ErrorCode, ErrorDetail};

/// The exit statuses of the command-line programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: it worked.
    Ok,
    /// 1: it failed.
    Failed,
    /// 2: the command line, a file or a request cannot be used as it is.
    Usage,
    /// 3: what was named does not exist.
    NotFound,
    /// 4: it was understood and refused.
    Refused,
    /// 5: the other side could not be reached.
    Unreachable,
    /// 75: not now; the same command may work later.
    TryAgain,
    /// 130: somebody interrupted it.
    Interrupted,
    /// Any other number, passed on from a program that ran elsewhere.
    Other(u8),
}

impl ExitStatus {
    /// The number the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Refused => 4,
            Self::Unreachable => 5,
            Self::TryAgain => 75,
            Self::Interrupted => 130,
            Self::Other(code) => code,
        }
    }

    /// The status behind a number; numbers without a meaning of their own are kept as they are.
    pub const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Ok,
            1 => Self::Failed,
            2 => Self::Usage,
            3 => Self::NotFound,
            4 => Self::Refused,
            5 => Self::Unreachable,
            75 => Self::TryAgain,
            130 => Self::Interrupted,
            other => Self::Other(other),
        }
    }
}

impl From<ExitStatus> for std::process::ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

impl From<&ErrorDetail> for ExitStatus {
    fn from(error: &ErrorDetail) -> Self {
        error.code.into()
    }
}

impl From<ErrorCode> for ExitStatus {
    /// The one table from an error code to an exit status. Without a wildcard, so that a new code
    /// cannot be forgotten.
    fn from(code: ErrorCode) -> Self {
        use ErrorCode as E;
        match code {
            E::InvalidJson
            | E::InvalidField
            | E::InvalidHeader
            | E::InvalidModelRef
            | E::InvalidHost
            | E::InvalidConfig
            | E::ModelAmbiguous
            | E::AmbiguousId => Self::Usage,
            E::NotFound
            | E::JobNotFound
            | E::SessionNotFound
            | E::WorkerNotFound
            | E::PoolNotFound
            | E::PolicyNotFound
            | E::ModelNotFound
            | E::DeviceNotFound
            | E::EventsEvicted
            | E::AttemptGone => Self::NotFound,
            E::Unauthenticated
            | E::Forbidden
            | E::HostNotAllowed
            | E::OriginNotAllowed
            | E::MethodNotAllowed
            | E::BodyTooLarge
            | E::ContextOverflow
            | E::NoChatTemplate
            | E::TemplateFailed
            | E::FormatFailed
            | E::IdempotencyConflict
            | E::JobConflict
            | E::JobNotEnded
            | E::StaleAttempt
            | E::StaleIncarnation
            | E::PolicyRefused
            | E::ScriptError
            | E::DeadlineUnmet
            | E::CorruptModel
            | E::UnsupportedModel
            | E::UnsupportedCpu
            | E::BackendNotBuilt
            | E::InsufficientVram
            | E::InsufficientMemory
            | E::StorageFull
            | E::GatedModel
            | E::PortTaken
            | E::HostKeyUnknown
            | E::HostKeyChanged
            | E::VersionSkew => Self::Refused,
            E::OrchestratorUnreachable
            | E::WorkerUnreachable
            | E::SshFailed
            | E::RemoteBinaryMissing
            | E::Offline => Self::Unreachable,
            E::QueueFull
            | E::TooManyStreams
            | E::QuotaExceeded
            | E::TooManyRequests
            | E::NoCapacity
            | E::ShuttingDown
            | E::AllSlotsBusy
            | E::WorkerLoading
            | E::WorkerDraining
            | E::ModelNotReady
            | E::ClientCut
            | E::RequestTimeout => Self::TryAgain,
            E::Cancelled => Self::Interrupted,
            E::DeadlineExceeded
            | E::ExecutionTimeout
            | E::StreamStalled
            | E::WorkerLost
            | E::WorkerProtocolError
            | E::Poison
            | E::RetriesExhausted
            | E::ModelLoadFailed
            | E::EngineFailed
            | E::DownloadFailed
            | E::ChecksumMismatch
            | E::StorageFailed
            | E::SpawnFailed
            | E::SpawnTimeout
            | E::Internal => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_code_ends_with_a_failure_of_the_documented_set() {
        for code in ErrorCode::ALL {
            let status = ExitStatus::from(*code).code();
            assert!([1, 2, 3, 4, 5, 75, 130].contains(&status), "{code}: {status}");
        }
    }

    #[test]
    fn what_is_missing_refused_or_busy_is_told_apart() {
        assert_eq!(ExitStatus::from(ErrorCode::ModelNotFound).code(), 3);
        assert_eq!(ExitStatus::from(ErrorCode::PortTaken).code(), 4);
        assert_eq!(ExitStatus::from(ErrorCode::OrchestratorUnreachable).code(), 5);
        assert_eq!(ExitStatus::from(ErrorCode::QueueFull).code(), 75);
    }

    #[test]
    fn a_number_survives_the_way_there_and_back() {
        for code in 0..=u8::MAX {
            assert_eq!(ExitStatus::from_code(code).code(), code);
        }
    }
}
