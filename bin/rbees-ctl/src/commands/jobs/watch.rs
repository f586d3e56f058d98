//! `rbees jobs watch JOB`.

use clap::Args;
use llama_orch_sdk::Error;

use crate::commands::Outcome;
use crate::context::Context;
use crate::watch::{self, OnInterrupt, Telling};

/// Shows a job's answer from its beginning and follows it to its end
#[derive(Debug, Args)]
pub struct WatchArgs {
    #[command(flatten)]
    job: super::JobArg,
    /// Only what comes behind the event with this id
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
}

/// Runs it.
pub async fn run(context: &Context, args: &WatchArgs) -> Outcome {
    let client = context.client()?;
    let events = client.events(args.job.id()?, args.after).await.map_err(Error::into_detail)?;
    let watched =
        watch::show(&context.printer, &client, events, None, Telling::All, OnInterrupt::Leave).await?;
    Ok(watch::status(&watched))
}
