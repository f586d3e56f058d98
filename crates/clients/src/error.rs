//! How a call between programs can fail.

use std::error::Error;
use std::io;
use std::time::Duration;

use api_types::{ErrorBody, ErrorCode, ErrorDetail};

/// Longest part of a foreign answer that is quoted in an error, in bytes.
const QUOTED_BYTES: usize = 200;

/// A call that did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the address: the process is gone, or was never there.
    #[error("nothing listens at {address}")]
    Refused {
        /// Whom we called.
        address: String,
    },
    /// The connection could not be made, or broke; the other side may still live.
    #[error("{address} could not be reached: {reason}")]
    Unreachable {
        /// Whom we called.
        address: String,
        /// The system's words.
        reason: String,
    },
    /// Connected, but no answer came in time.
    #[error("{address} did not answer within {} ms", limit.as_millis())]
    TimedOut {
        /// Whom we called.
        address: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The other side answered with an error of ours.
    #[error("{error}")]
    Answered {
        /// The HTTP status.
        status: u16,
        /// Its body.
        error: Box<ErrorDetail>,
    },
    /// The other side answered with something that is not our protocol.
    #[error("{address} does not speak our protocol: {reason}")]
    Protocol {
        /// Whom we called.
        address: String,
        /// What was odd.
        reason: String,
    },
}

impl ClientError {
    /// The error body of the other side, when it answered with one.
    pub fn answered(&self) -> Option<&ErrorDetail> {
        match self {
            Self::Answered { error, .. } => Some(error),
            _ => None,
        }
    }

    /// Whether the other side answered with this code.
    pub fn is_code(&self, code: ErrorCode) -> bool {
        self.answered().is_some_and(|error| error.code == code)
    }

    /// Sorts a transport failure by what the system said underneath.
    pub(crate) fn from_transport(address: &str, error: &(dyn Error + 'static)) -> Self {
        let address = address.to_owned();
        match io_kind(error) {
            Some(io::ErrorKind::ConnectionRefused) => Self::Refused { address },
            _ => Self::Unreachable { address, reason: innermost(error) },
        }
    }

    /// The error of an answer that is not a success.
    pub(crate) fn from_answer(address: &str, status: u16, body: &[u8]) -> Self {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) => Self::Answered { status, error: Box::new(body.error) },
            Err(_) => Self::Protocol {
                address: address.to_owned(),
                reason: format!("it answered {status} with {:?}", quoted(body)),
            },
        }
    }

    /// An answer whose JSON is not what was asked for.
    pub(crate) fn from_json(address: &str, error: &serde_json::Error) -> Self {
        Self::Protocol { address: address.to_owned(), reason: format!("unexpected JSON: {error}") }
    }
}

/// The start of a foreign body, as text.
fn quoted(body: &[u8]) -> String {
    String::from_utf8_lossy(body.get(..QUOTED_BYTES).unwrap_or(body)).into_owned()
}

/// The first I/O error in a chain of causes.
fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    std::iter::successors(Some(error), |&error| error.source())
        .find_map(|error| error.downcast_ref::<io::Error>())
        .map(io::Error::kind)
}

/// The words of the innermost cause, which names the reason.
fn innermost(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(Some(error), |&error| error.source())
        .last()
        .map_or_else(String::new, ToString::to_string)
}
