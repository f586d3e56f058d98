//! `rbees down`: stops what runs on this home.

use clap::Args;
use cli_kit::ExitStatus;
use serde::Serialize;

use super::Outcome;
use crate::context::Context;
use crate::stack::lock::{Holder, holder};
use crate::stack::{stop, worker};

/// Stops the workers of this machine's pool, then the orchestrator
#[derive(Debug, Args)]
pub struct DownArgs {}

#[derive(Debug, Serialize)]
struct Stopped {
    /// The orchestrator that was stopped.
    orchestrator: Option<String>,
}

/// Runs it. Running it again is fine.
pub async fn run(context: &Context, _args: &DownArgs) -> Outcome {
    let home = context.home()?;
    worker::stop_all(&context.local_pool()?).await?;
    let orchestrator = match holder(&home)? {
        Holder::Running(running) => {
            stop::stop(&home, &running).await?;
            Some(running.url)
        }
        Holder::Nobody | Holder::Starting => None,
    };
    if context.printer.is_json() {
        context.printer.json(&Stopped { orchestrator });
    } else {
        context.printer.note(orchestrator.map_or_else(
            || "no orchestrator runs on this home; its workers are stopped".to_owned(),
            |url| format!("the workers and the orchestrator at {url} are stopped"),
        ));
    }
    Ok(ExitStatus::Ok)
}
