//! Stopping the orchestrator of a home, and nobody else.

use std::path::Path;
use std::time::{Duration, Instant};

use api_types::{ErrorCode, ErrorDetail};
use tokio::process::Child;

use super::lock::{Holder, Running, holder};
use crate::detail;

/// How long it may take to finish its streams before it is killed.
pub const GRACE: Duration = Duration::from_secs(35);
const TICK: Duration = Duration::from_millis(50);

/// Asks the orchestrator that holds the lock of `home` to end, and kills it when it does not.
///
/// The process is held on to before the lock is looked at once more, so that a number which went
/// to somebody else meanwhile gets no signal.
pub async fn stop(home: &Path, running: &Running) -> Result<(), ErrorDetail> {
    let Some(process) = Process::open(running.pid)? else {
        return Ok(());
    };
    let expected = Holder::Running(running.clone());
    if holder(home)? != expected {
        return Ok(());
    }
    process.signal(rustix::process::Signal::TERM)?;
    if gone(home, &expected, GRACE).await? {
        return Ok(());
    }
    process.signal(rustix::process::Signal::KILL)?;
    if gone(home, &expected, Duration::from_secs(5)).await? {
        return Ok(());
    }
    Err(detail::internal(format!("the orchestrator, process {}, does not end", running.pid)))
}

/// Asks a child of this process to end, and kills it when it does not. A child that was not waited
/// for keeps its number, so the number alone is enough.
pub async fn end_child(mut child: Child) -> Result<(), ErrorDetail> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let waited = tokio::time::timeout(GRACE, child.wait()).await;
    let ended = match waited {
        Ok(ended) => ended.map(drop),
        Err(_) => child.kill().await,
    };
    ended.map_err(|error| detail::internal(format!("the orchestrator does not end: {error}")))
}

async fn gone(home: &Path, expected: &Holder, patience: Duration) -> Result<bool, ErrorDetail> {
    let began = Instant::now();
    while began.elapsed() < patience {
        if holder(home)? != *expected {
            return Ok(true);
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(false)
}

/// A process that was held on to: its number cannot go to another one unnoticed.
struct Process {
    #[cfg(target_os = "linux")]
    handle: rustix::fd::OwnedFd,
    #[cfg(not(target_os = "linux"))]
    pid: rustix::process::Pid,
}

impl Process {
    /// `None` when there is no such process.
    fn open(pid: u32) -> Result<Option<Self>, ErrorDetail> {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or_else(|| detail::internal("the lock of the orchestrator names no process"))?;
        #[cfg(target_os = "linux")]
        return match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            Ok(handle) => Ok(Some(Self { handle })),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(refused(error)),
        };
        #[cfg(not(target_os = "linux"))]
        Ok(Some(Self { pid }))
    }

    fn signal(&self, signal: rustix::process::Signal) -> Result<(), ErrorDetail> {
        #[cfg(target_os = "linux")]
        let sent = rustix::process::pidfd_send_signal(&self.handle, signal);
        #[cfg(not(target_os = "linux"))]
        let sent = rustix::process::kill_process(self.pid, signal);
        match sent {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(refused(error)),
        }
    }
}

fn refused(error: rustix::io::Errno) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::Forbidden, format!("the orchestrator cannot be signalled: {error}"))
        .with_hint("run this as the user who started it")
}
