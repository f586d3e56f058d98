//! Where the result of a campaign is kept.

use std::path::PathBuf;

use e2e::ledger;
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

impl Ledger {
    /// The seed to use.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| ledger::now() % 1_000_000)
    }

    /// Whether the result is kept.
    pub const fn is_kept(&self) -> bool {
        self.ledger.is_some()
    }

    /// Prints the result, and adds it to the file where one is named.
    pub fn add(&self, seed: u64, result: impl Serialize) -> anyhow::Result<()> {
        ledger::add(self.ledger.as_deref(), &self.commit, Some(seed), result)
    }
}
