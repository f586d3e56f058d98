//! Results that are kept: one JSON line per run, added to a file of the repository.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Where results go, and which build they are about.
#[derive(Debug, Clone, clap::Args)]
pub struct Ledger {
    /// The file that the result is added to, whether it is good or bad.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// The commit that was built, for the result.
    #[arg(long, default_value = "unknown")]
    commit: String,
}

impl Ledger {
    /// Adds a result to the file, where one is named.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&self, mut result: Value) -> anyhow::Result<()> {
        let Some(path) = &self.ledger else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        result["at"] = json!(now.as_secs());
        result["commit"] = json!(self.commit);
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(writeln!(file, "{result}")?)
    }
}
