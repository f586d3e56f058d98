//! `cargo xtask up`: from a bare machine to a streamed answer.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::prerequisites::{self, Need};
use crate::release;
use crate::workspace::Workspace;

/// Installs or names what is missing, builds the release, and runs `rbees up`.
#[derive(clap::Args)]
pub struct Args {
    /// Goes to `rbees up` as it is, for example `--once`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Ends with the exit code of `rbees up`.
pub fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<ExitCode> {
    let env = prerequisites::ensure(workspace, &Need::FOR_BUILD)?;
    release::build(workspace, &env)?;
    let mut rbees = Command::new(workspace.program("rbees"));
    rbees.arg("up").args(&args.rest);
    hand_over(rbees)
}

/// Becomes `command`, so that signals and the exit code are its own.
#[cfg(unix)]
fn hand_over(mut command: Command) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    Err(command.exec()).context("starting `rbees up`")
}

#[cfg(not(unix))]
fn hand_over(mut command: Command) -> anyhow::Result<ExitCode> {
    let status = command.status().context("starting `rbees up`")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
