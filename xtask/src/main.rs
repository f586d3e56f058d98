//! The project's own tasks, as `cargo xtask COMMAND`.

mod bans;
mod bench;
mod chaos;
mod layers;
mod models;
mod openapi;
mod prerequisites;
mod process;
mod python;
mod release;
mod test;
mod up;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Tasks of the rbees workspace.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(up::Args),
    Test(test::Args),
    Openapi(openapi::Args),
    /// Fails when a package depends on what it must never depend on.
    Layers,
    /// Fails when a banned package is in the dependency tree.
    Bans,
    /// Fetches the real models of the tests into the cache and prints their folder.
    Models,
    Bench(bench::Args),
    Chaos(chaos::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match command {
        Command::Up(args) => return up::run(&workspace, &args),
        Command::Test(args) => return test::run(&workspace, &args),
        Command::Openapi(args) => openapi::run(&workspace, &args)?,
        Command::Layers => layers::run(&workspace)?,
        Command::Bans => bans::run(&workspace)?,
        Command::Models => println!("{}", models::ensure(&workspace)?.display()),
        Command::Bench(args) => bench::run(&workspace, &args)?,
        Command::Chaos(args) => chaos::run(&workspace, &args)?,
    }
    Ok(ExitCode::SUCCESS)
}
