//! The real orchestrator at work under strace: what it wrote, what it synced, what it answered, in
//! that order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use e2e::Daemon;
use e2e::binaries::binary;
use futures_util::future::join_all;
use rusqlite::{Connection, OpenFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::trace::{self, Call};
use crate::rng::Rng;

/// Clients that hand in jobs at once.
const CLIENTS: u32 = 4;
/// What strace is to note; all that changes a file, syncs one, or answers somebody.
const CALLS: &str = "trace=openat,write,writev,pwrite64,sendto,sendmsg,ftruncate,fsync,fdatasync,unlink,unlinkat,\
                     rename,renameat,renameat2,mkdir,mkdirat";
/// How long the worker may take to get ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a request that lies in a file of its own.
const LARGE: usize = 20_000;

/// How hard the orchestrator tries.
#[derive(Debug, Clone)]
pub enum Strength {
    /// The release build.
    AsBuilt,
    /// This development build, told not to sync its commits.
    Weak(PathBuf),
}

/// What each acknowledged job was handed in with.
pub type Prompts = BTreeMap<String, String>;

/// What was recorded.
pub struct Recording {
    /// The calls, in order.
    pub trace: Vec<Call>,
    /// The state root they were about.
    pub home: PathBuf,
    /// What was handed in.
    pub prompts: Prompts,
}

impl Recording {
    /// Runs `jobs` jobs through a fresh orchestrator below `folder`.
    pub fn make(folder: &Path, strength: &Strength, jobs: u32, seed: u64) -> anyhow::Result<Self> {
        let (home, log) = (folder.join("home"), folder.join("trace"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let prompts = runtime.block_on(async {
            let (mut strace, url) = start(folder, &home, &log, strength).await?;
            let worker = start_worker(folder, &url);
            let prompts = run_jobs(&url, &home, jobs, seed).await?;
            drop(worker);
            kill_process(orchestrator(&home)?, Signal::TERM)?;
            let status = strace.ended().await;
            if !status.success() {
                bail!("the orchestrator ended with {status} while it was recorded: {}", strace.log());
            }
            anyhow::Ok(prompts)
        })?;
        let text = std::fs::read_to_string(&log).context("reading the trace")?;
        Ok(Self { trace: trace::read(&text), home, prompts })
    }
}

async fn start(
    folder: &Path,
    home: &Path,
    log: &Path,
    strength: &Strength,
) -> anyhow::Result<(Daemon, String)> {
    let ready = folder.join("ready");
    let mut command = Command::new("strace");
    command
        .args(["-f", "-qq", "-xx", "-y", "-a", "1", "-s", "10000000", "-e", CALLS, "-e", "signal=none", "-o"])
        .arg(log);
    match strength {
        Strength::AsBuilt => command.arg(binary("rbees-orcd")),
        Strength::Weak(program) => command.env("RBEES_TEST_SYNCHRONOUS", "normal").arg(program),
    };
    command.args(["--bind", "127.0.0.1:0", "--home"]).arg(home).arg("--ready-file").arg(&ready);
    command.env("XDG_CONFIG_HOME", folder.join("config"));
    let daemon = Daemon::start("recorded", folder, &mut command);
    let url = e2e::until("the recorded orchestrator listens", || async {
        std::fs::read_to_string(&ready).ok().map(|url| url.trim().to_owned())
    })
    .await;
    Ok((daemon, url))
}

/// A worker that answers at once.
pub fn start_worker(folder: &Path, url: &str) -> Daemon {
    let mut command = Command::new(binary("rbees-workerd"));
    command
        .args(["--worker-id", "worker-fake-000000000001", "--model", "fake:fake-bee?seed=7&context=65536"])
        .args(["--model-name", "fake-bee", "--backend", "fake", "--port", "0", "--slots", "4"])
        .args(["--context", "65536", "--orchestrator", url]);
    Daemon::start("worker", folder, &mut command)
}

/// The process that writes; strace is its parent.
pub fn orchestrator(home: &Path) -> anyhow::Result<Pid> {
    let owner: serde_json::Value = serde_json::from_slice(&std::fs::read(home.join("orchestrator.lock"))?)?;
    let pid = owner["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    pid.context("the lock file names no process")
}

/// Runs half of the jobs, waits until the log was cleared of them, and runs the other half over it.
async fn run_jobs(url: &str, home: &Path, jobs: u32, seed: u64) -> anyhow::Result<Prompts> {
    let http = clients::http_client()?;
    if !wait_for_worker(&http, url, PATIENCE).await {
        bail!("the worker did not get ready");
    }
    let mut handed_in = Prompts::new();
    for half in 0..2 {
        let clients = (0..CLIENTS).map(|client| {
            let rng = Rng::new(seed ^ u64::from(client) ^ half << 16);
            run_client(&http, url, jobs / CLIENTS / 2, rng)
        });
        for prompts in join_all(clients).await {
            handed_in.extend(prompts?);
        }
        if half == 0 {
            e2e::until("the log is cleared", || async { log_was_cleared(home).ok()?.then_some(()) }).await;
        }
    }
    Ok(handed_in)
}

fn log_was_cleared(home: &Path) -> rusqlite::Result<bool> {
    let database =
        Connection::open_with_flags(home.join("orchestrator.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    database.query_row("SELECT count(*) FROM meta WHERE key = 'log_cleared'", [], |row| row.get(0))
}

/// One job after the other: some long prompts, some streams read to their end, some cancelled.
/// Waits until a worker is ready; says whether one is.
pub async fn wait_for_worker(http: &reqwest::Client, url: &str, patience: Duration) -> bool {
    let asked = async {
        loop {
            let workers = http.get(format!("{url}/v2/workers")).send();
            if let Ok(answer) = workers.await
                && answer.text().await.is_ok_and(|workers| workers.contains("\"ready\""))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(patience, asked).await.is_ok()
}

/// Gives what was acknowledged; no two prompts are the same.
async fn run_client(http: &reqwest::Client, url: &str, jobs: u32, mut rng: Rng) -> anyhow::Result<Prompts> {
    let mut handed_in = Prompts::new();
    for _ in 0..jobs {
        let bee = format!("bee {:016x} ", rng.next());
        let prompt = if rng.percent(15) { bee.repeat(LARGE / bee.len()) } else { bee };
        let task = json!({
            "model": "fake-bee", "prompt": prompt, "max_tokens": 1 + rng.below(6), "temperature": 0,
            "on_disconnect": "continue",
        });
        let stream = rng.percent(50);
        let answer = http.post(format!("{url}/v2/tasks?stream={stream}")).json(&task).send().await?;
        if !answer.status().is_success() {
            bail!("a job was refused: {}", answer.text().await?);
        }
        let job = answer.headers().get("x-rbees-job-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        answer.bytes().await?;
        let Some(job) = job else { continue };
        if !stream && rng.percent(20) {
            http.post(format!("{url}/v2/tasks/{job}/cancel")).send().await?;
        }
        handed_in.insert(job, prompt);
    }
    Ok(handed_in)
}
