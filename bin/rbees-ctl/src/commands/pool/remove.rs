//! `rbees pool remove NAME`.

use api_types::PoolId;
use api_types::{ErrorCode, ErrorDetail};
use clap::Args;
use cli_kit::ExitStatus;

use crate::commands::Outcome;
use crate::config::{Config, without_pool};
use crate::context::Context;
use crate::detail;

/// Forgets a pool; its workers and models stay as they are
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Its name or address
    name: String,
}

/// Runs it.
pub async fn run(context: &Context, args: &RemoveArgs) -> Outcome {
    let (id, _) = context.config.pool(&args.name).ok_or_else(|| {
        ErrorDetail::new(ErrorCode::PoolNotFound, format!("there is no pool `{}`", args.name))
            .with_hint("rbees pool list")
    })?;
    forget(context, id)?;
    if let Ok(client) = context.client()
        && let Err(error) = client.remove_pool(id).await
    {
        context.printer.warn(format!("the orchestrator was not told: {error}"));
    }
    context.printer.note(format!("pool {id} is forgotten"));
    Ok(ExitStatus::Ok)
}

fn forget(context: &Context, id: &PoolId) -> Result<(), ErrorDetail> {
    let path = &context.config_path;
    let text = std::fs::read_to_string(path).map_err(|error| detail::file("read", path, &error))?;
    let by_hand = || {
        detail::config(format!("{} holds pool {id} in a form that is not edited by itself", path.display()))
            .with_hint(format!("take pools.{id} out of {} by hand", path.display()))
    };
    let shorter = without_pool(&text, id).ok_or_else(by_hand)?;
    let mut expected = context.config.clone();
    expected.pools.remove(id);
    if Config::parse(&shorter, path)? != expected {
        return Err(by_hand());
    }
    super::list::write_config(path, &shorter)
}
