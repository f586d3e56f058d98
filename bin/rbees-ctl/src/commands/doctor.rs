//! `rbees doctor`: what stands in the way, each with the command that mends it.

mod checks;

use clap::Args;
use cli_kit::{ExitStatus, Table};
use serde::Serialize;

use super::Outcome;
use crate::context::Context;

/// Checks this machine and says what to do about what it finds
#[derive(Debug, Args)]
pub struct DoctorArgs {}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    check: String,
    result: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl Check {
    fn ok(check: &str, found: impl Into<String>) -> Self {
        Self { check: check.into(), result: Verdict::Ok, found: found.into(), next: None }
    }

    fn warn(check: &str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check: check.into(), result: Verdict::Warn, found: found.into(), next: Some(next.into()) }
    }

    fn fail(check: &str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check: check.into(), result: Verdict::Fail, found: found.into(), next: Some(next.into()) }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    checks: Vec<Check>,
}

/// Runs it; a failed check makes the exit code 1.
pub async fn run(context: &Context, _args: &DoctorArgs) -> Outcome {
    let report = Report { checks: checks::all(context).await };
    context.printer.show(&report, table);
    let failed = report.checks.iter().any(|check| check.result == Verdict::Fail);
    Ok(if failed { ExitStatus::Failed } else { ExitStatus::Ok })
}

fn table(report: &Report) -> Table {
    let failed = report.checks.iter().filter(|check| check.result == Verdict::Fail).count();
    let mut table = Table::new(["Check", "Result", "Found", "Next"])
        .with_summary(format!("{} checks, {failed} failed", report.checks.len()));
    for check in &report.checks {
        table.row([
            check.check.as_str(),
            check.result.word(),
            &check.found,
            check.next.as_deref().unwrap_or("-"),
        ]);
    }
    table
}
