//! `cargo xtask test`: everything that must hold, stage by stage.

mod nextest;
mod stage;
mod suite;

use std::process::ExitCode;

use crate::workspace::Workspace;

/// Runs the tests; `all` is what a change must pass.
#[derive(clap::Args)]
pub struct Args {
    /// Which part.
    #[arg(value_enum, default_value_t = Suite::All)]
    suite: Suite,
    /// Run the later stages even after one failed.
    #[arg(long)]
    keep_going: bool,
}

/// A part of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Suite {
    /// Formatting, lints, layers, bans, unit and integration tests of a development build.
    Fast,
    /// The release build with the native engine: simulation, end-to-end, the real model.
    Release,
    /// Both of these.
    All,
    /// Both of these, with a longer simulation and the tests that take long.
    Long,
}

/// The exit code is 1 when a stage failed.
pub fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<ExitCode> {
    let mut runner = stage::Runner::new(args.keep_going);
    suite::run(workspace, args.suite, &mut runner);
    Ok(if runner.summarise() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
