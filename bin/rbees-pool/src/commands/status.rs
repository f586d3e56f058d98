//! `rbees-pool status`.

use api_types::ErrorDetail;
use api_types::pool::{Gpu, Hardware, PoolStatus};
use cli_kit::{Printer, Table, human_bytes};
use pool_host::Host;

use super::{models, worker};

pub async fn run(host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let status = host.status().await?;
    if printer.is_json() {
        printer.json(&status);
        return Ok(());
    }
    printer.table(&overview(&status));
    if !status.hardware.gpus.is_empty() {
        printer.line("");
        printer.table(&gpus(&status.hardware));
    }
    printer.line("");
    printer.table(&models::table(&status.models, &format!("Model Catalog for {}", status.host)));
    printer.line("");
    printer.table(&worker::table(&status.workers));
    status.hardware.notes.iter().for_each(|note| printer.note(format!("note: {note}")));
    Ok(())
}

fn overview(status: &PoolStatus) -> Table {
    let hardware = &status.hardware;
    let mut table = Table::new(["What", "Value"]).with_title(format!("Pool {}", status.host));
    let memory = format!(
        "{} free of {}",
        human_bytes(hardware.ram_available_bytes),
        human_bytes(hardware.ram_total_bytes)
    );
    for (what, value) in [
        ("Version", format!("{} (protocol {})", status.version, status.protocol)),
        ("Program", status.binary.clone()),
        ("Home", status.home.clone()),
        ("System", format!("{} {}", hardware.os, hardware.arch)),
        ("CPU", format!("{}, {} cores", hardware.cpu, hardware.cores)),
        ("Instructions", hardware.cpu_features.join(" ")),
        ("Memory", memory),
        ("Disk", format!("{} free", human_bytes(hardware.disk_free_bytes))),
    ] {
        table.row([what, value.as_str()]);
    }
    table
}

fn gpus(hardware: &Hardware) -> Table {
    let mut table = Table::new(["GPU", "Name", "Backend", "Free", "Total", "Used by"]).with_title("GPUs");
    for gpu in &hardware.gpus {
        table.row([
            gpu.index.to_string(),
            gpu.name.clone(),
            gpu.backend.clone(),
            human_bytes(gpu.memory_free_bytes),
            human_bytes(gpu.memory_total_bytes),
            users(gpu),
        ]);
    }
    table.with_summary(format!("Total GPUs: {}", hardware.gpus.len()))
}

fn users(gpu: &Gpu) -> String {
    let one = |process: &api_types::pool::GpuProcess| {
        let name = process.name.as_deref().unwrap_or("?");
        let whose = if process.ours { "ours" } else { "foreign" };
        format!("{} {name} ({whose})", process.pid)
    };
    let users: Vec<String> = gpu.processes.iter().map(one).collect();
    if users.is_empty() { "-".to_owned() } else { users.join(", ") }
}
