//! A pool in a folder of its own, driven as a user drives it.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Reply, Request, Server, body, correct, reply, sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A home, and the environment of its commands.
pub struct Pool {
    folder: TempDir,
    env: Vec<(String, String)>,
}

impl Pool {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), env: Vec::new() }
    }

    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn home(&self) -> &Path {
        self.folder.path()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rbees-pool"));
        for name in ["HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "RBEES_BIN_DIR"]
        {
            command.env_remove(name);
        }
        command.env("RBEES_HOME", self.home()).envs(self.env.iter().cloned()).args(args);
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().expect("rbees-pool starts")
    }

    /// The answer of a command that must succeed.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The error of a command that must fail with this exit code.
    pub fn error(&self, args: &[&str], code: i32) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "a failure prints no data");
        let errors = stderr(&output);
        let body: Value = serde_json::from_str(errors.lines().last().expect("a last line")).expect("JSON");
        body["error"].clone()
    }

    /// Starts `remote` with one request, its standard input left open.
    pub fn remote(&self, request: &str) -> Child {
        use std::io::Write;
        let mut command = self.command(&["remote"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("rbees-pool starts");
        writeln!(child.stdin.as_mut().expect("piped"), "{request}").expect("it reads");
        child
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..6000 {
        if let Some(found) = condition() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}: not within 60 s");
}

/// A file that has the header of a model and nothing to run.
pub fn model_file(len: usize) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(0u64.to_le_bytes());
    file.extend(1u64.to_le_bytes());
    file.extend(20u64.to_le_bytes());
    file.extend(b"general.architecture");
    file.extend(8u32.to_le_bytes());
    file.extend(5u64.to_le_bytes());
    file.extend(b"llama");
    file.extend(body(len - file.len()));
    file
}

/// A Hub with the repository `org/repo` that holds this one file; `answer` serves its bytes.
pub fn hub(
    file: Arc<Vec<u8>>,
    answer: impl Fn(&Request, usize, &[u8]) -> Reply + Send + Sync + 'static,
) -> Server {
    Server::start(move |request, number| {
        if request.path.starts_with("/api/models/org/repo/revision/main") {
            let listing = serde_json::json!({ "sha": COMMIT, "siblings": [
                { "rfilename": "m.Q4_1.gguf", "size": file.len(), "lfs": { "sha256": sha256(&file) } },
            ] });
            return reply("200 OK", &[], listing.to_string().as_bytes());
        }
        if request.path == format!("/org/repo/resolve/{COMMIT}/m.Q4_1.gguf") {
            return answer(request, number, &file);
        }
        reply("404 Not Found", &[], b"")
    })
}

/// A Hub that behaves.
pub fn good_hub(file: Arc<Vec<u8>>) -> Server {
    hub(file, |request, _, file| correct(request, file, "\"x\""))
}

/// Requests for the file itself.
pub fn fetches(server: &Server) -> Vec<Request> {
    server.requests().into_iter().filter(|request| request.path.contains("/resolve/")).collect()
}

/// The part file of the Hub's model.
pub fn part(pool: &Pool, file: &[u8]) -> PathBuf {
    pool.home().join(format!("models/models--org--repo/blobs/{}.rbees-part", sha256(file)))
}

pub const REGISTER: [&str; 10] =
    ["models", "register", "--id", "m", "--name", "M", "--repo", "org/repo", "--architecture", "llama"];
