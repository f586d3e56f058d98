//! `rbees workers …`: the orchestrator's registry.

use api_types::{ErrorCode, ErrorDetail, WorkerId};
use clap::{Args, Subcommand};
use cli_kit::{ExitStatus, Table, human_bytes, human_duration};
use llama_orch_sdk::{Client, Error, WorkerList, WorkerView};

use super::Outcome;
use crate::context::Context;

/// Lists, shows and drains the workers the orchestrator knows
#[derive(Debug, Args)]
pub struct WorkersArgs {
    #[command(subcommand)]
    command: Option<WorkersCommand>,
}

#[derive(Debug, Subcommand)]
enum WorkersCommand {
    /// Lists all workers
    List,
    /// Shows one worker
    Show(WorkerArg),
    /// Lets a worker finish its jobs and end
    Drain(WorkerArg),
}

#[derive(Debug, Args)]
struct WorkerArg {
    /// The worker, or how its id begins
    worker: String,
}

/// Runs one of them.
pub async fn run(context: &Context, args: WorkersArgs) -> Outcome {
    let client = context.client()?;
    let workers = client.workers().await.map_err(Error::into_detail)?;
    match args.command {
        None | Some(WorkersCommand::List) => {
            context.printer.show(&workers, table);
            Ok(ExitStatus::Ok)
        }
        Some(WorkersCommand::Show(arg)) => {
            context.printer.show(find(&workers, &arg.worker)?, details);
            Ok(ExitStatus::Ok)
        }
        Some(WorkersCommand::Drain(arg)) => {
            drain(context, &client, &find(&workers, &arg.worker)?.facts.worker_id).await
        }
    }
}

async fn drain(context: &Context, client: &Client, worker: &WorkerId) -> Outcome {
    client.drain_worker(worker).await.map_err(Error::into_detail)?;
    if context.printer.is_json() {
        context.printer.json(&serde_json::json!({ "worker_id": worker, "state": "draining" }));
    } else {
        context.printer.line(format!("{worker} draining"));
    }
    Ok(ExitStatus::Ok)
}

/// The only worker whose id begins like this.
fn find<'a>(workers: &'a WorkerList, prefix: &str) -> Result<&'a WorkerView, ErrorDetail> {
    let id = |worker: &WorkerView| worker.facts.worker_id.as_str().to_owned();
    if let Some(exact) = workers.workers.iter().find(|worker| id(worker) == prefix) {
        return Ok(exact);
    }
    let mut matching = workers.workers.iter().filter(|worker| id(worker).starts_with(prefix));
    match (matching.next(), matching.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => {
            Err(ErrorDetail::new(ErrorCode::WorkerNotFound, format!("no worker's id begins with `{prefix}`"))
                .with_hint("rbees workers list"))
        }
        (Some(one), Some(other)) => {
            let message = format!("`{prefix}` could mean {} or {}", id(one), id(other));
            Err(ErrorDetail::new(ErrorCode::AmbiguousId, message).with_hint("give more of the id"))
        }
    }
}

/// The registry as a table.
pub fn table(list: &WorkerList) -> Table {
    let mut table = Table::new(["ID", "State", "Model", "Backend", "Pool", "Busy", "Last seen", "Kept"])
        .with_summary(format!("Total workers: {}", list.workers.len()));
    for worker in &list.workers {
        let pool = worker.facts.pool_id.as_ref().map_or("-", |pool| pool.as_str());
        let busy = format!("{} of {}", worker.slots_busy, worker.facts.slots);
        let seen = human_duration(std::time::Duration::from_millis(worker.last_seen_ms));
        let facts = &worker.facts;
        table.row([
            facts.worker_id.as_str(),
            &state(worker),
            &facts.model,
            &facts.backend,
            pool,
            &busy,
            &seen,
            &kept(worker),
        ]);
    }
    table
}

fn details(worker: &WorkerView) -> Table {
    let facts = &worker.facts;
    let mut table = Table::new(["Field", "Value"]).with_title(facts.worker_id.to_string());
    for (field, value) in [
        ("state", state(worker)),
        ("model", facts.model.clone()),
        ("address", facts.uri.clone()),
        ("backend", facts.backend.clone()),
        ("devices", facts.devices.join(", ")),
        ("slots", format!("{} of {} busy", worker.slots_busy, facts.slots)),
        ("context", format!("{} tokens per job", facts.context_length)),
        (
            "memory",
            format!(
                "{} on the device, {} in the process",
                human_bytes(facts.vram_bytes),
                human_bytes(facts.ram_bytes)
            ),
        ),
        ("kept", kept(worker)),
        ("protocol errors", worker.protocol_errors.to_string()),
        ("capabilities", facts.capabilities.join(", ")),
        ("engine", facts.engine.clone()),
        ("version", facts.version.clone()),
        ("incarnation", worker.incarnation.to_string()),
    ] {
        table.row([field, &value]);
    }
    table
}

/// How long it stays: for ever when pinned, else until it was idle for long or is in another's way.
pub fn kept(worker: &WorkerView) -> String {
    let span = |ms| human_duration(std::time::Duration::from_millis(ms));
    match (worker.pinned, worker.idle_ms, worker.unload_in_ms) {
        (true, _, _) => "pinned".to_owned(),
        (false, Some(idle), Some(left)) => {
            format!("on demand, idle {}, unload in {}", span(idle), span(left))
        }
        (false, Some(idle), None) => format!("on demand, idle {}", span(idle)),
        (false, None, _) => "on demand".to_owned(),
    }
}

fn state(worker: &WorkerView) -> String {
    let word = serde_json::to_value(worker.state)
        .ok()
        .and_then(|word| word.as_str().map(str::to_owned))
        .unwrap_or_default();
    match worker.quarantined_ms.map(std::time::Duration::from_millis) {
        None => word,
        Some(left) => format!("{word}, quarantined for {}", human_duration(left)),
    }
}
