//! One file per command: its help, its arguments, what it does.

pub mod completions;
pub mod doctor;
pub mod down;
pub mod jobs;
pub mod models;
pub mod policy;
pub mod pool;
pub mod run;
pub mod status;
pub mod up;
pub mod workers;

use api_types::ErrorDetail;
use cli_kit::ExitStatus;

use crate::cli::Command;
use crate::context::Context;

/// What a command ends with.
pub type Outcome = Result<ExitStatus, ErrorDetail>;

/// Runs a command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Up(args) => up::run(context, &args).await,
        Command::Down(args) => down::run(context, &args).await,
        Command::Status(args) => status::run(context, &args).await,
        Command::Doctor(args) => doctor::run(context, &args).await,
        Command::Run(args) => run::run(context, args).await,
        Command::Jobs(args) => jobs::run(context, args).await,
        Command::Models(args) => models::run(context, &args).await,
        Command::Workers(args) => workers::run(context, args).await,
        Command::Pool(args) => pool::run(context, args).await,
        Command::Policy(args) => policy::run(context, args).await,
        Command::Completions(args) => completions::run(context, &args),
    }
}
