//! What the figures say about us: ratios inside one run, which outlast a change of machine.

use crate::report::{Report, Row};
use crate::subjects::Kind;

/// One comparison.
pub struct Ratio {
    /// What is compared, in words.
    pub what: String,
    /// Ours divided by theirs.
    pub value: f64,
}

type Pick = fn(&Row) -> Option<f64>;

/// The comparisons that can be made with what was measured.
pub fn ratios(report: &Report) -> Vec<Ratio> {
    let mut found = Vec::new();
    let mut add = |what: &str, ours: Option<f64>, theirs: Option<f64>| {
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            found.push(Ratio { what: what.to_owned(), value: ours / theirs });
        }
    };
    let memory = |pick: Pick| report.row(Kind::RbeesMemory).and_then(pick);
    let durable = |pick: Pick| report.row(Kind::RbeesDurable).and_then(pick);
    let haproxy = |pick: Pick| report.row(Kind::Haproxy).and_then(pick);
    let added = |kind: Kind| added_p50(report, kind);
    let best_added = least(Kind::ALL.into_iter().filter(|kind| kind.is_router()).filter_map(added));
    add("added latency, memory / HAProxy", added(Kind::RbeesMemory), added(Kind::Haproxy));
    add("added latency, memory / best router", added(Kind::RbeesMemory), best_added);
    let rate: Pick = |row| row.per_second;
    add("requests per second, memory / best router", memory(rate), most(routers(report, rate)));
    add("requests per second, durable / best router", durable(rate), most(routers(report, rate)));
    let crowded: Pick = |row| row.crowded_per_second;
    add("requests per second at 256, memory / best router", memory(crowded), most(routers(report, crowded)));
    add(
        "requests per second at 256, durable / best router",
        durable(crowded),
        most(routers(report, crowded)),
    );
    let long: Pick = |row| row.long_per_second;
    add("220 KB prompts, memory / best router", memory(long), most(routers(report, long)));
    add("256 workers / one worker, memory", report.fleet_share, Some(1.0));
    let token: Pick = |row| row.cpu_us_per_token;
    add("CPU per token, memory / HAProxy", memory(token), haproxy(token));
    add("CPU per token, memory / best router", memory(token), least(routers(report, token)));
    let delay: Pick = |row| row.delay_p50_us;
    add("relay delay (median), memory / HAProxy", memory(delay), haproxy(delay));
    let tail: Pick = |row| row.delay_p99_us;
    add("relay delay (p99), memory / HAProxy", memory(tail), haproxy(tail));
    let idle: Pick = |row| row.idle_kib;
    add("memory per idle stream, durable / best router", durable(idle), least(routers(report, idle)));
    let submissions: Pick = |row| row.submissions_per_second;
    add(
        "durable submissions per second / raw SQLite rows",
        durable(submissions),
        report.floor.sqlite_per_second,
    );
    found
}

/// Median latency of one token beyond that of the mock alone.
pub fn added_p50(report: &Report, kind: Kind) -> Option<f64> {
    let direct = report.row(Kind::Direct)?.single_p50_us?;
    Some(report.row(kind)?.single_p50_us? - direct)
}

fn routers(report: &Report, pick: Pick) -> impl Iterator<Item = f64> {
    report.rows.iter().filter(|row| row.subject.is_router()).filter_map(pick)
}

fn least(values: impl Iterator<Item = f64>) -> Option<f64> {
    values.min_by(f64::total_cmp)
}

fn most(values: impl Iterator<Item = f64>) -> Option<f64> {
    values.max_by(f64::total_cmp)
}
