//! Records and reports of workers on the disk.

use api_types::pool::WorkerRecord;
use api_types::worker::WorkerReport;
use api_types::{ErrorDetail, WorkerId};
use pool_core::reconcile::Observed;
use serde::de::DeserializeOwned;

use crate::errors::{internal, storage};
use crate::files;
use crate::home::Home;
use crate::processes;

const MAX_BYTES: u64 = 1 << 20;

/// Writes a record.
///
/// # Errors
/// `STORAGE_FULL`, `STORAGE_FAILED`.
pub fn write(home: &Home, record: &WorkerRecord) -> Result<(), ErrorDetail> {
    let bytes = serde_json::to_vec_pretty(record).map_err(internal)?;
    files::replace(&home.record(&record.worker_id), &bytes)
}

/// Removes what belongs to a worker but its log; the record goes last.
///
/// # Errors
/// `STORAGE_FAILED`.
pub fn remove(home: &Home, id: &WorkerId) -> Result<(), ErrorDetail> {
    files::remove(&home.report(id))?;
    files::remove(&home.spawn_lock(id))?;
    files::remove(&home.record(id))
}

/// What a worker last reported.
///
/// # Errors
/// `STORAGE_FAILED`; a report that cannot be understood counts as none.
pub fn report(home: &Home, id: &WorkerId) -> Result<Option<WorkerReport>, ErrorDetail> {
    let bytes = files::read(&home.report(id), MAX_BYTES)?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Records, reports and processes, looked at in one go.
///
/// # Errors
/// `STORAGE_FAILED`.
pub fn observe(home: &Home) -> Result<Observed, ErrorDetail> {
    // The marked processes first: a worker that ends in between then shows as gone, not as new.
    let marked = processes::marked(home);
    let (mut records, mut reports) = (Vec::<WorkerRecord>::new(), Vec::<WorkerReport>::new());
    for name in names(home)? {
        if let Some(id) = name.strip_suffix(".report.json") {
            reports.extend(
                parse_file::<WorkerReport>(home, &name)?.filter(|r| r.health.facts.worker_id.as_str() == id),
            );
        } else if let Some(id) = name.strip_suffix(".json") {
            records.extend(parse_file::<WorkerRecord>(home, &name)?.filter(|r| r.worker_id.as_str() == id));
        }
    }
    let processes = records.iter().filter_map(|record| processes::identity(record.process.pid)).collect();
    Ok(Observed { records, processes, marked, reports })
}

fn names(home: &Home) -> Result<Vec<String>, ErrorDetail> {
    let folder = home.workers();
    let entries = std::fs::read_dir(&folder).map_err(|error| storage("read", &folder, &error))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn parse_file<T: DeserializeOwned>(home: &Home, name: &str) -> Result<Option<T>, ErrorDetail> {
    let bytes = files::read(&home.workers().join(name), MAX_BYTES)?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}
