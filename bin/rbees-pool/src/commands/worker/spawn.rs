//! `rbees-pool worker spawn`.

use api_types::pool::{SpawnRequest, WorkerRecord};
use api_types::{ErrorDetail, PoolId, WorkerId};
use clap::Args;
use cli_kit::{Printer, human_bytes};
use pool_core::spawn::agree;
use pool_host::Host;

/// A worker to start.
#[derive(Debug, Args)]
pub struct Spawn {
    /// cpu, cuda, metal, vulkan or fake [default: what the machine has]
    #[arg(value_name = "BACKEND")]
    positional: Option<String>,
    /// The same as a flag
    #[arg(long)]
    backend: Option<String>,
    /// Id of the model, a reference, or fake:NAME [default: the only one downloaded]
    #[arg(long)]
    model: Option<String>,
    /// Reference of the model; give this or --model
    #[arg(long, conflicts_with = "model")]
    model_ref: Option<String>,
    /// Number of the GPU [default: 0]
    #[arg(long)]
    gpu: Option<u32>,
    /// Backend and GPU as a text, such as cuda:1
    #[arg(long)]
    device: Option<String>,
    /// Id to give it [default: drawn]
    #[arg(long)]
    worker_id: Option<WorkerId>,
    /// Port [default: the lowest free one of 8001 to 8999]
    #[arg(long)]
    port: Option<u16>,
    /// Jobs at once [default: 4]
    #[arg(long)]
    slots: Option<u32>,
    /// Tokens of context per job [default: the model's, at most 4096]
    #[arg(long)]
    context: Option<u32>,
    /// Threads of the engine [default: all cores]
    #[arg(long)]
    threads: Option<u32>,
    /// Address of the orchestrator where it registers
    #[arg(long, alias = "orchestrator-url")]
    orchestrator: Option<String>,
    /// Name of this pool in the orchestrator's registry
    #[arg(long)]
    pool_id: Option<PoolId>,
    /// Let the orchestrator unload it when it is idle or another model needs its memory
    #[arg(long, requires = "orchestrator")]
    evictable: bool,
    /// Seconds it may take to be ready
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
}

pub async fn run(args: &Spawn, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let record = host.spawn(&request(args)?).await?;
    if printer.is_json() {
        printer.json(&record);
    } else {
        printer.line(told(&record));
    }
    Ok(())
}

fn request(args: &Spawn) -> Result<SpawnRequest, ErrorDetail> {
    Ok(SpawnRequest {
        backend: agree(args.positional.clone(), args.backend.clone())?,
        model: args.model.clone(),
        model_ref: args.model_ref.clone(),
        gpu_id: args.gpu,
        device: args.device.clone(),
        worker_id: args.worker_id.clone(),
        slots: args.slots,
        context: args.context,
        threads: args.threads,
        port: args.port,
        orchestrator: args.orchestrator.clone(),
        pool_id: args.pool_id.clone(),
        evictable: args.evictable,
    })
}

fn told(record: &WorkerRecord) -> String {
    let memory = match (record.predicted_bytes, record.measured_bytes) {
        (Some(predicted), Some(measured)) => {
            format!("; memory predicted {}, measured {}", human_bytes(predicted), human_bytes(measured))
        }
        (Some(predicted), None) => format!("; memory predicted {}", human_bytes(predicted)),
        (None, Some(measured)) => format!("; memory measured {}", human_bytes(measured)),
        (None, None) => String::new(),
    };
    let place = record.uri.as_deref().unwrap_or("an unknown address");
    format!("{} is ready at {place} with {}{memory}", record.worker_id, record.model)
}
