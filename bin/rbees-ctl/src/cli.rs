//! The command line as a whole; each command's own arguments are in its file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use cli_kit::OutputArgs;

use crate::commands::{completions, doctor, down, jobs, models, policy, pool, run, status, up, workers};

/// Turns the machines you own into one LLM inference service.
#[derive(Debug, Parser)]
#[command(name = "rbees", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Start here:\n  rbees up                                     a model, an orchestrator and a worker\n  rbees run smollm2-135m \"Why do bees dance?\"   ask it something\n  rbees status                                 what runs\n\nExit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 5 unreachable, 75 try again, 130 interrupted"
)]
pub struct Cli {
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct GlobalArgs {
    /// Address of the orchestrator [default: http://127.0.0.1:8080]
    #[arg(
        long,
        visible_alias = "orchestrator",
        alias = "orchestrator-url",
        env = "RBEES_ENDPOINT",
        global = true,
        help_heading = "Global options",
        value_name = "URL"
    )]
    pub endpoint: Option<String>,
    /// State root of this machine [default: $XDG_DATA_HOME/rbees]
    #[arg(long, env = "RBEES_HOME", global = true, help_heading = "Global options", value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Configuration file [default: $XDG_CONFIG_HOME/rbees/rbees.toml]
    #[arg(long, global = true, help_heading = "Global options", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Up(up::UpArgs),
    Down(down::DownArgs),
    Status(status::StatusArgs),
    Doctor(doctor::DoctorArgs),
    Run(run::RunArgs),
    Jobs(jobs::JobsArgs),
    Models(models::ModelsArgs),
    Workers(workers::WorkersArgs),
    Pool(pool::PoolArgs),
    Policy(policy::PolicyArgs),
    Completions(completions::CompletionsArgs),
}
