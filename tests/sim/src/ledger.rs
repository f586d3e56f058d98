//! What runs of the simulation leave in the ledger.

use serde::Serialize;
use sim::checks::reasons::Reasons;

/// What many seeds gave.
#[derive(Debug, Default, Serialize)]
pub struct Sweep {
    /// The first seed.
    pub from: u64,
    /// Seeds from there on that were run.
    pub seeds: u64,
    /// Seeds of `seeds.txt` that were run besides.
    pub kept_seeds: u64,
    /// Seeds in which a promise was broken.
    pub violations: u64,
    /// The first of them, and what was broken.
    pub first_violation: Option<(u64, String)>,
    /// Faults with an effect, of all seeds.
    pub faults: u64,
    /// The fewest of them in one seed.
    pub faults_min: u64,
    /// Crashes of the orchestrator.
    pub crashes: u64,
    /// Workers that were started on demand.
    pub spawns: u64,
    /// Workers that were taken away.
    pub unloads: u64,
    /// Answers that policies failed to give.
    pub policy_failures: u64,
    /// Jobs that a full disk refused.
    pub withdrawn: u64,
    /// Seeds that were run twice.
    pub rerun: u64,
    /// Of these, how many gave another trace.
    pub rerun_differ: u64,
    /// A hash over the traces of all.
    pub trace: String,
}

/// Which planted bugs were found, with the seed each.
#[derive(Debug, Default, Serialize)]
pub struct Hunt {
    /// The first seed.
    pub from: u64,
    /// Seeds within which each is to be found.
    pub within: u64,
    /// Planted.
    pub bugs: usize,
    /// Found, with the seed that did.
    pub found: Vec<(String, u64)>,
    /// Not found.
    pub missed: Vec<String>,
}

/// What the reasons of fleets gave.
#[derive(Debug, Default, Serialize)]
pub struct Why {
    /// The first seed.
    pub from: u64,
    /// Fleets that were run.
    pub fleets: u64,
    /// Placements, their grounds, and how many follow from what was written down of them.
    #[serde(flatten)]
    pub reasons: Reasons,
    /// Workers that were taken away.
    pub evicted: u64,
    /// Answers that policies failed to give.
    pub policy_failures: u64,
    /// Fleets in which a promise was broken.
    pub violations: u64,
    /// Steps of the same fleets under the default policy, built in and as a script.
    pub twin_steps: u64,
    /// Placements among them.
    pub twin_placements: u64,
    /// Fleets in which the two forms decided differently.
    pub twins_differ: u64,
}

/// A run of the simulation: what was done, how long it took, what it gave.
#[derive(Debug, Serialize)]
pub struct Run<'a, T> {
    /// What was done.
    pub run: &'a str,
    /// How long it took.
    pub seconds: u64,
    /// What it gave.
    #[serde(flatten)]
    pub result: T,
}
