//! One file per group of commands.

pub mod models;
pub mod status;
pub mod worker;

use api_types::ErrorDetail;
use cli_kit::Printer;
use pool_host::Host;

use crate::cli::Command;

/// Runs a command.
pub async fn run(command: &Command, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    match command {
        Command::Status => status::run(host, printer).await,
        Command::Models(models) => models::run(models, host, printer).await,
        Command::Worker(worker) => worker::run(worker, host, printer).await,
        Command::Remote => Err(crate::remote::nested()),
    }
}
