//! `rbees pool list`: the pools of the configuration.

use std::path::Path;

use api_types::ErrorDetail;
use clap::Args;
use cli_kit::{ExitStatus, Table};

use crate::commands::Outcome;
use crate::config::Config;
use crate::context::Context;
use crate::detail;

/// Lists the pools that were added
#[derive(Debug, Args)]
pub struct ListArgs {}

/// Runs it.
pub fn run(context: &Context, _args: &ListArgs) -> Outcome {
    if context.printer.is_json() {
        context.printer.json(&serde_json::json!({ "pools": context.config.pools }));
    } else {
        context.printer.table(&table(&context.config));
    }
    Ok(ExitStatus::Ok)
}

fn table(config: &Config) -> Table {
    let mut table = Table::new(["Name", "Address", "Repository"])
        .with_summary(format!("Total pools: {}, and this machine", config.pools.len()));
    for (id, pool) in &config.pools {
        table.row([id.as_str(), &pool.address, pool.repo_dir.as_deref().unwrap_or("-")]);
    }
    table
}

/// Puts a new text in the place of the configuration, whole or not at all.
pub fn write_config(path: &Path, text: &str) -> Result<(), ErrorDetail> {
    let failed = |error: std::io::Error| detail::file("written", path, &error);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let beside = path.with_extension("toml.new");
    std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, path)).map_err(failed)
}
