//! `rbees`: the operator's command line. Keeps no state beyond its configuration, embeds no
//! daemon; it asks the orchestrator over HTTP and pools through `rbees-pool`.

mod cli;
mod commands;
mod config;
mod context;
mod detail;
mod signals;
mod stack;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use cli_kit::{Printer, finish};

use crate::cli::Cli;
use crate::context::Context;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer::new(cli.output.format());
    let context = match Context::new(printer, &cli.global) {
        Ok(context) => context,
        Err((printer, error)) => return finish(&printer, Err(error)),
    };
    match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => {
            let outcome = runtime.block_on(commands::run(&context, cli.command));
            // A command that still runs on another machine must not keep this program alive.
            runtime.shutdown_background();
            finish(&context.printer, outcome)
        }
        Err(error) => finish(&context.printer, Err(detail::internal(format!("no runtime: {error}")))),
    }
}
