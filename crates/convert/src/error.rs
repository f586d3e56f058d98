//! Why a folder could not be converted.

use std::io;
use std::path::Path;

use crate::architecture::SUPPORTED;

/// A failure to convert a folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A file of the folder is damaged, or contradicts another.
    #[error("{file}: {problem}; allowed is {allowed}")]
    Malformed {
        /// Name of the file within the folder.
        file: String,
        /// What is wrong.
        problem: String,
        /// What would be right.
        allowed: String,
    },
    /// The folder is sound, but holds what the converter does not know.
    #[error("{file}: {found} cannot be converted; allowed is {allowed}")]
    Unsupported {
        /// Name of the file within the folder.
        file: String,
        /// What was found.
        found: String,
        /// What would be converted.
        allowed: String,
    },
    /// A file could not be read or written.
    #[error("{file}: {problem}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        problem: String,
    },
    /// The file system of the target has no room.
    #[error("{file}: the disk is full; the converted model takes {needed_bytes} bytes")]
    DiskFull {
        /// The file that could not be written.
        file: String,
        /// Length of the whole file.
        needed_bytes: u64,
    },
    /// The caller gave up.
    #[error("the conversion was given up on request")]
    Abandoned,
}

impl ConvertError {
    pub(crate) fn malformed(
        file: impl Into<String>,
        problem: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Malformed { file: file.into(), problem: problem.into(), allowed: allowed.into() }
    }

    pub(crate) fn unsupported(
        file: impl Into<String>,
        found: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Unsupported { file: file.into(), found: found.into(), allowed: allowed.into() }
    }

    pub(crate) fn architecture(found: &str) -> Self {
        Self::unsupported("config.json", format!("architecture {found}"), SUPPORTED.join(", "))
    }

    pub(crate) fn io(file: &Path, error: &io::Error) -> Self {
        Self::Io { file: file.display().to_string(), problem: error.to_string() }
    }

    /// A failure to write, which may be for want of room.
    pub(crate) fn write(file: &Path, error: &io::Error, needed_bytes: u64) -> Self {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::DiskFull { file: file.display().to_string(), needed_bytes };
        }
        Self::io(file, error)
    }
}
