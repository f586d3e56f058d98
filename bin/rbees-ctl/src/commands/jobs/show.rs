//! `rbees jobs show JOB`.

use cli_kit::{ExitStatus, Table};
use llama_orch_sdk::{Error, TaskView};

use super::JobArg;
use crate::commands::Outcome;
use crate::context::Context;
use crate::watch;

/// Runs it.
pub async fn run(context: &Context, args: &JobArg) -> Outcome {
    let job = context.client()?.status(args.id()?).await.map_err(Error::into_detail)?;
    context.printer.show(&job, table);
    if let (Some(result), false) = (&job.result, context.printer.is_json()) {
        context.printer.line(result);
    }
    Ok(ExitStatus::Ok)
}

fn table(job: &TaskView) -> Table {
    let mut table = Table::new(["Field", "Value"]).with_title(job.job_id.to_string());
    let mut row = |field: &str, value: Option<String>| {
        if let Some(value) = value {
            table.row([field, &value]);
        }
    };
    row("status", Some(job.status.as_str().into()));
    row("model", Some(job.model.clone()));
    row("attempt", (job.attempt > 0).then(|| job.attempt.to_string()));
    row("worker", job.worker_id.as_ref().map(ToString::to_string));
    row("queue position", job.queue_position.map(|position| position.to_string()));
    row("estimate", job.eta_ms.map(watch::expected));
    row("submitted", Some(job.submitted_at.clone()));
    row("dispatched", job.dispatched_at.clone());
    row("ended", job.ended_at.clone());
    row("figures", job.end.as_ref().map(|end| watch::figures(end, None)));
    row("error", job.error.as_ref().map(ToString::to_string));
    row("correlation id", Some(job.correlation_id.to_string()));
    table
}
