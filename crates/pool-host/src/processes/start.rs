//! Starting a worker in a session of its own, in a scope of the user's systemd where it answers.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use api_types::pool::ProcessIdentity;
use api_types::{ErrorCode, ErrorDetail};
use pool_core::spawn::SpawnPlan;
use rustix::process::{Pid, Signal};

use crate::errors::storage;
use crate::home::Home;
use crate::processes::{identity, sweep};

/// Who holds a worker's resources together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervision {
    /// A scope of the user's systemd: a cgroup of its own.
    Systemd,
    /// A session of its own, and nothing else.
    Session,
}

impl Supervision {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Systemd => "in a scope of the user's systemd",
            Self::Session => "in a session of its own (no systemd user manager answers)",
        }
    }

    /// What this machine offers.
    pub fn find() -> Self {
        let asked = Command::new("systemctl")
            .args(["--user", "show-environment"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let answers = asked.is_ok_and(|status| status.success());
        let runs =
            Command::new("systemd-run").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if answers && runs.is_ok_and(|status| status.success()) { Self::Systemd } else { Self::Session }
    }
}

/// A worker that was started and is not trusted yet: dropped, it is killed with all it started.
#[derive(Debug)]
pub struct Started {
    child: Child,
    /// Who it is.
    pub identity: ProcessIdentity,
    worker_id: String,
    kept: bool,
}

impl Started {
    /// How it ended, when it has.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Lets it live on after this process.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Our own child that has not been waited for: its number, and its group's, are still its own.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        sweep(&self.identity, &self.worker_id);
    }
}

/// Starts the planned worker: no standard input, output and errors into its log file.
///
/// # Errors
/// `SPAWN_FAILED`, `STORAGE_FAILED`.
pub fn start(plan: &SpawnPlan, home: &Home, supervision: Supervision) -> Result<Started, ErrorDetail> {
    let log_path = home.root().join(&plan.log);
    let log = OpenOptions::new().create(true).append(true).open(&log_path);
    let log = log.map_err(|error| storage("opened", &log_path, &error))?;
    let errors = log.try_clone().map_err(|error| storage("opened", &log_path, &error))?;
    let mut command = command(plan, supervision);
    command.envs(plan.env.iter().map(|(name, value)| (name, value)));
    command.current_dir(home.root()).stdin(Stdio::null()).stdout(log).stderr(errors);
    own_session(&mut command);
    let mut child = command.spawn().map_err(|error| {
        ErrorDetail::new(ErrorCode::SpawnFailed, format!("{} could not be started: {error}", plan.program))
    })?;
    match identity(child.id()) {
        Some(identity) => Ok(Started { child, identity, worker_id: plan.worker_id.to_string(), kept: false }),
        None => {
            let _ = child.wait();
            Err(ErrorDetail::new(ErrorCode::SpawnFailed, format!("{} ended at once", plan.program)))
        }
    }
}

/// A scope execs the program in place, so the number and the start time stay the same.
fn command(plan: &SpawnPlan, supervision: Supervision) -> Command {
    let mut command = match supervision {
        Supervision::Session => Command::new(&plan.program),
        Supervision::Systemd => {
            let mut command = Command::new("systemd-run");
            command.args(["--user", "--scope", "--quiet", "--collect"]);
            command.arg(format!("--unit=rbees-{}", plan.worker_id)).arg("--").arg(&plan.program);
            command
        }
    };
    command.args(&plan.args);
    command
}

#[allow(unsafe_code, reason = "a session of its own can only be had between fork and exec")]
fn own_session(command: &mut Command) {
    // SAFETY: the closure runs in the forked child and makes one system call, which is
    // async-signal-safe and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
}
