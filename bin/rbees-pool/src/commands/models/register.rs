//! `rbees-pool models register`.

use api_types::ErrorDetail;
use clap::Args;
use cli_kit::Printer;
use pool_core::Registration;
use pool_core::catalog::Registered;
use pool_host::Host;

use super::{catalog, say};

/// A model to add or change.
#[derive(Debug, Args)]
pub struct Register {
    /// Id it gets
    #[arg(long)]
    id: String,
    /// Name for people
    #[arg(long)]
    name: String,
    /// org/name on the Hub, or a reference: hf:, file:, https:, pypi:
    #[arg(long)]
    repo: String,
    /// Family of the model, for example llama
    #[arg(long)]
    architecture: String,
    /// File inside the repository [default: chosen at download]
    #[arg(long)]
    file: Option<String>,
    /// What the file must hash to
    #[arg(long)]
    sha256: Option<String>,
}

pub fn run(args: &Register, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let (outcome, model) = host.register(&Registration {
        id: args.id.clone(),
        name: args.name.clone(),
        repo: args.repo.clone(),
        architecture: args.architecture.clone(),
        file: args.file.clone(),
        sha256: args.sha256.clone(),
    })?;
    let told = match outcome {
        Registered::Created if model.downloaded => format!("{} is registered and ready", model.id),
        Registered::Created => {
            format!("{} is registered; fetch it: rbees-pool models download {}", model.id, model.id)
        }
        Registered::Updated => format!("{} is updated", model.id),
        Registered::Replaced => {
            format!(
                "{} comes from another place now; fetch it: rbees-pool models download {}",
                model.id, model.id
            )
        }
    };
    say(printer, &catalog::as_json(&model), &told);
    Ok(())
}
