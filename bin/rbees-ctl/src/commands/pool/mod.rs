//! `rbees pool …`: machines that run workers, here or over SSH.

mod add;
mod forward;
mod list;
mod remove;

use clap::{Args, Subcommand};

use super::Outcome;
use crate::context::Context;

/// Controls pools: this machine, or another one with `--host`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  rbees pool status\n  rbees pool models catalog --host mac\n  rbees pool models download tinyllama --host mac\n  rbees pool worker spawn --model tinyllama --host mac\n\n`rbees pool models --help` and `rbees pool worker --help` list what the pool itself can do."
)]
pub struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    #[command(visible_alias = "register")]
    Add(add::AddArgs),
    Remove(remove::RemoveArgs),
    List(list::ListArgs),
    /// Shows hardware, models and workers of a pool
    Status(forward::ForwardArgs),
    /// Catalog, downloads, verification, fit
    Models(forward::ForwardArgs),
    /// Spawns, lists and stops worker processes
    Worker(forward::ForwardArgs),
}

/// Runs one of them.
pub async fn run(context: &Context, args: PoolArgs) -> Outcome {
    match args.command {
        PoolCommand::Add(args) => add::run(context, &args).await,
        PoolCommand::Remove(args) => remove::run(context, &args).await,
        PoolCommand::List(args) => list::run(context, &args),
        PoolCommand::Status(args) => forward::run(context, "status", args).await,
        PoolCommand::Models(args) => forward::run(context, "models", args).await,
        PoolCommand::Worker(args) => forward::run(context, "worker", args).await,
    }
}
