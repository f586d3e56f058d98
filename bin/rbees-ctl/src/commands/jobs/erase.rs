//! `rbees jobs erase JOB` and `rbees jobs erase --all`.

use clap::Args;
use cli_kit::ExitStatus;
use llama_orch_sdk::Error;

use super::job_id;
use crate::commands::Outcome;
use crate::context::Context;

/// Erases ended jobs: record, events and result
///
/// No prompt and no completion is left on the orchestrator's disk. Its journal keeps what it recorded of
/// the jobs until it is old enough to be dropped: counts, keyed hashes, and the names you gave (models,
/// sessions, correlation ids).
#[derive(Debug, Args)]
pub struct EraseArgs {
    /// The job, `job_…`
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    job: Option<String>,
    /// Every job that has ended; the others stay
    #[arg(long)]
    all: bool,
}

/// Runs it.
pub async fn run(context: &Context, args: &EraseArgs) -> Outcome {
    let client = context.client()?;
    let erased = match &args.job {
        Some(job) => client.erase(job_id(job)?).await,
        None => client.erase_ended().await,
    };
    let erased = erased.map_err(Error::into_detail)?;
    if context.printer.is_json() {
        context.printer.json(&erased);
    } else {
        let jobs = if erased.erased == 1 { "job" } else { "jobs" };
        context.printer.line(format!("{} {jobs} erased", erased.erased));
    }
    Ok(ExitStatus::Ok)
}
