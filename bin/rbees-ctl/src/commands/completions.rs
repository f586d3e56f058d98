//! `rbees completions SHELL`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use cli_kit::ExitStatus;

use super::Outcome;
use crate::cli::Cli;
use crate::context::Context;

/// Prints completions for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  rbees completions bash > ~/.local/share/bash-completion/completions/rbees"
)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs it.
pub fn run(context: &Context, args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rbees", &mut script);
    context.printer.bytes(&script);
    Ok(ExitStatus::Ok)
}
