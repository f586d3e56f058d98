//! `rbees models`: what can be served.

use clap::Args;
use cli_kit::{ExitStatus, Table};
use llama_orch_sdk::{Error, ModelList};

use super::Outcome;
use crate::context::Context;

/// Lists the models that can be served, where they lie and where they run
#[derive(Debug, Args)]
pub struct ModelsArgs {}

/// Runs it.
pub async fn run(context: &Context, _args: &ModelsArgs) -> Outcome {
    let models = context.client()?.models().await.map_err(Error::into_detail)?;
    context.printer.show(&models, table);
    Ok(ExitStatus::Ok)
}

fn table(list: &ModelList) -> Table {
    let mut table = Table::new(["ID", "Ready", "Context", "Workers", "Pools"])
        .with_summary(format!("Total models: {}", list.models.len()));
    for model in &list.models {
        let context = model.context_length.map_or_else(|| "-".to_owned(), |length| length.to_string());
        let pools: Vec<_> = model.pools.iter().map(|pool| pool.as_str()).collect();
        let pools = if pools.is_empty() { "-".to_owned() } else { pools.join(", ") };
        let ready = if model.ready { "yes" } else { "no" };
        table.row([model.id.as_str(), ready, &context, &model.workers.len().to_string(), &pools]);
    }
    table
}
