//! `rbees-pool worker cleanup`.

use api_types::ErrorDetail;
use cli_kit::Printer;
use pool_core::reconcile::Action;
use pool_host::Host;
use serde_json::{Value, json};

pub fn run(host: &Host, printer: &Printer) -> Result<(), ErrorDetail> {
    let actions = host.cleanup()?;
    if printer.is_json() {
        let actions: Vec<Value> = actions.iter().map(as_json).collect();
        printer.json(&json!({ "actions": actions }));
        return Ok(());
    }
    actions.iter().for_each(|action| printer.line(told(action)));
    printer.line(format!("Total repairs: {}", actions.len()));
    Ok(())
}

fn as_json(action: &Action) -> Value {
    let (what, record) = match action {
        Action::Refresh(record) => ("refreshed", record),
        Action::Remove(record) => ("removed", record),
        Action::Adopt(record) => ("adopted", record),
    };
    json!({ "action": what, "worker_id": record.worker_id })
}

fn told(action: &Action) -> String {
    match action {
        Action::Refresh(record) => format!("{}: the record is up to date again", record.worker_id),
        Action::Remove(record) => format!("{}: its process is gone; the record is removed", record.worker_id),
        Action::Adopt(record) => format!("{}: it ran without a record and has one now", record.worker_id),
    }
}
