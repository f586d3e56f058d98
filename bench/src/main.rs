//! What a relay costs: rbees beside HAProxy and two LLM routers, in one run on one machine.

mod load;
mod machine;
mod mock;
mod relay;
mod report;
mod stats;
mod storage;
mod subjects;

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
    /// The worker behind whatever is measured; the bench starts it itself.
    #[command(hide = true)]
    Mock(mock::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().bench {
        Bench::Relay(args) => relay::run(&args),
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
