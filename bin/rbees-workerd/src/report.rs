//! The report file: the worker's health for whoever started it, always whole.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api_types::worker::{WorkerReport, WorkerStatus};

use crate::state::WorkerState;

/// While loading, progress is written at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// One writer at a time, from looking at the health to the renaming: otherwise an older report could
/// take the place of a newer one, or the file of another writer.
static WRITING: Mutex<()> = Mutex::new(());

/// Writes the health of this moment, so that a reader sees the old or the new file, never a part.
///
/// # Errors
/// When the file or its folder cannot be written.
pub fn write(path: &Path, state: &WorkerState) -> std::io::Result<()> {
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::{Args, Config, EnvSecrets};

    fn loading() -> WorkerState {
        let args = ["rbees-workerd", "--worker-id", "w", "--model", "fake:bee", "--backend", "fake"];
        let secrets = EnvSecrets { callers: None, orchestrator: None };
        let config = Config::new(Args::parse_from(args), secrets).expect("a sound configuration");
        WorkerState::new(&config, "http://127.0.0.1:1".to_owned())
    }

    #[test]
    fn many_writers_leave_one_whole_report() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("report.json");
        let state = loading();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..20).for_each(|_| write(&path, &state).expect("written")));
            }
        });
        let report: WorkerReport =
            serde_json::from_slice(&std::fs::read(&path).expect("there")).expect("whole");
        assert_eq!(report.pid, std::process::id());
    }
}
