//! More is asked of the real program than its fleet can do.
//!
//! Paced workers have a rate that no busy machine changes. It is measured with as many clients as keep
//! every slot busy; then jobs come at five times that rate, and at twice that rate with deadlines. What
//! ends, how fast refusals come, and whether promises to those taken in hold is counted by the clients;
//! how many estimates held is read from the metrics that operators see.

mod load;

use std::time::{Duration, Instant};

use anyhow::bail;
use e2e::{Cluster, Engine, WorkerOptions};
use serde::Serialize;

use self::load::{Load, Sample};
use crate::ledger::Ledger;

const WORKERS: u32 = 2;
const SLOTS: u32 = 8;
/// Milliseconds for one token of every slot.
const PACE_MS: u32 = 10;
/// Jobs that may wait.
const QUEUE: u32 = 64;
/// How long everything that was taken in may take to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Goodput at five times the load, in hundredths of the best.
const GOODPUT_PERCENT: f64 = 90.0;
/// Admitted jobs that must keep their deadline at twice the load, in hundredths.
const KEPT_PERCENT: f64 = 95.0;
/// Jobs that end inside their p90, in hundredths.
const INSIDE_P90_PERCENT: (f64, f64) = (85.0, 95.0);
/// Longest time to a refusal (99th percentile), in milliseconds. Only a campaign whose result is kept
/// is judged by it: elsewhere the machine may be busy.
const REFUSAL_MS: f64 = 50.0;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How long each load lasts.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    #[command(flatten)]
    ledger: Ledger,
}

#[derive(Debug, Serialize)]
struct Outcome {
    seconds: u32,
    /// Jobs that ended per second with every slot busy and nobody refused.
    peak_per_s: f64,
    flood: Flood,
    deadlines: Deadlines,
}

/// At five times the load.
#[derive(Debug, Serialize)]
struct Flood {
    offered: usize,
    refused: usize,
    goodput_per_s: f64,
    goodput_percent: f64,
    refusal_p50_ms: f64,
    refusal_p99_ms: f64,
}

/// At twice the load, each job with a deadline.
#[derive(Debug, Serialize)]
struct Deadlines {
    offered: usize,
    admitted: usize,
    kept_percent: f64,
    estimated: u64,
    inside_p90_percent: f64,
}

/// Runs the campaign.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let seed = args.ledger.seed();
    let outcome = runtime.block_on(campaign(args.seconds, seed))?;
    args.ledger.add(seed, &outcome)?;
    judge(&outcome, args.ledger.is_kept())
}

async fn campaign(seconds: u32, seed: u64) -> anyhow::Result<Outcome> {
    println!("overload: {seconds} s each, seed {seed}");
    let cluster = fleet().await;
    let load = Load::new(&cluster, Duration::from_secs(seconds.into()))?;
    let peak_per_s = peak(&load, seed).await?;
    println!("  {peak_per_s:.1} jobs per second with every slot busy");
    let flood = flood(&load, peak_per_s, seed ^ 1).await?;
    println!("  {flood:?}");
    let deadlines = deadlines(&load, peak_per_s, seed ^ 2).await?;
    println!("  {deadlines:?}");
    Ok(Outcome { seconds, peak_per_s, flood, deadlines })
}

async fn fleet() -> Cluster {
    let mut cluster = Cluster::prepared(Engine::Fake, |folder| {
        let folder = folder.join("config/rbees");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("orchestrator.toml"), format!("queue_capacity = {QUEUE}\n"))
            .expect("a file");
    })
    .await;
    for _ in 0..WORKERS {
        let model = Some(format!("fake:fake-bee?seed=7&pace_ms={PACE_MS}&context=2048"));
        cluster.add_worker(WorkerOptions { slots: Some(SLOTS), model, ..WorkerOptions::default() }).await;
    }
    cluster
}

/// Every slot is busy and some jobs wait, but nobody is refused.
async fn peak(load: &Load, seed: u64) -> anyhow::Result<f64> {
    let before = load.completed().await?;
    let started = Instant::now();
    load.keep_busy(usize::try_from(2 * WORKERS * SLOTS)?, seed).await?;
    let rate = (load.completed().await? - before) / started.elapsed().as_secs_f64();
    load.drain(PATIENCE).await?;
    Ok(rate)
}

async fn flood(load: &Load, peak_per_s: f64, seed: u64) -> anyhow::Result<Flood> {
    let before = load.completed().await?;
    let started = Instant::now();
    let samples = load.offer(5.0 * peak_per_s, None, seed).await?;
    let goodput_per_s = (load.completed().await? - before) / started.elapsed().as_secs_f64();
    load.drain(PATIENCE).await?;
    let mut refusals: Vec<f64> =
        samples.iter().filter(|sample| sample.job.is_none()).map(|sample| sample.answered_ms).collect();
    Ok(Flood {
        offered: samples.len(),
        refused: refusals.len(),
        goodput_per_s,
        goodput_percent: 100.0 * goodput_per_s / peak_per_s,
        refusal_p50_ms: percentile(&mut refusals, 50),
        refusal_p99_ms: percentile(&mut refusals, 99),
    })
}

/// What comes in the first third teaches the estimates how busy the fleet is, and is not judged.
async fn deadlines(load: &Load, peak_per_s: f64, seed: u64) -> anyhow::Result<Deadlines> {
    let limits = Some((1_000, 6_000));
    load.shortened(3).offer(2.0 * peak_per_s, limits, seed).await?;
    let (estimated, inside) = load.estimates().await?;
    let samples = load.offer(2.0 * peak_per_s, limits, seed ^ 4).await?;
    load.drain(PATIENCE).await?;
    let (all_estimated, all_inside) = load.estimates().await?;
    let admitted: Vec<&Sample> = samples.iter().filter(|sample| sample.job.is_some()).collect();
    let mut kept = 0;
    for sample in &admitted {
        kept += usize::from(load.kept_deadline(sample).await?);
    }
    Ok(Deadlines {
        offered: samples.len(),
        admitted: admitted.len(),
        kept_percent: percent(kept, admitted.len()),
        estimated: all_estimated - estimated,
        inside_p90_percent: percent(
            usize::try_from(all_inside - inside)?,
            usize::try_from(all_estimated - estimated)?,
        ),
    })
}

fn judge(outcome: &Outcome, is_kept: bool) -> anyhow::Result<()> {
    let Outcome { flood, deadlines, .. } = outcome;
    if flood.refused == 0 || deadlines.admitted == deadlines.offered || deadlines.admitted == 0 {
        bail!("nothing was shown: {flood:?}, {deadlines:?}");
    }
    if flood.goodput_percent < GOODPUT_PERCENT {
        bail!("goodput fell to {:.1} % of the best", flood.goodput_percent);
    }
    if deadlines.kept_percent < KEPT_PERCENT {
        bail!("{:.1} % of the admitted kept their deadline", deadlines.kept_percent);
    }
    if !is_kept {
        return Ok(());
    }
    let (least, most) = INSIDE_P90_PERCENT;
    if !(least..=most).contains(&deadlines.inside_p90_percent) {
        bail!("{:.1} % ended inside their p90", deadlines.inside_p90_percent);
    }
    if flood.refusal_p99_ms > REFUSAL_MS {
        bail!("a refusal took {:.1} ms (p99)", flood.refusal_p99_ms);
    }
    Ok(())
}

/// The value that so many of a hundred do not exceed; 0 of none.
fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get((values.len() * percent / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

#[allow(clippy::cast_precision_loss, reason = "counts of jobs are small")]
fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}
