//! `rbees-pool models info`.

use api_types::ErrorDetail;
use api_types::pool::CatalogModel;
use cli_kit::{Printer, Table, human_bytes};
use pool_host::Host;

use super::catalog;

pub fn run(id: &str, host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let catalog = host.catalog()?;
    let model = catalog.find(id)?;
    if printer.is_json() {
        printer.json(&catalog::as_json(model));
    } else {
        printer.table(&table(model, host));
    }
    Ok(())
}

fn table(model: &CatalogModel, host: &Host) -> Table {
    let dash = || "-".to_owned();
    let mut table = Table::new(["What", "Value"]).with_title(format!("Model {}", model.id));
    let mut row = |what: &str, value: String| table.row([what, value.as_str()]);
    row("Name", model.name.clone());
    row("Other ids", if model.aliases.is_empty() { dash() } else { model.aliases.join(", ") });
    row("Repository", model.repo.clone());
    row("Commit", model.revision.clone().unwrap_or_else(dash));
    row("Architecture", model.architecture.clone());
    row("Format", model.format.clone());
    row("Quantisation", model.quantization.clone().unwrap_or_else(dash));
    row("Context", model.context_length.map_or_else(dash, |tokens| format!("{tokens} tokens")));
    row("Downloaded", if model.downloaded { "✅ yes".to_owned() } else { "❌ no".to_owned() });
    row("Size", format!("{} ({} bytes)", human_bytes(model.size_bytes), model.size_bytes));
    for source in &model.sources {
        row("Source", source.clone());
    }
    for file in &model.files {
        let place = if model.downloaded {
            host.home().model_file(&file.path).display().to_string()
        } else {
            file.path.clone()
        };
        row("File", place);
        row("sha256", file.sha256.clone().unwrap_or_else(dash));
    }
    table
}
