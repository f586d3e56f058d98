//! Results that are kept: one JSON line each, added to a file of the repository.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;

#[derive(Serialize)]
struct Line<'a, T> {
    /// Seconds since 1970.
    at: u64,
    commit: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Processes that wanted a core, as a mean over the last minute.
    load: Option<f64>,
    #[serde(flatten)]
    result: T,
}

/// Prints a result, and adds it to `file` where one is named.
///
/// # Errors
/// When the file cannot be written.
pub fn add(
    file: Option<&Path>,
    commit: &str,
    seed: Option<u64>,
    result: impl Serialize,
) -> anyhow::Result<()> {
    let line = serde_json::to_string(&Line { at: now(), commit, seed, load: load(), result })?;
    println!("{line}");
    let Some(path) = file else { return Ok(()) };
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    Ok(writeln!(file, "{line}")?)
}

/// As [`add`], for a test: to the file `name` in the folder `RBEES_TEST_LEDGER`, as the result of the
/// commit `RBEES_TEST_COMMIT`. Without them it is only printed.
///
/// # Errors
/// When the file cannot be written.
pub fn add_of_test(name: &str, result: impl Serialize) -> anyhow::Result<()> {
    let folder = std::env::var_os("RBEES_TEST_LEDGER").map(PathBuf::from);
    let commit = std::env::var("RBEES_TEST_COMMIT").unwrap_or_else(|_| "unknown".to_owned());
    add(folder.map(|folder| folder.join(format!("{name}.jsonl"))).as_deref(), &commit, None, result)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}
