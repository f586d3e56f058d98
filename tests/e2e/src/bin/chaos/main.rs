//! Campaigns that break the real orchestrator again and again, and count what was lost.

mod faults;
mod kill;
mod ledger;
mod overload;
mod powerloss;
mod rng;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chaos campaigns. `cargo xtask chaos` builds what they need and runs them.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    campaign: Campaign,
}

#[derive(Subcommand)]
enum Campaign {
    /// Has one system call on the database fail per run; every acknowledged job must be there after.
    Faults(faults::Args),
    /// Kills the orchestrator at random points under load; every acknowledged job must end once.
    Kill(kill::Args),
    /// Asks for more than the fleet can do; what is taken in must keep its promises.
    Overload(overload::Args),
    /// Cuts the power at random points of a recording; every acknowledged job must be on the disk.
    Powerloss(powerloss::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().campaign {
        Campaign::Faults(args) => faults::run(&args),
        Campaign::Kill(args) => kill::run(&args),
        Campaign::Overload(args) => overload::run(&args),
        Campaign::Powerloss(args) => powerloss::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
