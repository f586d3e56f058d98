//! Results that are kept: one JSON line per campaign, added to a file of the repository.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

/// Where a result goes, and which build it is about.
#[derive(Debug, Clone, clap::Args)]
pub struct Ledger {
    /// Where every number of the campaign comes from; drawn from the clock when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// The file the result is added to.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// The commit that was built, for the result.
    #[arg(long, default_value = "unknown")]
    commit: String,
}

#[derive(Serialize)]
struct Line<'a, T> {
    /// Seconds since 1970.
    at: u64,
    commit: &'a str,
    seed: u64,
    /// Processes that wanted a core, as a mean over the last minute.
    load: Option<f64>,
    #[serde(flatten)]
    result: T,
}

impl Ledger {
    /// The seed to use.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| now() % 1_000_000)
    }

    /// Whether the result is kept.
    pub const fn is_kept(&self) -> bool {
        self.ledger.is_some()
    }

    /// Prints the result, and adds it to the file where one is named.
    pub fn add(&self, seed: u64, result: impl Serialize) -> anyhow::Result<()> {
        let line =
            serde_json::to_string(&Line { at: now(), commit: &self.commit, seed, load: load(), result })?;
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
