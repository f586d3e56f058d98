//! A pool on another machine, through the user's own OpenSSH: its configuration, agent, jump
//! hosts and known hosts all hold.

use std::ffi::OsString;
use std::path::PathBuf;

use api_types::pool::RemoteRequest;
use api_types::{ErrorCode, ErrorDetail};
use tokio::process::Command;

use super::diagnose::{Diagnosis, diagnose};
use super::process::converse;
use super::token::OrchestratorToken;
use super::{Destination, RepoDir, Sink};

/// Printed by the remote side before anything else of ours; what a login shell prints before it
/// is noise.
const GREETING: &[u8] = b"rbees-pool-remote-1\n";

/// The whole remote command, always the same. It reads one line, the pool's `repo_dir` or
/// nothing, as data; then `rbees-pool remote` reads the request. In single quotes and without
/// quotes, exclamation marks or line feeds, so that sh, bash, zsh, fish and csh all pass it on.
const REMOTE_COMMAND: &str = concat!(
    "exec sh -c '",
    "IFS= read -r dir; ",
    "case $dir in \"~/\"*) dir=$HOME/${dir#\"~/\"};; esac; ",
    "PATH=$PATH:$HOME/.local/bin:$HOME/.cargo/bin:/usr/local/bin:/opt/homebrew/bin; export PATH; ",
    "if [ -n \"$dir\" ]; then cd -- \"$dir\" || exit 126; fi; ",
    "for p in ${dir:+\"$dir/target/release/rbees-pool\"} ${dir:+\"$dir/target/debug/rbees-pool\"} ",
    "\"$HOME/.local/bin/rbees-pool\" \"$HOME/.local/share/rbees/bin/rbees-pool\" ",
    "\"$(command -v rbees-pool)\"; do ",
    "if [ -x \"$p\" ]; then echo rbees-pool-remote-1; exec \"$p\" remote; fi; ",
    "done; exit 127",
    "'"
);

/// Longest path of a control socket that every system takes, less ssh's own additions to it.
const MAX_CONTROL_DIR_BYTES: usize = 40;

/// How much of standard error is kept to explain a failure, in bytes.
const KEPT_STDERR: usize = 16 * 1024;

/// How ssh itself is run.
#[derive(Debug, Clone, Default)]
pub struct SshSettings {
    /// The ssh program; `ssh` when absent.
    pub program: Option<OsString>,
    /// A configuration file in place of the user's own.
    pub config: Option<OsString>,
    /// Folder for sockets of connections that are kept for the next command; none are kept when
    /// absent.
    pub control_dir: Option<PathBuf>,
}

impl SshSettings {
    /// `RBEES_SSH`, `RBEES_SSH_CONFIG` and a folder in the user's runtime directory.
    pub fn from_env() -> Self {
        Self {
            program: std::env::var_os("RBEES_SSH"),
            config: std::env::var_os("RBEES_SSH_CONFIG"),
            control_dir: control_dir(),
        }
    }
}

/// A private folder for control sockets, or `None` where there can be none.
fn control_dir() -> Option<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let uid = rustix::process::geteuid().as_raw();
    let dir = base.map_or_else(|| PathBuf::from(format!("/tmp/rbees-{uid}")), |base| base.join("rbees"));
    if dir.as_os_str().len() > MAX_CONTROL_DIR_BYTES {
        return None;
    }
    let _ = std::fs::DirBuilder::new().mode(0o700).create(&dir);
    // Somebody else's folder, or a link to one, must not hold our connections.
    let found = dir.symlink_metadata().ok()?;
    (found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0).then_some(dir)
}

/// Runs `rbees-pool` on another machine.
#[derive(Debug, Clone)]
pub struct SshPool {
    destination: Destination,
    repo_dir: Option<RepoDir>,
    settings: SshSettings,
    pub(super) token: Option<OrchestratorToken>,
}

impl SshPool {
    /// The pool behind `destination`.
    pub fn new(destination: Destination, repo_dir: Option<RepoDir>, settings: SshSettings) -> Self {
        Self { destination, repo_dir, settings, token: None }
    }

