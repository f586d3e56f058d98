//! `rbees-pool worker …`.

mod cleanup;
mod list;
mod logs;
mod spawn;
mod stop;

use api_types::ErrorDetail;
use clap::Subcommand;
use cli_kit::Printer;
use pool_host::Host;

pub use list::table;

/// Worker processes.
#[derive(Debug, Subcommand)]
pub enum Worker {
    /// Start a worker and wait until it is ready
    Spawn(spawn::Spawn),
    /// Show the workers as they are
    List,
    /// End a worker
    Stop(stop::Stop),
    /// End all workers
    StopAll(stop::StopAll),
    /// Show the last lines of a worker's log
    Logs(logs::Logs),
    /// Bring the records in line with the processes
    Cleanup,
}

pub async fn run(command: &Worker, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    match command {
        Worker::Spawn(args) => spawn::run(args, host, printer).await,
        Worker::List => list::run(host, printer),
        Worker::Stop(args) => stop::one(args, host, printer).await,
        Worker::StopAll(_) => stop::all(host, printer).await,
        Worker::Logs(args) => logs::run(args, host, printer),
        Worker::Cleanup => cleanup::run(host, printer),
    }
}
