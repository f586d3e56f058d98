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
pub mod world;

use bugs::Bug;
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
}

/// Runs one seed.
///
/// # Errors
/// Never for a world that can be built; the ids in it are constants.
pub fn run_seed(seed: u64, bug: Option<Bug>, verbose: bool) -> anyhow::Result<Outcome> {
    let mut world = World::new(seed, bug, verbose)?;
    world.run();
    Ok(Outcome { seed, failures: world.checks.failures, hash: world.trace.hash, counts: world.counts })
}

/// The seeds of `seeds.txt`: one a line, `#` begins a comment.
///
/// # Errors
/// When a line holds something else.
pub fn kept_seeds() -> anyhow::Result<Vec<u64>> {
    let lines = KEPT_SEEDS.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(|line| Ok(line.parse()?)).collect()
}