    /// Where it is.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    pub(super) async fn run(
        &self,
        request: &RemoteRequest,
        on_stdout: Sink<'_>,
        on_stderr: Sink<'_>,
    ) -> Result<u8, ErrorDetail> {
        let preamble = format!("{}\n", self.repo_dir.as_ref().map_or("", RepoDir::as_str));
        let mut greeting = Greeting::default();
        let mut said = Vec::new();
        let status = converse(
            self.command(),
            &preamble,
            request,
            &mut |bytes| greeting.pass(bytes, on_stdout),
            &mut |bytes| {
                keep_tail(&mut said, bytes);
                on_stderr(bytes);
            },
        )
        .await
        .map_err(|error| not_started(&error))?;
        let diagnosis = Diagnosis {
            destination: &self.destination,
            repo_dir: self.repo_dir.as_ref(),
            greeted: greeting.seen,
            said: &String::from_utf8_lossy(&said),
        };
        diagnose(status.code(), &diagnosis)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.settings.program.as_deref().unwrap_or("ssh".as_ref()));
        command.kill_on_drop(true);
        if let Some(config) = &self.settings.config {
            command.arg("-F").arg(config);
        }
        command.args(["-T", "-a", "-x", "-e", "none"]);
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "UpdateHostKeys=no",
            "ForwardAgent=no",
            "ClearAllForwardings=yes",
            "PermitLocalCommand=no",
            "RequestTTY=no",
            "RemoteCommand=none",
            "LogLevel=ERROR",
            "ConnectTimeout=10",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=3",
        ] {
            command.args(["-o", option]);
        }
        self.keep_connection(&mut command);
        command.arg("--").arg(self.destination.as_str()).arg(REMOTE_COMMAND);
        command
    }

    fn keep_connection(&self, command: &mut Command) {
        match &self.settings.control_dir {
            Some(dir) => {
                let mut path = OsString::from("ControlPath=");
                path.push(dir.join("%C"));
                command.args(["-o", "ControlMaster=auto", "-o", "ControlPersist=60", "-o"]).arg(path);
            }
            None => {
                command.args(["-o", "ControlMaster=no", "-o", "ControlPath=none"]);
            }
        }
    }
}

/// Drops what a login shell prints before our greeting.
#[derive(Debug, Default)]
struct Greeting {
    seen: bool,
    before: Vec<u8>,
}

impl Greeting {
    fn pass(&mut self, bytes: &[u8], on_stdout: Sink<'_>) {
        if self.seen {
            return on_stdout(bytes);
        }
        self.before.extend_from_slice(bytes);
        let found = self.before.windows(GREETING.len()).position(|window| window == GREETING);
        if let Some(at) = found {
            self.seen = true;
            let rest = self.before.split_off(at + GREETING.len());
            if !rest.is_empty() {
                on_stdout(&rest);
            }
        }
        // The greeting may straddle two portions, so its length stays behind.
        let keep = if self.seen { 0 } else { GREETING.len() };
        self.before.drain(..self.before.len().saturating_sub(keep));
    }
}

fn keep_tail(said: &mut Vec<u8>, bytes: &[u8]) {
    said.extend_from_slice(bytes);
    said.drain(..said.len().saturating_sub(KEPT_STDERR));
}

fn not_started(error: &std::io::Error) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::SshFailed, format!("ssh could not be started: {error}"))
        .with_hint("install the OpenSSH client")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_before_the_greeting_is_dropped_whatever_the_portions() {
        let wire = [b"Welcome!\nrbees-pool-\n".as_slice(), GREETING, b"{\"a\":1}"].concat();
        for portion in 1..wire.len() {
            let (mut greeting, mut passed) = (Greeting::default(), Vec::new());
            for bytes in wire.chunks(portion) {
                greeting.pass(bytes, &mut |bytes| passed.extend_from_slice(bytes));
            }
            assert!(greeting.seen);
            assert_eq!(passed, b"{\"a\":1}", "portions of {portion}");
        }
    }

    #[test]
    fn the_remote_command_survives_any_login_shell() {
        let inner = REMOTE_COMMAND.strip_prefix("exec sh -c '").and_then(|rest| rest.strip_suffix('\''));
        let inner = inner.expect("one quoted script");
        assert!(!inner.contains(['\'', '!', '\n', '\\', '`']), "{inner}");
    }

    #[test]
    fn the_host_stands_behind_the_end_of_options() {
        let pool = SshPool::new("mac".parse().expect("a name"), None, SshSettings::default());
        let command = pool.command();
        let args: Vec<_> = command.as_std().get_args().collect();
        assert_eq!(args[args.len() - 3..], ["--", "mac", REMOTE_COMMAND]);
        assert!(args.iter().any(|arg| *arg == "StrictHostKeyChecking=yes"));
    }
}
