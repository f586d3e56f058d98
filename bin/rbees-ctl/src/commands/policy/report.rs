//! Policies and what was found of them, for people.

use std::collections::BTreeMap;
use std::path::Path;

use api_types::policy::{PolicyCheck, PolicyError, PolicyReport, PolicyView, ShadowReport};
use cli_kit::{Printer, Table};

/// Hex digits of a hash that are enough to tell scripts apart.
const SHORT_HASH: usize = 12;

/// What a check found.
pub fn checked(printer: &Printer, file: &Path, found: &PolicyCheck) {
    for error in &found.errors {
        printer.line(format!("{}{}", file.display(), described(error)));
    }
    for hook in found.hooks.iter().filter(|hook| hook.defined) {
        printer.line(format!("{} (asked {} times)", hook.hook, hook.asked));
        for answer in &hook.answers {
            printer.line(format!("  {answer}"));
        }
    }
    for warning in &found.warnings {
        printer.note(warning);
    }
    let verdict = if found.ok { "ok" } else { "not usable as it is" };
    printer.line(format!("{}: {verdict}", file.display()));
}

/// `:3:7: limit of operations: more than …`
fn described(error: &PolicyError) -> String {
    let place = match (error.line, error.column) {
        (Some(line), Some(column)) => format!(":{line}:{column}"),
        _ => String::new(),
    };
    let hook = error.hook.as_ref().map(|hook| format!(" in {hook}")).unwrap_or_default();
    let limit = error.limit.as_ref().map(|limit| format!("limit of {limit}: ")).unwrap_or_default();
    format!("{place}: {}{hook}: {limit}{}", error.kind, error.message)
}

/// The policies in force.
pub fn policies(printer: &Printer, report: &PolicyReport) {
    let mut table = Table::new(["Part", "Policy", "Script", "Failures"]);
    let failures = total(&report.failures).to_string();
    row(&mut table, "live", &report.live, &failures);
    if let Some(last_good) = &report.last_good {
        row(&mut table, "last good", last_good, "-");
    }
    if let Some(demoted) = &report.demoted {
        row(&mut table, "failed too often", &demoted.policy, &total(&demoted.failures).to_string());
    }
    if let Some(shadow) = &report.shadow {
        row(&mut table, "shadow", &shadow.policy, &total(&shadow.failures).to_string());
    }
    printer.table(&table);
    if let Some(failure) = &report.last_failure {
        printer.line(format!("last failure{}", described(failure)));
    }
    if let Some(demoted) = &report.demoted {
        let failure = demoted.last_failure.as_ref().map(described).unwrap_or_default();
        printer.line(format!(
            "`{}` failed too often, so `{}` decides now{failure}",
            demoted.policy.name, report.live.name
        ));
    }
    if let Some(shadow) = &report.shadow {
        printer.line(compared(shadow));
    }
}

fn row(table: &mut Table, part: &str, policy: &PolicyView, failures: &str) {
    let script = policy.sha256.get(..SHORT_HASH).unwrap_or("built in");
    table.row([part, &policy.name, script, failures]);
}

/// Where the shadow differs from the live policy.
pub fn shadow(printer: &Printer, report: &ShadowReport) {
    let mut table = Table::new(["Hook", "Compared", "Differ", "Failed"]);
    for (hook, compared) in &report.compared {
        let count = |of: &BTreeMap<String, u64>| of.get(hook).copied().unwrap_or_default().to_string();
        table.row([hook, &compared.to_string(), &count(&report.differed), &count(&report.failures)]);
    }
    printer.table(&table);
    for example in &report.examples {
        printer.line(format!(
            "{} {}: live {}, shadow {}",
            example.hook, example.about, example.live, example.shadow
        ));
    }
    if let Some(failure) = &report.last_failure {
        printer.line(format!("last failure{}", described(failure)));
    }
    printer.line(compared(report));
}

fn compared(shadow: &ShadowReport) -> String {
    let (compared, differed) = (total(&shadow.compared), total(&shadow.differed));
    let name = &shadow.policy.name;
    let stopped = if shadow.stopped { "; it failed too often and is asked no more" } else { "" };
    format!("shadow `{name}`: {differed} of {compared} decisions would have differed{stopped}")
}

fn total(counts: &BTreeMap<String, u64>) -> u64 {
    counts.values().sum()
}
