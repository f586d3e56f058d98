//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use cli_kit::OutputArgs;

use crate::commands::{models, worker};

/// Models, hardware and worker processes of this machine
#[derive(Debug, Parser)]
#[command(name = "rbees-pool", version)]
pub struct Args {
    /// Folder of this pool's files [default: RBEES_HOME, else $XDG_DATA_HOME/rbees]
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show version, hardware, models and workers
    Status,
    /// Catalog, downloads and checks of models
    #[command(subcommand)]
    Models(models::Models),
    /// Worker processes
    #[command(subcommand)]
    Worker(worker::Worker),
    /// Run the arguments of one JSON request on standard input
    Remote,
}

impl Command {
    /// How long a spawn may take, where the command says so.
    pub fn timeout(&self) -> Option<Duration> {
        match self {
            Self::Worker(worker::Worker::Spawn(spawn)) => Some(Duration::from_secs(spawn.timeout)),
            _ => None,
        }
    }

    /// How long a stop waits before it kills, where the command says so.
    pub fn grace(&self) -> Option<Duration> {
        match self {
            Self::Worker(worker::Worker::Stop(stop)) => Some(Duration::from_secs(stop.grace)),
            Self::Worker(worker::Worker::StopAll(stop)) => Some(Duration::from_secs(stop.grace)),
            _ => None,
        }
    }
}
