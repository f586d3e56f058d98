//! Processes: started so that they outlive their starter, known by more than their number,
//! signalled only when they are who the record says.

mod start;
mod unix;

use std::time::Duration;

use api_types::pool::ProcessIdentity;
use pool_core::reconcile::Marked;
use pool_core::spawn::{ENV_HOME, ENV_WORKER_ID};
use rustix::process::Signal;

pub use start::{Started, Supervision, start};
pub use unix::{Handle, identity};

use crate::home::Home;

/// Leaders among the live processes that carry this home's mark.
pub fn marked(home: &Home) -> Vec<Marked> {
    unix::pids()
        .into_iter()
        .filter(|pid| unix::leads_its_session(*pid))
        .filter_map(|pid| mark_of(pid, home))
        .collect()
}

fn mark_of(pid: u32, home: &Home) -> Option<Marked> {
    let process = identity(pid)?;
    let environment = unix::environment(pid)?;
    if unix::variable(&environment, ENV_HOME)? != home.text() {
        return None;
    }
    let worker_id = unix::variable(&environment, ENV_WORKER_ID)?.parse().ok()?;
    // Read again: the number may have passed to another process in between.
    (identity(pid)? == process).then_some(Marked { worker_id, process })
}

/// Ends everything a worker left behind: processes of its session that bear its mark. The mark
/// keeps a stranger safe whose session has got the same number.
pub fn sweep(leader: &ProcessIdentity, worker_id: &str) {
    if unix::boot_id() != Some(leader.boot_id.clone()) {
        return;
    }
    for pid in unix::pids().into_iter().filter(|pid| unix::session(*pid) == Some(leader.pid)) {
        let Some(process) = identity(pid) else { continue };
        let Some(handle) = Handle::open(&process) else { continue };
        let environment = unix::environment(pid).unwrap_or_default();
        // The handle pins the process, so what was read is its own.
        if unix::variable(&environment, ENV_WORKER_ID).as_deref() == Some(worker_id) {
            handle.signal(Signal::KILL);
        }
    }
}

/// How often a process that is to end is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);
