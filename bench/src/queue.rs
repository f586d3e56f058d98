//! `bench queue`: how fast tasks are taken in when each is durable before it is acknowledged, beside
//! INSERT into PostgreSQL on the same disk and CPU; and whether a long queue makes it slower.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::load::{ClosedLoop, Connection, Target, Throughput};
use crate::machine;
use crate::relay::{CONNECTIONS, fresh};
use crate::stats::median;
use crate::subjects::{Kind, Programs, Setup, Subject, postgres};

/// Measures durable submissions per second.
#[derive(clap::Args)]
pub struct Args {
    /// One short round: shows that everything runs, its figures mean little.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    postgres: postgres::Programs,
}

/// Jobs of the long queue.
const LONG: usize = 100_000;
/// A prompt that keeps the worker's only slot for as long as the bench lasts.
const FOR_EVER: &str = "gap_us=3600000000";

/// One round's figures.
struct Round {
    /// With a queue that was empty before.
    short: Throughput,
    /// With a long queue.
    long: Throughput,
    /// PostgreSQL.
    inserts: Option<postgres::Inserts>,
}

/// Runs it: the server alone on one CPU, clients on the other.
pub fn run(args: &Args) -> anyhow::Result<()> {
    machine::allow_many_sockets(4_096)?;
    machine::pin(machine::LOAD_CPU)?;
    let folder = tempfile::tempdir().context("making a folder for the daemons")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let load_before = machine::load_average();
    let (rounds, length, duration) = if args.quick { (1, 2_000, 1) } else { (3, LONG, 3) };
    let mut seen = Vec::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let folder = fresh(folder.path(), "round")?;
        seen.push(runtime.block_on(measure(args, &folder, length, Duration::from_secs(duration)))?);
    }
    println!(
        "{}; load average before the run {load_before:.1}. Medians of {rounds} rounds.\n",
        machine::describe()
    );
    print(&seen, length);
    Ok(())
}

async fn measure(args: &Args, folder: &Path, length: usize, duration: Duration) -> anyhow::Result<Round> {
    let closed = ClosedLoop { connections: CONNECTIONS, warm_up: Duration::from_millis(300), duration };
    let one_slot = Setup { mock: vec!["--slots".to_owned(), "1".to_owned()], configuration: None };
    let subject = Subject::with(Kind::RbeesDurable, &args.programs, folder, &one_slot).await?;
    let task = subject.submission_of(FOR_EVER);
    let short = closed.run(&task, subject.pid()).await.context("a short queue")?;
    fill(&task, length).await.context("filling the queue")?;
    let long = closed.run(&task, subject.pid()).await.context("a long queue")?;
    drop(subject);
    let inserts = match postgres::inserts(&args.postgres, &fresh(folder, "postgres")?, CONNECTIONS, duration)
    {
        Ok(inserts) => Some(inserts),
        Err(error) => {
            eprintln!("PostgreSQL is left out: {error:#}");
            None
        }
    };
    Ok(Round { short, long, inserts })
}

/// Submits `count` tasks.
async fn fill(task: &Target, count: usize) -> anyhow::Result<()> {
    let mut loops = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = Connection::open(task.address).await?;
        let task = task.clone();
        loops.push(tokio::spawn(async move {
            for _ in 0..count / CONNECTIONS {
                connection.call(&task.path, task.body.clone()).await?;
            }
            anyhow::Ok(())
        }));
    }
    for one in loops {
        one.await??;
    }
    Ok(())
}

fn print(rounds: &[Round], length: usize) {
    let over = |pick: &dyn Fn(&Round) -> Option<f64>| {
        median(&rounds.iter().filter_map(pick).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let row = |name: &str, rate: f64, p50: f64, p99: f64| {
        println!("| {name:<42} | {rate:>9.0} | {p50:>8.0} | {p99:>8.0} |")
    };
    println!("| {:<42} | per second | p50 us   | p99 us   |", "32 clients, each durable when answered");
    println!("| {} | ---------: | -------: | -------: |", "-".repeat(42));
    let (short, long) =
        (over(&|round| Some(round.short.per_second)), over(&|round| Some(round.long.per_second)));
    row(
        "POST /v2/tasks, from an empty queue",
        short,
        over(&|r| Some(r.short.p50_us)),
        over(&|r| Some(r.short.p99_us)),
    );
    row(
        &format!("POST /v2/tasks, {length} more jobs queued"),
        long,
        over(&|r| Some(r.long.p50_us)),
        over(&|r| Some(r.long.p99_us)),
    );
    let rate = over(&|r| r.inserts.map(|seen| seen.per_second));
    row(
        "PostgreSQL, INSERT of as many bytes",
        rate,
        over(&|r| r.inserts.map(|seen| seen.p50_us)),
        over(&|r| r.inserts.map(|seen| seen.p99_us)),
    );
    println!("\nsubmissions / INSERT: {:.2}; long queue / short queue: {:.2}", short / rate, long / short);
    println!("CPU per submission: {:.1} us", over(&|round| Some(round.short.cpu_us)));
}
