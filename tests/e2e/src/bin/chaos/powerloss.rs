//! What a power cut leaves: the real orchestrator is recorded while it works, and disks are made
//! up as they could be found if the power had gone at some point of the recording.

mod disk;
pub(crate) mod image;
pub(crate) mod recording;
mod trace;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Serialize;

use self::disk::{Disk, Fate};
use self::image::Checker;
use self::recording::{Prompts, Recording, Strength};
use crate::ledger::Ledger;
use crate::rng::Rng;

/// Images of the control for each hundred of the campaign, and at least so many.
const CONTROL_PERCENT: u32 = 10;
const CONTROL_LEAST: u32 = 100;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Disks to make up and start from.
    #[arg(long, default_value_t = 5_000)]
    images: u32,
    /// Jobs to hand in while recording.
    #[arg(long, default_value_t = 400)]
    jobs: u32,
    /// A development build of the orchestrator, which can be told not to sync its commits.
    #[arg(long, value_name = "FILE")]
    weak_orchestrator: std::path::PathBuf,
    #[command(flatten)]
    ledger: Ledger,
}

/// What came out of a number of images.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Tally {
    images: u32,
    /// Writes, syncs and answers that the cuts were made between.
    recorded: usize,
    acknowledged: usize,
    /// Images in which an acknowledged job was missing or had another prompt, or one that had ended
    /// was not ended.
    lost: u32,
    /// Images whose database did not open or was not sound.
    corrupt: u32,
}

#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    tally: Tally,
    control: Tally,
    seconds: u64,
}

/// Runs the campaign and its control.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let seed = args.ledger.seed();
    println!("power loss: {} images, seed {seed}", args.images);
    let tally = campaign(&Strength::AsBuilt, args.jobs, args.images, seed)?;
    println!("{tally:?}");
    let images = (args.images * CONTROL_PERCENT / 100).max(CONTROL_LEAST);
    println!("control: {images} images of an orchestrator that does not sync its commits");
    let weak = Strength::Weak(args.weak_orchestrator.clone());
    let control = campaign(&weak, args.jobs / 2, images, seed)?;
    println!("{control:?}");
    let outcome = Outcome { tally, control, seconds: started.elapsed().as_secs() };
    args.ledger.add(seed, &outcome)?;
    judge(&outcome)
}

fn judge(outcome: &Outcome) -> anyhow::Result<()> {
    if outcome.control.lost == 0 {
        bail!(
            "the control lost nothing although it does not sync its commits: \
             this test would not have seen a lost job"
        );
    }
    println!(
        "the control lost jobs in {} of {} images, as it must",
        outcome.control.lost, outcome.control.images
    );
    if outcome.tally.lost + outcome.tally.corrupt > 0 {
        bail!("{} images had lost jobs, {} were corrupt", outcome.tally.lost, outcome.tally.corrupt);
    }
    Ok(())
}

fn campaign(strength: &Strength, jobs: u32, images: u32, seed: u64) -> anyhow::Result<Tally> {
    let folder = tempfile::tempdir()?;
    let recording = Recording::make(folder.path(), strength, jobs, seed)?;
    let disk = Disk::of(&recording.trace, &recording.home);
    let mut tally = Tally {
        images,
        recorded: recording.trace.len(),
        acknowledged: disk.acknowledged_before(usize::MAX).len(),
        ..Tally::default()
    };
    if tally.acknowledged < jobs as usize / 2 {
        bail!("only {} of {jobs} jobs were acknowledged while recording", tally.acknowledged);
    }
    let (next, lost, corrupt) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| one_by_one(&disk, &recording.prompts, seed, images, &next, &lost, &corrupt))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| anyhow::anyhow!("a thread of the campaign panicked"))?
        })
    })?;
    tally.lost = lost.into_inner();
    tally.corrupt = corrupt.into_inner();
    Ok(tally)
}

fn one_by_one(
    disk: &Disk,
    prompts: &Prompts,
    seed: u64,
    images: u32,
    next: &AtomicU32,
    lost: &AtomicU32,
    corrupt: &AtomicU32,
) -> anyhow::Result<()> {
    let checker = Checker::new()?;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= images {
            return Ok(());
        }
        if number > 0 && number.is_multiple_of(500) {
            println!("  {number} of {images}");
        }
        let mut rng = Rng::new(seed ^ (u64::from(number) << 32));
        let cut = usize::try_from(rng.below(disk.len() as u64 + 1))?;
        let fate = Fate::draw(&mut rng);
        let files = disk.after(cut, fate, &mut rng);
        let found = checker.check(&files).with_context(|| format!("image {number} of seed {seed}"))?;
        let Some(held) = found else {
            corrupt.fetch_add(1, Ordering::Relaxed);
            println!("  image {number} (cut {cut}, {fate:?}) is corrupt: {}", checker.said());
            continue;
        };
        if let Some(job) = held.lacks(&disk.acknowledged_before(cut), &disk.ended_before(cut), prompts) {
            lost.fetch_add(1, Ordering::Relaxed);
            if lost.load(Ordering::Relaxed) <= 3 {
                println!("  image {number} (cut {cut}, {fate:?}) lacks {job}");
            }
        }
    }
}
