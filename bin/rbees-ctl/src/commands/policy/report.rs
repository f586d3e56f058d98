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
        let place = place(error).map(|place| format!(":{place}")).unwrap_or_default();
        printer.line(format!("{}{place}: {}", file.display(), described(error)));
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

/// `runtime in score: more than …`
fn described(error: &PolicyError) -> String {
    let hook = error.hook.as_ref().map(|hook| format!(" in {hook}")).unwrap_or_default();
    let limit = error.limit.as_ref().map(|limit| format!("limit of {limit}: ")).unwrap_or_default();
    format!("{}{hook}: {limit}{}", error.kind, error.message)
}

/// `3:7`, where it is known.
fn place(error: &PolicyError) -> Option<String> {
    error.line.zip(error.column).map(|(line, column)| format!("{line}:{column}"))
}

/// `last failure at 3:7: runtime in score: more than …`
fn last_failure(error: &PolicyError) -> String {
    let place = place(error).map(|place| format!(" at {place}")).unwrap_or_default();
    format!("last failure{place}: {}", described(error))
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
        printer.line(last_failure(failure));
    }
    if let Some(demoted) = &report.demoted {
        let failure = demoted.last_failure.as_ref();
        let failure = failure.map(|failure| format!("; {}", last_failure(failure))).unwrap_or_default();
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
        printer.line(last_failure(failure));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_failure_reads_as_a_sentence() {
        let error = PolicyError {
            hook: Some("score".to_owned()),
            kind: "runtime".to_owned(),
            limit: None,
            message: "no such function".to_owned(),
            line: Some(1),
            column: Some(98),
        };
        assert_eq!(last_failure(&error), "last failure at 1:98: runtime in score: no such function");
        let unplaced = PolicyError { line: None, column: None, ..error };
        assert_eq!(last_failure(&unplaced), "last failure: runtime in score: no such function");
    }
}
