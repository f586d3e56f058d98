//! A seeded world around the brain: faults in, broken promises out.
//!
//! The brain is the real one, and so is the language of its policies. The driver, the disk, the relay,
//! the workers, the pools, the operator, the clients and the network between them are small models that
//! fail in every way the plan of a seed says. The same seed always gives the same run, to the last byte
//! of its trace.

pub mod bugs;
pub mod carry;
pub mod checks;
pub mod client;
pub mod daemon;
pub mod disk;
pub mod faults;
pub mod journal;
pub mod operator;
pub mod plan;
pub mod pools;
pub mod relay;
pub mod rng;
pub mod scripts;
pub mod sim_worker;
pub mod store;
mod tamper;
pub mod twins;
pub mod world;

use bugs::Bug;
use checks::reasons::Reasons;
use plan::Plan;
use world::{Counts, World};

/// Seeds that failed once; always run.
pub const KEPT_SEEDS: &str = include_str!("../seeds.txt");

/// What came of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Broken promises, the first few.
    pub failures: Vec<String>,
    /// A hash over every event and step.
    pub hash: u64,
    /// What happened how often.
    pub counts: Counts,
    /// Why jobs were placed where they were.
    pub reasons: Reasons,
}

/// Runs one seed.
///
/// # Errors
/// Never for a world that can be built; the ids in it are constants.
pub fn run_seed(seed: u64, bug: Option<Bug>, verbose: bool) -> anyhow::Result<Outcome> {
    run_plan(Plan::of(seed), seed, bug, verbose)
}

/// Runs the fleet of a seed.
///
/// # Errors
/// As [`run_seed`].
pub fn run_fleet(seed: u64, verbose: bool) -> anyhow::Result<Outcome> {
    run_plan(Plan::fleet(seed), seed, None, verbose)
}

fn run_plan(plan: Plan, seed: u64, bug: Option<Bug>, verbose: bool) -> anyhow::Result<Outcome> {
    let mut world = World::of(plan, seed, bug, verbose)?;
    world.run();
    let (failures, hash) = (world.checks.failures, world.trace.hash);
    Ok(Outcome { seed, failures, hash, counts: world.counts, reasons: world.reasons })
}

/// The seeds of `seeds.txt`: one a line, `#` begins a comment.
///
/// # Errors
/// When a line holds something else.
pub fn kept_seeds() -> anyhow::Result<Vec<u64>> {
    let lines = KEPT_SEEDS.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(|line| Ok(line.parse()?)).collect()
}
