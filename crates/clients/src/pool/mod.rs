//! How a pool is asked: one `rbees-pool` command, run here or over SSH.
//!
//! The command's arguments travel as JSON on the standard input of `rbees-pool remote`, so no
//! shell ever reads them. Standard input stays open for the whole run: a pool that sees it end
//! knows that nobody waits any more and stops.

mod answer;
mod destination;
mod diagnose;
mod lines;
mod local;
mod process;
mod ssh;
mod token;

use api_types::pool::{Progress, RemoteRequest};
use api_types::{ErrorDetail, PROTOCOL};
use serde::de::DeserializeOwned;

pub use destination::{Destination, RepoDir};
pub use lines::LineBuffer;
pub use local::LocalPool;
pub use ssh::{SshPool, SshSettings};
pub use token::OrchestratorToken;

/// Takes bytes of one output as they arrive.
pub type Sink<'a> = &'a mut (dyn FnMut(&[u8]) + Send);

/// A pool and the way to it. `rbees-pool` answers the same on every way.
#[derive(Debug, Clone)]
pub enum Pool {
    /// This machine: the `rbees-pool` beside this program.
    Local(LocalPool),
    /// Another machine, through the user's own OpenSSH.
    Ssh(SshPool),
}

impl Pool {
    /// The pool of this machine.
    ///
    /// # Errors
    /// `REMOTE_BINARY_MISSING` when there is no `rbees-pool` beside this program or on the PATH.
    pub fn local() -> Result<Self, ErrorDetail> {
        LocalPool::find().map(Self::Local)
    }

    /// The pool behind an SSH destination, with the settings of the environment. `repo_dir` is a
    /// checkout on that machine, `/…` or `~/…`, whose build is preferred.
    ///
    /// # Errors
    /// `INVALID_HOST` for a destination that ssh could take for an option or a command,
    /// `INVALID_CONFIG` for a `repo_dir` that is no absolute path.
    pub fn ssh(destination: &str, repo_dir: Option<&str>) -> Result<Self, ErrorDetail> {
        let repo_dir = repo_dir.map(str::parse::<RepoDir>).transpose()?;
        Ok(Self::Ssh(SshPool::new(destination.parse()?, repo_dir, SshSettings::from_env())))
    }

    /// Hands `token` to the workers that are started through this value: on standard input and from
    /// there by environment, never as an argument.
    #[must_use]
    pub fn with_orchestrator_token(mut self, token: Option<OrchestratorToken>) -> Self {
        match &mut self {
            Self::Local(pool) => pool.token = token,
            Self::Ssh(pool) => pool.token = token,
        }
        self
    }

    /// Runs `rbees-pool` with `args` and passes its output on as it arrives. Gives its exit code.
    ///
    /// Dropping the future ends the command.
    ///
    /// # Errors
    /// When the command could not be run, or the line was lost before it ended. A command that ran
    /// and failed is not an error here; its exit code says so.
    pub async fn run(
        &self,
        args: &[String],
        on_stdout: Sink<'_>,
        on_stderr: Sink<'_>,
    ) -> Result<u8, ErrorDetail> {
        self.run_shown(args, None, on_stdout, on_stderr).await
    }

    /// As [`Pool::run`], for output that is shown on a terminal of `columns` width.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub async fn run_shown(
        &self,
        args: &[String],
        columns: Option<u16>,
        on_stdout: Sink<'_>,
        on_stderr: Sink<'_>,
    ) -> Result<u8, ErrorDetail> {
        let token = match self {
            Self::Local(pool) => &pool.token,
            Self::Ssh(pool) => &pool.token,
        };
        let orchestrator_token = token.as_ref().map(|token| token.reveal().to_owned());
        let request = RemoteRequest { protocol: PROTOCOL, args: args.to_vec(), columns, orchestrator_token };
        match self {
            Self::Local(pool) => pool.run(&request, on_stdout, on_stderr).await,
            Self::Ssh(pool) => pool.run(&request, on_stdout, on_stderr).await,
        }
    }

    /// Runs `rbees-pool ARGS --json` and reads what it prints.
    ///
    /// # Errors
    /// As [`Pool::run`]; the pool's own error where it failed; `VERSION_SKEW` where its answer
    /// does not have the shape of `T`.
    pub async fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T, ErrorDetail> {
        self.json_with(args, &mut |_| {}).await
    }

    /// As [`Pool::json`], handing on the progress it reports meanwhile.
    ///
    /// # Errors
    /// As [`Pool::json`].
    pub async fn json_with<T: DeserializeOwned>(
        &self,
        args: &[&str],
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<T, ErrorDetail> {
        let args: Vec<String> =
            args.iter().map(|arg| (*arg).to_owned()).chain(["--json".to_owned()]).collect();
        let mut answer = answer::Answer::default();
        let mut errors = answer::Errors::default();
        let code = self
            .run(&args, &mut |bytes| answer.take(bytes), &mut |bytes| errors.take(bytes, on_progress))
            .await?;
        if code == 0 { answer.read() } else { Err(errors.failure(code)) }
    }
}
