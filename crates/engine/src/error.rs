//! Everything that can go wrong in an engine, and its code on the wire.

use api_types::{ErrorCode, ErrorDetail};
use gguf::Problem;

use crate::backend::Backend;

/// A failure to load a model or to run it. Never holds prompt or completion text.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The binary does not contain the backend.
    #[error("this worker was built without {0}; it has {list}", list = built_list())]
    BackendNotBuilt(Backend),
    /// The backend is there, the device is not.
    #[error("there is no {backend} device {wanted}; found: {}", if found.is_empty() { "none".to_owned() } else { found.join(", ") })]
    DeviceNotFound {
        /// The backend that was asked for.
        backend: Backend,
        /// The number that was asked for.
        wanted: u32,
        /// What there is.
        found: Vec<String>,
    },
    /// The processor lacks instructions that the build uses without asking.
    #[error("the processor lacks {}, which this build needs", .0.join(", "))]
    UnsupportedCpu(Vec<String>),
    /// The file is damaged.
    #[error("the model file is damaged: {0}")]
    CorruptModel(Problem),
    /// The file is sound, but not of a kind that runs here.
    #[error("the model cannot be run: {0}")]
    UnsupportedModel(String),
    /// The file could not be opened or read.
    #[error("the model file cannot be read: {0}")]
    Unreadable(String),
    /// The folder of safetensors cannot be turned into a file that runs.
    #[error("the model folder cannot be converted: {0}")]
    Conversion(convert::ConvertError),
    /// The options contradict each other or the model.
    #[error("{field}: {message}")]
    InvalidOption {
        /// The flag that is wrong, without dashes.
        field: &'static str,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// The engine refused the model or ran out of memory.
    #[error("the engine could not load the model: {0}")]
    LoadFailed(String),
    /// Loading was given up on request.
    #[error("loading was given up on request")]
    LoadAbandoned,
    /// The engine failed while it ran.
    #[error("the engine failed: {0}")]
    StepFailed(String),
    /// The engine cannot do this with this model.
    #[error("the engine cannot do this with this model: {0}")]
    Unsupported(&'static str),
}

fn built_list() -> String {
    Backend::built().iter().map(|backend| backend.as_str()).collect::<Vec<_>>().join(", ")
}

impl EngineError {
    /// The stable word for programs.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::BackendNotBuilt(_) => ErrorCode::BackendNotBuilt,
            Self::DeviceNotFound { .. } => ErrorCode::DeviceNotFound,
            Self::UnsupportedCpu(_) => ErrorCode::UnsupportedCpu,
            Self::CorruptModel(_) => ErrorCode::CorruptModel,
            Self::UnsupportedModel(_) => ErrorCode::UnsupportedModel,
            Self::Unreadable(_) | Self::LoadFailed(_) => ErrorCode::ModelLoadFailed,
            Self::Conversion(error) => match error {
                convert::ConvertError::Malformed { .. } => ErrorCode::CorruptModel,
                convert::ConvertError::Unsupported { .. } => ErrorCode::UnsupportedModel,
                convert::ConvertError::Io { .. } | convert::ConvertError::DiskFull { .. } => {
                    ErrorCode::ModelLoadFailed
                }
                convert::ConvertError::Abandoned => ErrorCode::ShuttingDown,
            },
            Self::LoadAbandoned => ErrorCode::ShuttingDown,
            Self::InvalidOption { .. } => ErrorCode::InvalidConfig,
            Self::StepFailed(_) | Self::Unsupported(_) => ErrorCode::EngineFailed,
        }
    }

    /// The error as it stands on the wire.
    pub fn detail(&self) -> ErrorDetail {
        let detail = ErrorDetail::new(self.code(), self.to_string());
        match self {
            Self::CorruptModel(problem) => detail
                .with_details(
                    serde_json::json!({ "offset": problem.offset, "reason": problem.reason.as_str() }),
                )
                .with_hint(
                    "fetch the file again: rbees-pool models verify MODEL names what is wrong with it",
                ),
            Self::BackendNotBuilt(_) => detail
                .with_hint("ask for a backend that is built in, or build rbees-workerd with this feature"),
            Self::DeviceNotFound { .. } => {
                detail.with_hint("rbees-pool status lists the devices of this machine")
            }
            Self::UnsupportedCpu(_) => {
                detail.with_hint("build rbees-workerd on this machine with RUSTFLAGS=-Ctarget-cpu=native")
            }
            Self::Conversion(error) => match error {
                convert::ConvertError::Malformed { .. } => {
                    detail.with_hint("fetch the folder again, or compare it with where it came from")
                }
                convert::ConvertError::DiskFull { .. } => {
                    detail.with_hint("make room, or set RBEES_CONVERTED to a folder on another disk")
                }
                convert::ConvertError::Unsupported { .. } => {
                    detail.with_hint("take a GGUF file of this model instead")
                }
                convert::ConvertError::Io { .. } | convert::ConvertError::Abandoned => detail,
            },
            Self::InvalidOption { field, .. } => detail.with_field(*field),
            _ => detail,
        }
    }
}
