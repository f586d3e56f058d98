//! One system call that fails: the real orchestrator works under load until the disk refuses it
//! one call, or that call and all after it. It goes on or it ends as it should, and a restart finds
//! every job that it had acknowledged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use e2e::Daemon;
use e2e::binaries::binary;
use futures_util::future::join_all;
use rustix::process::{Signal, kill_process};
use serde::Serialize;
use serde_json::json;

use crate::ledger::Ledger;
use crate::powerloss::image::recover;
use crate::powerloss::recording::{orchestrator, start_worker, wait_for_worker};
use crate::rng::Rng;

/// Clients that hand in jobs at once, and how many jobs each.
const CLIENTS: u64 = 4;
const JOBS: u64 = 12;
/// A request takes so long at most; one whose job waits for room on the disk is given up.
const CALL: Duration = Duration::from_secs(2);
/// Bytes of a prompt that lies in a file of its own.
const LARGE: usize = 20_000;
/// Calls that may fail, and up to which of them: most come early or often.
const CALLS: [(&str, u64); 5] =
    [("pwrite64", 400), ("fdatasync", 120), ("fsync", 12), ("openat", 40), ("write", 24)];
const ERRORS: [&str; 2] = ["EIO", "ENOSPC"];
/// What a daemon may end with over its disk: a bad file, try again, may not write.
const EXITS: [i32; 3] = [65, 75, 77];
/// A point counts when its call was really made to fail; so many of a hundred must be.
const HIT_PERCENT: u32 = 50;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Calls that are made to fail, one per run.
    #[arg(long, default_value_t = 200)]
    points: u32,
    #[command(flatten)]
    ledger: Ledger,
}

#[derive(Debug, Default, Serialize)]
struct Outcome {
    points: u32,
    /// Points whose call was made to fail.
    hit: u32,
    went_on: u32,
    /// Ends, by exit code.
    ended: BTreeMap<i32, u32>,
    acknowledged: usize,
    lost: u32,
    corrupt: u32,
    /// Ends with a code that tells an operator nothing.
    wrong_exit: u32,
    seconds: u64,
}

/// One call that fails.
#[derive(Debug, Clone, Copy)]
struct Fault {
    call: &'static str,
    error: &'static str,
    /// Which of the calls of a thread, and whether all after it fail too.
    number: u64,
    lasts: bool,
}

/// What one run led to.
struct Seen {
    hit: bool,
    /// `None` while it still answers.
    exit: Option<i32>,
    /// Jobs whose id a client was given, and whether their end was shown.
    acknowledged: BTreeMap<String, bool>,
}

/// Runs the campaign.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let seed = args.ledger.seed();
    println!("faults: {} points, seed {seed}", args.points);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut outcome = Outcome { points: args.points, ..Outcome::default() };
    for point in 0..args.points {
        let mut rng = Rng::new(seed ^ (u64::from(point) << 32));
        let fault = Fault::draw(&mut rng, point);
        let folder = tempfile::tempdir()?;
        let seen = runtime
            .block_on(one_run(folder.path(), fault, &mut rng))
            .with_context(|| format!("point {point} of seed {seed}, {fault:?}"))?;
        outcome.count(fault, &seen, folder.path())?;
    }
    outcome.seconds = started.elapsed().as_secs();
    args.ledger.add(seed, &outcome)?;
    outcome.judge()
}

impl Outcome {
    fn count(&mut self, fault: Fault, seen: &Seen, folder: &Path) -> anyhow::Result<()> {
        self.hit += u32::from(seen.hit);
        self.acknowledged += seen.acknowledged.len();
        match seen.exit {
            None => self.went_on += 1,
            Some(code) => {
                *self.ended.entry(code).or_default() += 1;
                if !EXITS.contains(&code) {
                    self.wrong_exit += 1;
                    println!("  {fault:?}: ended with {code}");
                }
            }
        }
        let held = match recover(&folder.join("home"), folder)? {
            Ok(held) => held,
            Err(said) => {
                self.corrupt += 1;
                println!("  {fault:?}: the database is corrupt: {said}");
                return Ok(());
            }
        };
        let lost = seen.acknowledged.iter().find(|(job, ended)| !held.keeps(job, **ended));
        if let Some((job, _)) = lost {
            self.lost += 1;
            println!("  {fault:?}: {job} is lost");
        }
        Ok(())
    }

    fn judge(&self) -> anyhow::Result<()> {
        if self.hit * 100 < self.points * HIT_PERCENT {
            bail!("only {} of {} calls were made to fail", self.hit, self.points);
        }
        if self.lost + self.corrupt + self.wrong_exit > 0 {
            bail!("{} lost, {} corrupt, {} ended wrongly", self.lost, self.corrupt, self.wrong_exit);
        }
        Ok(())
    }
}

