//! What rbees costs and is worth: beside HAProxy, LLM routers, PostgreSQL and llama-server, and its
//! placements by themselves.

mod load;
mod machine;
mod mock;
mod placement;
mod queue;
mod relay;
mod report;
mod stats;
mod storage;
mod subjects;
mod variants;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Benches of rbees.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    Relay(relay::Args),
    /// What a decision costs, and what routing by prefixes is worth.
    Placement(placement::Args),
    Queue(queue::Args),
    Worker(worker::Args),
    /// The worker behind whatever is measured; the bench starts it itself.
    #[command(hide = true)]
    Mock(mock::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().bench {
        Bench::Relay(args) => relay::run(&args),
        Bench::Placement(args) => placement::run(&args),
        Bench::Queue(args) => queue::run(&args),
        Bench::Worker(args) => worker::run(&args),
        Bench::Mock(args) => mock::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
