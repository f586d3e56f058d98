//! `rbees-pool worker logs`.

use api_types::ErrorDetail;
use clap::Args;
use cli_kit::Printer;
use pool_host::Host;
use serde_json::json;

/// A worker's log.
#[derive(Debug, Args)]
pub struct Logs {
    /// Its id, or the beginning of it; the whole id for one that is gone
    id: String,
    /// How many of the last lines
    #[arg(short = 'n', long, default_value_t = 100)]
    lines: usize,
}

pub fn run(args: &Logs, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let (path, lines) = host.logs(&args.id, args.lines)?;
    if printer.is_json() {
        printer.json(&json!({ "path": path.to_string_lossy(), "lines": lines }));
    } else {
        lines.iter().for_each(|line| printer.line(line));
    }
    Ok(())
}