impl Fault {
    /// The calls take turns, so that each kind is there in a short campaign too.
    const fn draw(rng: &mut Rng, point: u32) -> Self {
        let (call, most) = CALLS[point as usize % CALLS.len()];
        let error = ERRORS[rng.below(2) as usize];
        // Small numbers as often as large ones.
        let most = 1 + rng.below(most);
        let number = 1 + rng.below(most);
        Self { call, error, number, lasts: rng.percent(30) }
    }

    fn inject(self) -> String {
        let lasts = if self.lasts { "+" } else { "" };
        format!("inject={}:error={}:when={}{lasts}", self.call, self.error, self.number)
    }
}

async fn one_run(folder: &Path, fault: Fault, rng: &mut Rng) -> anyhow::Result<Seen> {
    let (home, trace, ready) = (folder.join("home"), folder.join("trace"), folder.join("ready"));
    std::fs::create_dir(&home)?;
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(&trace).args(["-e", "signal=none", "-e"]);
    command.arg(format!("trace={}", fault.call)).args(["-e", &fault.inject()]);
    for path in paths(&home) {
        command.arg("-P").arg(path);
    }
    command.arg(binary("rbees-orcd")).args(["--bind", "127.0.0.1:0", "--home"]).arg(&home);
    command.arg("--ready-file").arg(&ready).env("XDG_CONFIG_HOME", folder.join("config"));
    let mut daemon = Daemon::start("faulty", folder, &mut command);
    let url = url_or_end(&mut daemon, &ready).await;
    let acknowledged = match &url {
        Some(url) => {
            let _worker = start_worker(folder, url);
            load(url, rng).await?
        }
        None => BTreeMap::new(),
    };
    let exit = match &url {
        Some(url) if lives(url).await => {
            kill_process(orchestrator(&home)?, Signal::KILL)?;
            daemon.ended().await;
            None
        }
        _ => Some(daemon.ended().await.code().unwrap_or(-1)),
    };
    let hit = std::fs::read_to_string(&trace)?.contains("(INJECTED)");
    Ok(Seen { hit, exit, acknowledged })
}

/// The files and folders whose calls may fail.
fn paths(home: &Path) -> Vec<PathBuf> {
    let names = ["orchestrator.db", "orchestrator.db-wal", "orchestrator.db-shm", "prompts"];
    names.iter().map(|name| home.join(name)).collect()
}

/// Where it listens; nothing when it ended instead.
async fn url_or_end(daemon: &mut Daemon, ready: &Path) -> Option<String> {
    loop {
        if let Ok(url) = std::fs::read_to_string(ready)
            && url.ends_with('\n')
        {
            return Some(url.trim().to_owned());
        }
        if daemon.has_ended() {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn lives(url: &str) -> bool {
    let asked = async { clients::http_client().ok()?.get(format!("{url}/healthz")).send().await.ok() };
    matches!(tokio::time::timeout(CALL, asked).await, Ok(Some(answer)) if answer.status().is_success())
}

async fn load(url: &str, rng: &mut Rng) -> anyhow::Result<BTreeMap<String, bool>> {
    let http = clients::http_client()?;
    if !wait_for_worker(&http, url, CALL * 3).await {
        return Ok(BTreeMap::new());
    }
    let clients = (0..CLIENTS).map(|_| client(&http, url, Rng::new(rng.next())));
    Ok(join_all(clients).await.into_iter().flatten().collect())
}

/// One job after the other, until the orchestrator is gone. Refusals are answers too.
async fn client(http: &reqwest::Client, url: &str, mut rng: Rng) -> BTreeMap<String, bool> {
    let mut acknowledged = BTreeMap::new();
    for _ in 0..JOBS {
        let prompt = if rng.percent(20) { "bees ".repeat(LARGE / 5) } else { "Bees dance".to_owned() };
        let task = json!({
            "model": "fake-bee", "prompt": prompt, "max_tokens": 3, "on_disconnect": "continue",
        });
        let stream = rng.percent(50);
        let asked = http.post(format!("{url}/v2/tasks?stream={stream}")).json(&task).send();
        let Ok(Ok(answer)) = tokio::time::timeout(CALL, asked).await else { break };
        if !answer.status().is_success() {
            continue;
        }
        let Some(job) = answer.headers().get("x-rbees-job-id").and_then(|id| id.to_str().ok()) else {
            continue;
        };
        let job = job.to_owned();
        acknowledged.insert(job.clone(), false);
        if let Ok(Ok(events)) = tokio::time::timeout(CALL, answer.text()).await {
            acknowledged.insert(job, events.contains("event: end\n"));
        }
    }
    acknowledged
}
