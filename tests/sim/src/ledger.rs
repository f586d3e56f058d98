//! Results that are kept: one JSON line per run, printed, and added to a file of the repository.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;
use sim::checks::reasons::Reasons;

/// Where a result goes, and which build it is about.
#[derive(Debug, Clone, clap::Args)]
pub struct Ledger {
    /// The file the result is added to.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// The commit that was built, for the result.
    #[arg(long, default_value = "unknown")]
    commit: String,
}

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

#[derive(Serialize)]
struct Line<'a, T> {
    /// Seconds since 1970.
    at: u64,
    commit: &'a str,
    /// What was done.
    run: &'a str,
    /// Processes that wanted a core, as a mean over the last minute.
    load: Option<f64>,
    seconds: u64,
    #[serde(flatten)]
    result: T,
}

impl Ledger {
    /// Prints a result that took so many seconds, and adds it to the file where one is named.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&self, run: &str, seconds: u64, result: impl Serialize) -> anyhow::Result<()> {
        let line = Line { at: now(), commit: &self.commit, run, load: load(), seconds, result };
        let line = serde_json::to_string(&line)?;
        println!("{line}");
        let Some(path) = &self.ledger else { return Ok(()) };
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(writeln!(file, "{line}")?)
    }
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}
