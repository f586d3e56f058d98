//! A failure as people and programs read it.

use std::io::Write;
use std::process::ExitCode;

use api_types::{ErrorCode, ErrorDetail};
use clap::builder::styling::AnsiColor;

use crate::printer::{labelled, note};
use crate::{ExitStatus, Printer};

/// Tells a failure on standard error and gives its exit status.
///
/// For people: `error:` what and why, then `next:` the command to run. Under `--json`: the error
/// body of the HTTP API on one line, so that a program reads one shape everywhere.
pub fn report(printer: &Printer, error: &ErrorDetail) -> ExitStatus {
    if printer.is_json() {
        report_json(error);
    } else {
        report_text(error);
    }
    error.into()
}

/// The end of `main`: an outcome becomes an exit code, a failure is told first. A command whose data
/// could not be written has failed.
pub fn finish(printer: &Printer, outcome: Result<ExitStatus, ErrorDetail>) -> ExitCode {
    let outcome = match (outcome, printer.lost()) {
        (Ok(ExitStatus::Ok), Some(error)) => {
            let message = format!("standard output could not be written: {error}");
            Err(ErrorDetail::new(ErrorCode::StorageFailed, message)
                .with_hint("make room where the output goes, then run the command again"))
        }
        (outcome, _) => outcome,
    };
    outcome.unwrap_or_else(|error| report(printer, &error)).into()
}

fn report_json(error: &ErrorDetail) {
    if let Ok(line) = serde_json::to_string(&error.clone().into_body()) {
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

fn report_text(error: &ErrorDetail) {
    labelled("error", AnsiColor::Red, &format!("{} [{}]", error.message, error.code));
    if let Some(field) = &error.field {
        note(&format!("field: {field}"));
    }
    if let Some(hint) = &error.hint {
        labelled("next", AnsiColor::Cyan, hint);
    }
    if let Some(ms) = error.retry_after_ms {
        note(&format!("try again in {} s", ms.div_ceil(1000)));
    }
    if let Some(id) = &error.correlation_id {
        note(&format!("correlation id: {id}"));
    }
}
