//! The pool of this machine: `rbees-pool` as a child process.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use api_types::pool::RemoteRequest;
use api_types::{ErrorCode, ErrorDetail};
use tokio::process::Command;

use super::Sink;
use super::process::converse;
use super::token::OrchestratorToken;

const PROGRAM: &str = "rbees-pool";

/// Runs the `rbees-pool` of this machine.
#[derive(Debug, Clone)]
pub struct LocalPool {
    program: PathBuf,
    home: Option<OsString>,
    pub(super) token: Option<OrchestratorToken>,
}

impl LocalPool {
    /// The `rbees-pool` beside this program, else the first one on the PATH.
    ///
    /// # Errors
    /// `REMOTE_BINARY_MISSING` when there is none.
    pub fn find() -> Result<Self, ErrorDetail> {
        let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|dir| dir.join(PROGRAM)));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM));
        beside
            .into_iter()
            .chain(on_path)
            .find(|candidate| is_program(candidate))
            .map(Self::at)
            .ok_or_else(missing)
    }

    /// This `rbees-pool`.
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), home: None, token: None }
    }

    /// Lets it keep its files under `home`.
    #[must_use]
    pub fn with_home(mut self, home: impl Into<OsString>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// The `rbees-pool` that is run.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A command that was dropped is not killed: its standard input ends, and it stops by itself,
    /// its files in order.
    pub(super) async fn run(
        &self,
        request: &RemoteRequest,
        on_stdout: Sink<'_>,
        on_stderr: Sink<'_>,
    ) -> Result<u8, ErrorDetail> {
        let mut command = Command::new(&self.program);
        command.arg("remote");
        if let Some(home) = &self.home {
            command.env("RBEES_HOME", home);
        }
        let status = converse(command, "", request, on_stdout, on_stderr).await.map_err(|error| {
            let message = format!("{} could not be run: {error}", self.program.display());
            ErrorDetail::new(ErrorCode::Internal, message)
        })?;
        Ok(exit_code(status))
    }
}

/// The exit code as a shell gives it: 128 and the signal's number for a killed process.
fn exit_code(status: std::process::ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn missing() -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::RemoteBinaryMissing,
        "there is no rbees-pool beside this program or on the PATH",
    )
    .with_hint("build it beside this program: cargo build --release -p rbees-pool")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_has_the_exit_code_of_its_signal() {
        assert_eq!(exit_code(std::process::ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_code(std::process::ExitStatus::from_raw(7 << 8)), 7);
    }
}
