//! `rbees-pool models …`.

mod catalog;
mod fit;
mod info;
mod register;

use api_types::pool::CatalogModel;
use api_types::{ErrorCode, ErrorDetail};
use clap::{Args, Subcommand};
use cli_kit::{Printer, human_bytes};
use pool_host::Host;
use serde_json::json;

pub use catalog::table;

/// Catalog, downloads and checks of models.
#[derive(Debug, Subcommand)]
pub enum Models {
    /// Show all models that are known
    Catalog,
    /// Show the models that are downloaded
    List,
    /// Add a model to the catalog, or change one
    Register(register::Register),
    /// Take a model out of the catalog; its files stay
    Unregister(Id),
    /// Fetch a model's files, go on with half a download, check every hash
    Download(Download),
    /// Hash every file of a model again
    Verify(Id),
    /// Show everything about a model
    Info(Id),
    /// Remove a model's files; it stays in the catalog
    Delete(Id),
    /// Tell whether a model fits in memory
    Fit(fit::FitArgs),
}

/// A model by id.
#[derive(Debug, Args)]
pub struct Id {
    /// Id or other name of the model
    id: String,
}

/// What to download.
#[derive(Debug, Args)]
pub struct Download {
    /// Id, or a reference such as hf:org/repo::file=path
    model: String,
}

pub async fn run(command: &Models, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    match command {
        Models::Catalog => catalog::show(host, printer, false),
        Models::List => catalog::show(host, printer, true),
        Models::Register(new) => register::run(new, host, printer),
        Models::Unregister(Id { id }) => unregister(id, host, printer),
        Models::Download(Download { model }) => download(model, host, printer).await,
        Models::Verify(Id { id }) => verify(id, host, printer).await,
        Models::Info(Id { id }) => info::run(id, host, printer),
        Models::Delete(Id { id }) => delete(id, host, printer),
        Models::Fit(args) => fit::run(args, host, printer).await,
    }
}

fn unregister(id: &str, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let model = host.unregister(id)?;
    let told = format!("{} is no longer in the catalog; its files stay where they are", model.id);
    say(printer, &catalog::as_json(&model), &told);
    Ok(())
}

async fn download(model: &str, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let model = host.download(model).await?;
    let told = format!("{} is downloaded and verified: {}", model.id, human_bytes(model.size_bytes));
    say(printer, &catalog::as_json(&model), &told);
    Ok(())
}

async fn verify(id: &str, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let verified = host.verify(id).await?;
    if !verified.ok {
        let message = format!("{} is not whole: {}", verified.id, verified.problems.join("; "));
        return Err(ErrorDetail::new(ErrorCode::ChecksumMismatch, message)
            .with_details(json!(verified.problems))
            .with_hint(format!("rbees-pool models download {}", verified.id)));
    }
    say(printer, &json!(verified), &format!("{} is whole: every file has its size and sha256", verified.id));
    Ok(())
}

fn delete(id: &str, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let (model, freed): (CatalogModel, u64) = host.delete(id)?;
    let told = match freed {
        0 => {
            format!("{} is marked as not downloaded; there was no file of the pool's own to remove", model.id)
        }
        bytes => format!("the files of {} are removed: {} are free again", model.id, human_bytes(bytes)),
    };
    say(printer, &json!({ "id": model.id, "freed_bytes": freed }), &told);
    Ok(())
}

/// One JSON value, or one sentence.
fn say(printer: &Printer, value: &serde_json::Value, told: &str) {
    if printer.is_json() {
        printer.json(value);
    } else {
        printer.line(told);
    }
}
