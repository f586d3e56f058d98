//! `bench relay`: every subject in one run, in several rounds, each round in another order.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::load::{ClosedLoop, IdleStreams, OPENING, Paced, Throughput, paced};
use crate::machine;
use crate::report::{self, Report};
use crate::storage::{self, Floor};
use crate::subjects::{Kind, Programs, Subject};
use crate::variants::{self, Shares};

/// Measures added latency, requests per second, CPU per relayed token, memory per idle stream and
/// durable submissions per second.
#[derive(clap::Args)]
pub struct Args {
    /// One short round: shows that everything runs, its figures mean little.
    #[arg(long)]
    quick: bool,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Rewrite the figures in `bench/README.md`.
    #[arg(long)]
    update: bool,
    /// Only these, for example `haproxy,rbees-memory`; `direct` is always measured.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Kind>,
    #[command(flatten)]
    programs: Programs,
}

/// How much is measured.
pub struct Plan {
    rounds: usize,
    warm_up: Duration,
    duration: Duration,
    idle_streams: usize,
}

/// Connections of the rate and submission loops.
pub const CONNECTIONS: usize = 32;
/// Connections of the crowded loop.
pub const CROWD: usize = 256;
/// Size of a long prompt, in bytes, and how many are on their way at once.
pub const LONG_PROMPT: usize = 220_000;
const LONG_CONNECTIONS: usize = 8;
/// Paced streams at once.
pub const STREAMS: u32 = 64;
/// Time between two tokens of a paced stream.
pub const GAP: Duration = Duration::from_millis(10);
/// Longer than any idle stream stays open.
const IDLE_GAP: Duration = Duration::from_secs(3_600);
/// Sockets of the bench and of each subject.
const SOCKETS: u64 = 16_384;

const FULL: Plan = Plan {
    rounds: 3,
    warm_up: Duration::from_millis(300),
    duration: Duration::from_millis(1_500),
    idle_streams: 1_000,
};

const QUICK: Plan = Plan {
    rounds: 1,
    warm_up: Duration::from_millis(100),
    duration: Duration::from_millis(400),
    idle_streams: 200,
};

/// One subject in one round.
pub struct Round {
    /// One connection, one token.
    pub single: Throughput,
    /// 32 connections, one token.
    pub loaded: Throughput,
    /// 256 connections, one token.
    pub crowded: Throughput,
    /// 8 connections, 220 KB of prompt, one token; not where each prompt goes into the database.
    pub long: Option<Throughput>,
    /// 64 streams, one token each 10 ms.
    pub paced: Paced,
    /// 32 connections that submit and do not wait for results; ours only.
    pub submissions: Option<Throughput>,
}

/// All that was seen.
#[derive(Default)]
pub struct Measured {
    /// By subject, in the order of the rounds.
    pub rounds: BTreeMap<Kind, Vec<Round>>,
    /// Bytes of the subject's memory per idle stream.
    pub idle_bytes: BTreeMap<Kind, f64>,
    /// rbees beside itself, at 32 connections.
    pub shares: Shares,
    /// By round.
    pub floors: Vec<Floor>,
    /// What was left out, and why.
    pub problems: Vec<(Kind, String)>,
}

/// Runs it on two CPUs: the subject alone on one, mock and load on the other.
pub fn run(args: &Args) -> anyhow::Result<()> {
    machine::allow_many_sockets(SOCKETS)?;
    machine::pin(machine::LOAD_CPU)?;
    let plan = if args.quick { QUICK } else { FULL };
    let folder = tempfile::tempdir().context("making a folder for the daemons")?;
    let load_before = machine::load_average();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(args, &plan, folder.path()))?;
    let report = Report::new(&measured, plan.rounds, plan.idle_streams, load_before);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report::markdown(&report));
    }
    if args.update {
        report::update_section("relay", &report::markdown(&report))?;
    }
    if let Some((kind, problem)) = measured.problems.iter().find(|(kind, _)| kind.is_rbees()) {
        bail!("{} was not measured: {problem}", kind.name());
    }
    Ok(())
}

