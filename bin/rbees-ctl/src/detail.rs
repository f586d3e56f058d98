//! Failures that this program finds itself, in the one error shape.

use std::path::Path;

use api_types::{ErrorCode, ErrorDetail};

/// A fault that no input explains.
pub fn internal(message: impl Into<String>) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::Internal, message)
}

/// A command line that cannot be used as it is.
pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::InvalidField, message).with_hint(hint)
}

/// A configuration that cannot be used as it is.
pub fn config(message: impl Into<String>) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::InvalidConfig, message)
}

/// A file that could not be read or written.
pub fn file(doing: &str, path: &Path, error: &std::io::Error) -> ErrorDetail {
    if matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::IsADirectory) {
        let what = if path.is_dir() { "is a folder" } else { "is not UTF-8 text" };
        return usage(format!("{} {what}", path.display()), "name a file of UTF-8 text");
    }
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull => ErrorCode::StorageFull,
        std::io::ErrorKind::NotFound => ErrorCode::NotFound,
        _ => ErrorCode::StorageFailed,
    };
    ErrorDetail::new(code, format!("{} could not be {doing}: {error}", path.display()))
}

/// Somebody pressed Ctrl-C.
pub fn interrupted() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::Cancelled, "interrupted")
}
