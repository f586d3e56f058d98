//! From the operating system's errors to the pool's.

use std::io;
use std::path::Path;

use api_types::{ErrorCode, ErrorDetail};

/// A file or folder could not be used.
pub(crate) fn storage(doing: &str, path: &Path, error: &io::Error) -> ErrorDetail {
    let message = format!("{} could not be {doing}: {error}", path.display());
    if error.kind() == io::ErrorKind::StorageFull {
        return ErrorDetail::new(ErrorCode::StorageFull, message)
            .with_hint("free space, then run the same command again; it goes on where it stopped");
    }
    ErrorDetail::new(ErrorCode::StorageFailed, message)
}

/// A fault of rbees itself, such as a task that panicked.
pub(crate) fn internal(error: impl std::fmt::Display) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::Internal, error.to_string())
}

/// Runs blocking work beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ErrorDetail> + Send + 'static,
) -> Result<T, ErrorDetail> {
    tokio::task::spawn_blocking(work).await.map_err(internal)?
}
