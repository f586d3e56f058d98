//! `rbees` installed in a folder of its own, with stand-ins for the programs beside it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder with the program, a home and a configuration.
pub struct Program {
    dir: tempfile::TempDir,
}

impl Program {
    /// Installs the program.
    pub fn install() -> Self {
        let dir = tempfile::Builder::new().prefix("rb").tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("bin")).expect("created");
        std::fs::copy(env!("CARGO_BIN_EXE_rbees"), dir.path().join("bin/rbees")).expect("copied");
        Self { dir }
    }

    /// Puts a shell script beside the program.
    pub fn with_script(self, name: &str, text: &str) -> Self {
        let path = self.dir.path().join("bin").join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        self
    }

    /// The state root.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("config/rbees/rbees.toml")
    }

    /// The folder of all.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes the configuration.
    pub fn configure(&self, text: &str) {
        std::fs::create_dir_all(self.config().parent().expect("a folder")).expect("created");
        std::fs::write(self.config(), text).expect("written");
    }

    /// The command with these arguments, nothing of this machine around it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.dir.path().join("bin/rbees"));
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("XDG_CONFIG_HOME", self.dir.path().join("config"))
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .env("RBEES_HOME", self.home())
            .env("RBEES_ENDPOINT", "http://127.0.0.1:9")
            .stdin(Stdio::null());
        command
    }

    /// Runs it.
    pub fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().expect("it runs"))
    }
}

/// What a run left behind.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}
