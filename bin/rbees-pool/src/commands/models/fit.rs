//! `rbees-pool models fit`.

use api_types::ErrorDetail;
use api_types::pool::{Fit, SpawnRequest};
use clap::Args;
use cli_kit::{Printer, Table, human_bytes};
use pool_host::Host;

/// A worker that could be started.
#[derive(Debug, Args)]
pub struct FitArgs {
    /// Id of the model
    id: String,
    /// cpu, cuda, metal or vulkan [default: what the machine has]
    #[arg(long)]
    backend: Option<String>,
    /// Number of the GPU
    #[arg(long)]
    gpu: Option<u32>,
    /// The same as a text, such as cuda:1
    #[arg(long)]
    device: Option<String>,
    /// Jobs at once
    #[arg(long)]
    slots: Option<u32>,
    /// Tokens of context per job
    #[arg(long)]
    context: Option<u32>,
}

pub async fn run(args: &FitArgs, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let request = SpawnRequest {
        backend: args.backend.clone(),
        model: Some(args.id.clone()),
        gpu_id: args.gpu,
        device: args.device.clone(),
        slots: args.slots,
        context: args.context,
        ..SpawnRequest::default()
    };
    printer.show(&host.fit(&request).await?, table);
    Ok(())
}

fn table(fit: &Fit) -> Table {
    let mut table =
        Table::new(["What", "Bytes", "About"]).with_title(format!("{} on {}", fit.model, fit.device));
    let kv = format!("KV cache, {} slots of {} tokens", fit.slots, fit.context);
    for (what, bytes) in [
        ("Weights", fit.weights_bytes),
        (kv.as_str(), fit.kv_bytes),
        ("Buffers and process", fit.overhead_bytes),
        ("Needed", fit.needed_bytes),
        ("Left alone", fit.margin_bytes),
        ("Free", fit.free_bytes),
    ] {
        table.row([what, &bytes.to_string(), &human_bytes(bytes)]);
    }
    table.row(["Fits", if fit.fits { "✅ yes" } else { "❌ no" }, ""]);
    table
}
