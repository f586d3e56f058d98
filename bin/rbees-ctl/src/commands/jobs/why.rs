//! `rbees jobs why JOB`: the placement explained.

use std::time::Duration;

use api_types::task::{Decision, EstimateView};
use api_types::why::ScoreTerms;
use cli_kit::{ExitStatus, Printer, Table, human_duration};
use llama_orch_sdk::{Error, WhyView};

use super::JobArg;
use crate::commands::Outcome;
use crate::context::Context;

/// Runs it.
pub async fn run(context: &Context, args: &JobArg) -> Outcome {
    let why = context.client()?.why(args.id()?).await.map_err(Error::into_detail)?;
    if context.printer.is_json() {
        context.printer.json(&why);
    } else {
        show(&context.printer, &why);
    }
    Ok(ExitStatus::Ok)
}

fn show(printer: &Printer, why: &WhyView) {
    printer.line(&why.summary);
    if let Some(estimate) = &why.estimate {
        printer.line(estimated(estimate));
    }
    for decision in &why.decisions {
        printer.line(format!("\nAttempt {} at {}", decision.attempt, decision.at));
        show_decision(printer, decision);
    }
    if let Some(waiting) = &why.waiting {
        printer.line("\nIf it were placed now");
        show_decision(printer, waiting);
    }
}

/// Estimate and actual in one line.
fn estimated(estimate: &EstimateView) -> String {
    let span = |ms| human_duration(Duration::from_millis(ms));
    let (p50, p90) = (span(estimate.eta_ms.p50), span(estimate.eta_ms.p90));
    let expected = format!("estimated at submission: {p50}, nine in ten within {p90} ({})", estimate.basis);
    match estimate.actual_ms {
        Some(actual) => format!("{expected}; it took {}", span(actual)),
        None => expected,
    }
}

fn show_decision(printer: &Printer, decision: &Decision) {
    let waited = human_duration(Duration::from_millis(decision.waited_ms));
    printer
        .line(format!("policy {}; waited {waited}; {} in the queue", decision.policy, decision.queue_depth));
    let mut table = Table::new(["Worker", "Result", "Score", "Made of", "Free slots", "Ruled out by"]);
    for candidate in &decision.candidates {
        let picked = decision.picked.as_ref() == Some(&candidate.worker_id);
        let result = match (picked, candidate.feasible) {
            (true, _) => "picked",
            (false, true) => "feasible",
            (false, false) => "ruled out",
        };
        let score = candidate.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.3}"));
        let slots = format!("{} of {}", candidate.slots_free, candidate.slots);
        let reason = candidate.ruled_out.as_deref().unwrap_or("-");
        let terms = candidate.terms.as_ref().map_or_else(|| "-".to_owned(), made_of);
        table.row([candidate.worker_id.as_str(), result, &score, &terms, &slots, reason]);
    }
    printer.table(&table);
    if let Some(other) = &decision.counterfactual {
        printer.line(format!("It {other}."));
    }
    for name in &decision.unknown_names {
        printer.line(format!("Nothing known is called `{name}`, which the job's placement names."));
    }
}

/// The terms of a score as a sum, those that are zero left out.
fn made_of(terms: &ScoreTerms) -> String {
    let parts = [
        ("policy", terms.policy),
        ("affinity", terms.affinity),
        ("load", terms.load),
        ("memory", terms.memory),
        ("preferred", terms.prefer),
        ("failed before", terms.failed),
    ];
    let shown: Vec<String> = parts
        .iter()
        .filter(|(_, points)| *points != 0.0)
        .map(|(name, points)| format!("{name} {}", (points * 1e3).round() / 1e3))
        .collect();
    if shown.is_empty() { "0".to_owned() } else { shown.join(" + ") }
}
