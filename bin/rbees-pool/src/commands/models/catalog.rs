//! `rbees-pool models catalog` and `list`.

use api_types::ErrorDetail;
use api_types::pool::CatalogModel;
use cli_kit::{Printer, Table, human_gb};
use pool_host::{Host, facts};
use serde_json::{Value, json};

/// Shows all models, or those whose files are here.
pub fn show(host: &Host, printer: &Printer, downloaded_only: bool) -> Result<(), ErrorDetail> {
    let mut models = host.catalog()?.models;
    models.retain(|model| model.downloaded || !downloaded_only);
    if printer.is_json() {
        let models: Vec<Value> = models.iter().map(as_json).collect();
        printer.json(&json!({ "models": models }));
        return Ok(());
    }
    let what = if downloaded_only { "Downloaded Models on" } else { "Model Catalog for" };
    printer.table(&table(&models, &format!("{what} {}", facts::host_name())));
    Ok(())
}

/// The table of models.
pub fn table(models: &[CatalogModel], title: &str) -> Table {
    let mut table = Table::new(["ID", "Name", "Downloaded", "Size"]).with_title(title);
    for model in models {
        let (mark, bytes) = if model.downloaded { ("✅ yes", model.size_bytes) } else { ("❌ no", 0) };
        table.row([model.id.as_str(), &model.name, mark, &human_gb(bytes)]);
    }
    table.with_summary(format!("Total models: {}", models.len()))
}

/// An entry with its size in gigabytes beside the exact one.
pub fn as_json(model: &CatalogModel) -> Value {
    let mut value = json!(model);
    if let Some(entry) = value.as_object_mut() {
        entry.insert("size_gb".to_owned(), json!((model.size_bytes as f64 / 1e8).round() / 10.0));
    }
    value
}
