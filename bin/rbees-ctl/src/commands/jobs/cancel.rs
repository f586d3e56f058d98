//! `rbees jobs cancel JOB`.

use cli_kit::ExitStatus;
use llama_orch_sdk::Error;

use super::JobArg;
use crate::commands::Outcome;
use crate::context::Context;

/// Runs it.
pub async fn run(context: &Context, args: &JobArg) -> Outcome {
    let cancelled = context.client()?.cancel(args.id()?).await.map_err(Error::into_detail)?;
    if context.printer.is_json() {
        context.printer.json(&cancelled);
    } else {
        context.printer.line(format!("{} {}", cancelled.job_id, cancelled.status.as_str()));
    }
    Ok(ExitStatus::Ok)
}
