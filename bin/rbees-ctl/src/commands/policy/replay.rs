//! `rbees policy replay`: recorded jobs under another policy.

use std::path::PathBuf;

use api_types::replay::{ReplayReport, ReplayRequest, Waits, WhatIfReport};
use clap::Args;
use cli_kit::{ExitStatus, Printer, Table};
use jiff::SignedDuration;
use llama_orch_sdk::Error;

use super::read;
use crate::commands::Outcome;
use crate::context::Context;

/// Jobs that are listed.
const JOBS_LISTED: usize = 10;

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The script; without it the recorded decisions are checked
    file: Option<PathBuf>,
    /// How far back: `30m`, `1h`, `2d`; everything that is kept when absent
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    since: Option<u64>,
}

/// `1h` as milliseconds.
fn milliseconds(text: &str) -> Result<u64, String> {
    // A friendly duration has no days; a day of a journal is 24 hours.
    let hours = text.strip_suffix('d').and_then(|days| days.trim().parse::<i64>().ok()).map(|days| days * 24);
    let duration =
        hours.map_or_else(|| text.parse::<SignedDuration>(), |h| Ok(SignedDuration::from_hours(h)));
    let ms = duration.map_err(|_| "give a time like 30m, 1h or 2d".to_owned())?.as_millis();
    u64::try_from(ms).ok().filter(|ms| *ms > 0).ok_or_else(|| "give a time above 0".to_owned())
}

/// Replays and reports. Fails when what was decided cannot be had again.
pub async fn run(context: &Context, args: &ReplayArgs) -> Outcome {
    let policy = args.file.as_deref().map(read).transpose()?;
    let request = ReplayRequest {
        name: policy.as_ref().map(|policy| policy.name.clone()),
        source: policy.and_then(|policy| policy.source),
        since_ms: args.since,
    };
    let report = context.client()?.replay_policy(&request).await.map_err(Error::into_detail)?;
    if context.printer.is_json() {
        context.printer.json(&report);
    } else {
        show(&context.printer, &report);
    }
    Ok(if report.identical { ExitStatus::Ok } else { ExitStatus::Failed })
}

fn show(printer: &Printer, report: &ReplayReport) {
    let verdict = match &report.differs_at {
        None => "the same decisions, every one".to_owned(),
        Some(at) => format!("other decisions from {at} on"),
    };
    printer.line(format!(
        "recorded since {}: {} inputs and {} placements replayed: {verdict}",
        report.from, report.inputs, report.placements
    ));
    if let Some(found) = &report.what_if {
        what_if(printer, found);
    }
}

fn what_if(printer: &Printer, found: &WhatIfReport) {
    let mut table = Table::new(
        ["Jobs", "Number", "Refused", "Completed", "Wait p50", "p90", "p99", "longest"].map(str::to_owned),
    );
    for group in &found.groups {
        row(&mut table, &group.group, &group.before);
        row(&mut table, &format!("  under {}", found.policy), &group.after);
    }
    printer.table(&table);
    printer.line(format!(
        "{} jobs would have run on another worker; the policy failed {} times",
        found.moved, found.policy_failures
    ));
    if found.left_out > 0 {
        printer.note(format!("{} jobs without an end on record are left out", found.left_out));
    }
    printer.note("failures of runs are not repeated; workers come and go as they did");
    for job in found.jobs.iter().take(JOBS_LISTED) {
        let (before, after) =
            (wait(job.before_ms, job.refused_before), wait(job.after_ms, job.refused_after));
        printer.line(format!("{}: {before} -> {after}", job.job_id));
    }
}

fn wait(ms: Option<u64>, is_refused: bool) -> String {
    match ms {
        Some(ms) => format!("{ms} ms"),
        None if is_refused => "refused".to_owned(),
        None => "never handed out".to_owned(),
    }
}

fn row(table: &mut Table, name: &str, waits: &Waits) {
    let ms = |ms: Option<u64>| ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
    table.row([
        name.to_owned(),
        waits.jobs.to_string(),
        waits.refused.to_string(),
        waits.completed.to_string(),
        ms(waits.p50_ms),
        ms(waits.p90_ms),
        ms(waits.p99_ms),
        ms(waits.max_ms),
    ]);
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, ms) in [("1h", 3_600_000), ("30m", 1_800_000), ("2d", 172_800_000), ("1h 30m", 5_400_000)]
        {
            assert_eq!(milliseconds(text), Ok(ms), "{text}");
        }
        for text in ["", "0s", "-1h", "soon", "5"] {
            assert!(milliseconds(text).is_err(), "{text}");
        }
    }
}
