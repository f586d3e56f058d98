//! Results of long campaigns that are kept: one JSON line each, added to a file of the repository.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;

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

#[derive(Serialize)]
struct Line<'a, T> {
    /// Seconds since 1970.
    at: u64,
    commit: &'a str,
    /// Processes that wanted a core, as a mean over the last minute.
    load: Option<f64>,
    #[serde(flatten)]
    result: T,
}

impl Ledger {
    /// For a test, which has no command line: the file `name` in the folder `RBEES_TEST_LEDGER`, as the
    /// result of the commit `RBEES_TEST_COMMIT`. Without them the result is only printed.
    pub fn of_test(name: &str) -> Self {
        let folder = std::env::var_os("RBEES_TEST_LEDGER").map(PathBuf::from);
        Self {
            ledger: folder.map(|folder| folder.join(format!("{name}.jsonl"))),
            commit: std::env::var("RBEES_TEST_COMMIT").unwrap_or_else(|_| "unknown".to_owned()),
        }
    }

    /// Whether the result is kept.
    pub const fn is_kept(&self) -> bool {
        self.ledger.is_some()
    }

    /// Prints a result, and adds it to the file where one is named.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&self, result: impl Serialize) -> anyhow::Result<()> {
        let line = Line { at: now(), commit: &self.commit, load: load(), result };
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

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}
