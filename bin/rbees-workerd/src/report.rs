//! The report file: the worker's health for whoever started it, always whole.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api_types::worker::{WorkerReport, WorkerStatus};

use crate::state::WorkerState;

/// While loading, progress is written at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Writes the health of this moment, so that a reader sees the old or the new file, never a part.
///
/// # Errors
/// When the file or its folder cannot be written.
pub fn write(path: &Path, state: &WorkerState) -> std::io::Result<()> {
    let report = WorkerReport { pid: std::process::id(), health: state.health() };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(&report)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Writes the report now and after every change, for ever.
pub async fn keep_written(path: PathBuf, state: Arc<WorkerState>) {
    let mut changes = state.changes();
    let mut incarnations = state.incarnations();
    loop {
        changes.borrow_and_update();
        incarnations.borrow_and_update();
        write_or_warn(&path, &state);
        if state.status() == WorkerStatus::Loading {
            tokio::time::sleep(PROGRESS_EVERY).await;
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = incarnations.changed() => {}
        }
    }
}

/// Writes the report; a failure is a warning, because the worker can serve without it.
pub fn write_or_warn(path: &Path, state: &WorkerState) {
    if let Err(error) = write(path, state) {
        tracing::warn!(event = "report_failed", path = %path.display(), %error);
    }
}
