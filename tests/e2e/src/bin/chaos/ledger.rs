//! Where the result of a campaign is kept, and what it is drawn from.

use serde::Serialize;

/// See the module.
#[derive(Debug, Clone, clap::Args)]
pub struct Ledger {
    /// Where every number of the campaign comes from; drawn from the clock when absent.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    kept: campaign::Ledger,
}

#[derive(Serialize)]
struct Seeded<T> {
    seed: u64,
    #[serde(flatten)]
    result: T,
}

impl Ledger {
    /// The seed to use.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| campaign::now() % 1_000_000)
    }

    /// Whether the result is kept.
    pub const fn is_kept(&self) -> bool {
        self.kept.is_kept()
    }

    /// Prints the result, and adds it to the file where one is named.
    pub fn add(&self, seed: u64, result: impl Serialize) -> anyhow::Result<()> {
        self.kept.add(Seeded { seed, result })
    }
}
