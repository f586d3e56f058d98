//! `rbees-pool worker list`.

use api_types::ErrorDetail;
use api_types::pool::{RecordState, WorkerRecord};
use api_types::worker::WorkerStatus;
use cli_kit::{Printer, Table};
use pool_host::Host;
use serde_json::json;

pub fn run(host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let workers = host.workers()?;
    if printer.is_json() {
        printer.json(&json!({ "workers": workers }));
    } else {
        printer.table(&table(&workers));
    }
    if workers.iter().any(|worker| worker.state == RecordState::Gone) && !printer.is_json() {
        printer.note("workers that are gone are removed by: rbees-pool worker cleanup");
    }
    Ok(())
}

/// The table of workers.
pub fn table(workers: &[WorkerRecord]) -> Table {
    let mut table =
        Table::new(["ID", "Backend", "Model", "Port", "PID", "Status"]).with_title("Active Workers");
    for worker in workers {
        table.row([
            worker.worker_id.to_string(),
            worker.backend.clone(),
            worker.model.clone(),
            worker.port.map_or_else(|| "-".to_owned(), |port| port.to_string()),
            worker.process.pid.to_string(),
            status(worker).to_owned(),
        ]);
    }
    table.with_summary(format!("Total workers: {}", workers.len()))
}

fn status(worker: &WorkerRecord) -> &'static str {
    match (worker.state, worker.reported) {
        (RecordState::Gone, _) => "Gone",
        (RecordState::Stopping, _) => "Stopping",
        (_, Some(WorkerStatus::Draining)) => "Draining",
        (_, Some(WorkerStatus::Failed)) => "Failed",
        (RecordState::Ready, _) => "Running",
        (RecordState::Spawned, _) => "Loading",
    }
}
