//! The real program as a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::daemon::{answer, until};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_rbees-orcd");

/// The program as a process of its own; killed when dropped.
pub struct Process {
    pub child: Child,
    pub url: String,
    log: PathBuf,
    pub http: reqwest::Client,
}

impl Process {
    /// Runs `command`, which ends in the program's name, on the folder `home`.
    pub async fn start(command: &mut Command, home: &Path, ready: &Path) -> Self {
        let _ = std::fs::remove_file(ready);
        command.args(["--bind", "127.0.0.1:0", "--home"]).arg(home).arg("--ready-file").arg(ready);
        let log = ready.with_extension("log");
        let stderr = std::fs::File::create(&log).expect("a file");
        let child = command.stderr(stderr).stdout(Stdio::null()).spawn().expect("started");
        let url = until("the program is ready", || async {
            Some(std::fs::read_to_string(ready).ok()?.trim().to_owned())
        })
        .await;
        Self { child, url, log, http: clients::http_client().expect("a client") }
    }

    /// Whether a line with this text is in its log.
    pub fn has_logged(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.log).expect("a log").contains(text)
    }

    pub async fn submit(&self, prompt: &str) -> reqwest::Result<reqwest::Response> {
        let task = json!({ "prompt": prompt, "on_disconnect": "continue" });
        self.http.post(format!("{}/v2/tasks", self.url)).json(&task).send().await
    }

    pub async fn status(&self, path: &str) -> u16 {
        answer(self.http.get(format!("{}{path}", self.url))).await.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder for the home of a program, and the file that says where it listens.
pub fn folders() -> (TempDir, PathBuf, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    let (home, ready) = (folder.path().join("home"), folder.path().join("ready"));
    std::fs::create_dir(&home).expect("made");
    (folder, home, ready)
}
