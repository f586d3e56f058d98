//! Ending workers: asked, waited for, killed, swept after; the record goes last.

use std::time::Duration;

use api_types::ErrorDetail;
use api_types::pool::{RecordState, WorkerRecord};
use pool_core::worker_record::{Rung, Seen, next_rung};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::home::Home;
use crate::processes::{Handle, LOOK_EVERY, sweep};
use crate::records;

/// Ends a worker and removes its record; gives whether it had to be killed.
///
/// # Errors
/// `STORAGE_FAILED`; the worker itself cannot refuse.
pub async fn stop(home: &Home, record: &WorkerRecord, grace: Duration) -> Result<bool, ErrorDetail> {
    let mut asked: Option<Instant> = None;
    let mut killed = false;
    loop {
        // Opened anew each time: only who is still the recorded process gets a signal.
        let handle = Handle::open(&record.process);
        let seen = if handle.is_some() { Seen::Alive } else { Seen::Gone };
        let since = asked.map(|asked| asked.elapsed().as_millis() as u64);
        match (next_rung(seen, since, grace.as_millis() as u64), handle) {
            (Rung::Terminate, Some(handle)) => {
                records::write(home, &WorkerRecord { state: RecordState::Stopping, ..record.clone() })?;
                asked = Some(Instant::now());
                handle.signal(Signal::TERM);
            }
            (Rung::Kill, Some(handle)) => {
                killed = true;
                handle.signal(Signal::KILL);
            }
            (Rung::Sweep, _) => break,
            (Rung::Terminate | Rung::Wait | Rung::Kill, _) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    sweep(&record.process, record.worker_id.as_str());
    records::remove(home, &record.worker_id)?;
    Ok(killed)
}