async fn measure(args: &Args, plan: &Plan, folder: &Path) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| *kind == Kind::Direct || args.only.is_empty() || args.only.contains(kind))
        .collect();
    let mut subjects = Vec::new();
    for kind in kinds {
        match Subject::start(kind, &args.programs, folder).await {
            Ok(subject) => subjects.push(subject),
            Err(error) => measured.problems.push((kind, format!("{error:#}"))),
        }
    }
    for round in 0..plan.rounds {
        eprintln!("round {} of {}", round + 1, plan.rounds);
        measured.floors.push(storage::measure(&fresh(folder, &format!("floor-{round}"))?, plan.duration)?);
        measure_round(plan, &subjects, round, &mut measured).await;
    }
    drop(subjects);
    eprintln!("idle streams");
    measure_idle(args, plan, folder, &mut measured).await?;
    if measured.rounds.contains_key(&Kind::RbeesMemory) {
        eprintln!("a fleet, a script, watchers");
        let load = variants::load(plan.warm_up, plan.duration);
        match variants::measure(&args.programs, folder, plan.rounds, &load).await {
            Ok(shares) => measured.shares = shares,
            Err(error) => measured.problems.push((Kind::RbeesMemory, format!("beside itself: {error:#}"))),
        }
    }
    Ok(measured)
}

async fn measure_round(plan: &Plan, subjects: &[Subject], round: usize, measured: &mut Measured) {
    for index in 0..subjects.len() {
        // Another one goes first in each round.
        let Some(subject) = subjects.get((index + round * 2) % subjects.len()) else { continue };
        if measured.problems.iter().any(|(kind, _)| *kind == subject.kind) {
            continue;
        }
        match measure_subject(plan, subject).await {
            Ok(seen) => measured.rounds.entry(subject.kind).or_default().push(seen),
            Err(error) => measured.problems.push((subject.kind, format!("{error:#}"))),
        }
    }
}

async fn measure_subject(plan: &Plan, subject: &Subject) -> anyhow::Result<Round> {
    let closed = |connections| ClosedLoop { connections, warm_up: plan.warm_up, duration: plan.duration };
    let one_token = subject.chat(1, 0, false);
    let single = closed(1).run(&one_token, subject.pid()).await.context("one connection")?;
    let loaded = closed(CONNECTIONS).run(&one_token, subject.pid()).await.context("32 connections")?;
    let crowded = closed(CROWD).run(&one_token, subject.pid()).await.context("256 connections")?;
    let mut long = None;
    if subject.kind != Kind::RbeesDurable {
        let load = closed(LONG_CONNECTIONS).run(&subject.long_chat(LONG_PROMPT), subject.pid()).await;
        long = Some(load.context("long prompts")?);
    }
    let stream = subject.chat(tokens_for(plan), u64::try_from(GAP.as_micros())?, true);
    let paced = paced(&stream, subject.pid(), STREAMS, plan.duration).await.context("paced streams")?;
    let mut submissions = None;
    if subject.kind.is_rbees() {
        let submit = closed(CONNECTIONS).run(&subject.submission(), subject.pid()).await;
        submissions = Some(submit.context("submissions")?);
    }
    Ok(Round { single, loaded, crowded, long, paced, submissions })
}

/// Enough tokens to outlast the opening of all streams and the measurement.
fn tokens_for(plan: &Plan) -> u32 {
    let life = plan.duration + OPENING * 2;
    u32::try_from(life.as_millis() / GAP.as_millis()).unwrap_or(u32::MAX)
}

/// Each on a fresh process: memory that an allocator kept from earlier loads would hide the cost.
async fn measure_idle(
    args: &Args,
    plan: &Plan,
    folder: &Path,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    let kinds: Vec<Kind> = measured.rounds.keys().copied().collect();
    for kind in kinds {
        match idle(kind, args, plan, &fresh(folder, "idle")?).await {
            Ok(bytes) => {
                measured.idle_bytes.insert(kind, bytes);
            }
            Err(error) => measured.problems.push((kind, format!("idle streams: {error:#}"))),
        }
    }
    Ok(())
}

async fn idle(kind: Kind, args: &Args, plan: &Plan, folder: &Path) -> anyhow::Result<f64> {
    let subject = Subject::start(kind, &args.programs, folder).await?;
    let target = subject.chat(2, u64::try_from(IDLE_GAP.as_micros())?, true);
    // The first streams pay for what is allocated once.
    let _first = IdleStreams::open(&target, 10).await?;
    let before = machine::resident_bytes(subject.pid());
    let _open = IdleStreams::open(&target, plan.idle_streams).await?;
    tokio::time::sleep(plan.warm_up).await;
    let grown = machine::resident_bytes(subject.pid()).saturating_sub(before);
    Ok(grown as f64 / plan.idle_streams as f64)
}

/// An empty folder.
pub fn fresh(folder: &Path, name: &str) -> anyhow::Result<std::path::PathBuf> {
    let path = folder.join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path)?;
    }
    std::fs::create_dir_all(&path)?;
    Ok(path)
}
