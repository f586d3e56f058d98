//! The worker behind every subject of a measurement, on a CPU of its own.
//!
//! It speaks our worker protocol and OpenAI's chat, and generates nothing: each token is the time at
//! which it was written. `gap_us=N` in the prompt is the time between two tokens.

mod answer;
mod register;
mod runs;
mod server;
mod speech;

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::machine;

/// How the bench starts its mock.
#[derive(clap::Args)]
pub struct Args {
    /// The CPU to run on.
    #[arg(long)]
    cpu: usize,
    /// Where to write the address, once listening.
    #[arg(long)]
    address_file: PathBuf,
    /// An orchestrator to register at.
    #[arg(long)]
    orchestrator: Option<SocketAddr>,
    /// How many workers to be at once, each with a loopback address of its own.
    #[arg(long, default_value_t = 1)]
    workers: u16,
    /// Runs that each of them takes at once; more than any measurement opens, unless said.
    #[arg(long, default_value_t = server::SLOTS)]
    slots: u32,
}

/// Serves until it is killed.
pub fn run(args: &Args) -> anyhow::Result<()> {
    machine::pin(args.cpu)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(server::serve(args))
}
