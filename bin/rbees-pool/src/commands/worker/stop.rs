//! `rbees-pool worker stop` and `stop-all`.

use api_types::ErrorDetail;
use api_types::pool::WorkerRecord;
use clap::Args;
use cli_kit::Printer;
use pool_host::Host;
use serde_json::{Value, json};

/// A worker to end.
#[derive(Debug, Args)]
pub struct Stop {
    /// Its id, or the beginning of it
    id: String,
    /// Seconds it may take to end by itself before it is killed
    #[arg(long, default_value_t = 30)]
    pub grace: u64,
}

/// All workers, to end.
#[derive(Debug, Args)]
pub struct StopAll {
    /// Seconds they may take to end by themselves before they are killed
    #[arg(long, default_value_t = 30)]
    pub grace: u64,
}

pub async fn one(args: &Stop, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let (worker, killed) = host.stop(&args.id).await?;
    if printer.is_json() {
        printer.json(&as_json(&worker, killed));
    } else {
        printer.line(told(&worker, killed));
    }
    Ok(())
}

pub async fn all(host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let stopped = host.stop_all().await?;
    if printer.is_json() {
        let stopped: Vec<Value> = stopped.iter().map(|(worker, killed)| as_json(worker, *killed)).collect();
        printer.json(&json!({ "stopped": stopped }));
        return Ok(());
    }
    stopped.iter().for_each(|(worker, killed)| printer.line(told(worker, *killed)));
    printer.line(format!("Total stopped: {}", stopped.len()));
    Ok(())
}

fn as_json(worker: &WorkerRecord, killed: bool) -> Value {
    json!({ "worker_id": worker.worker_id, "killed": killed })
}

fn told(worker: &WorkerRecord, killed: bool) -> String {
    let how = if killed { "was killed, because it did not end by itself" } else { "has ended" };
    format!("{} {how}", worker.worker_id)
}
