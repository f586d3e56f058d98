//! What the figures say about us: ratios inside one run, which outlast a change of machine.

use crate::report::{Report, Row};
use crate::subjects::Kind;

/// One comparison.
pub struct Ratio {
    /// What is compared, in words.
    pub what: &'static str,
    /// Ours divided by theirs; a figure of ours where there are no others.
    pub value: f64,
    /// What it is to be.
    pub bar: Bar,
}

/// What a ratio is to be.
#[derive(Debug, Clone, Copy)]
pub enum Bar {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
    /// Nothing is asked of it.
    None,
}

impl Bar {
    /// In words, with whether `value` keeps it.
    pub fn verdict(self, value: f64) -> String {
        let word = |kept: bool| if kept { "kept" } else { "missed" };
        match self {
            Self::AtMost(bar) => format!("<= {bar}: {}", word(value <= bar)),
            Self::AtLeast(bar) => format!(">= {bar}: {}", word(value >= bar)),
            Self::None => "-".to_owned(),
        }
    }
}

type Pick = fn(&Row) -> Option<f64>;

/// The comparisons that can be made with what was measured.
pub fn ratios(report: &Report) -> Vec<Ratio> {
    use Bar::{AtLeast, AtMost};
    let mut found = Vec::new();
    let mut add = |what, bar, ours: Option<f64>, theirs: Option<f64>| {
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            found.push(Ratio { what, value: ours / theirs, bar });
        }
    };
    let memory = |pick: Pick| report.row(Kind::RbeesMemory).and_then(pick);
    let durable = |pick: Pick| report.row(Kind::RbeesDurable).and_then(pick);
    let haproxy = |pick: Pick| report.row(Kind::Haproxy).and_then(pick);
    let best = |pick: Pick| most(routers(report, pick));
    let added = |kind: Kind| added_p50(report, kind);
    let best_added = least(Kind::ALL.into_iter().filter(|kind| kind.is_router()).filter_map(added));
    add("added latency, memory / HAProxy", Bar::None, added(Kind::RbeesMemory), added(Kind::Haproxy));
    add("added latency, memory / best router", AtMost(0.7), added(Kind::RbeesMemory), best_added);
    let rate: Pick = |row| row.per_second;
    add("requests per second, memory / best router", AtLeast(2.2), memory(rate), best(rate));
    add("requests per second, durable / best router", AtLeast(1.5), durable(rate), best(rate));
    let crowd: Pick = |row| row.crowded_per_second;
    add("requests per second at 256, memory / best router", AtLeast(2.2), memory(crowd), best(crowd));
    add("requests per second at 256, durable / best router", AtLeast(1.5), durable(crowd), best(crowd));
    let long: Pick = |row| row.long_per_second;
    add("220 KB prompts, memory / best router", AtLeast(2.5), memory(long), best(long));
    let direct = report.row(Kind::Direct).and_then(long);
    add("220 KB prompts, best router / the mock alone", Bar::None, best(long), direct);
    add("256 workers / one worker, memory", AtLeast(0.95), report.fleet_share, Some(1.0));
    add("scripted / built-in policy, 32 workers, memory", AtLeast(0.8), report.script_share, Some(1.0));
    add("ten watchers / none, memory", Bar::None, report.watched_share, Some(1.0));
    let token: Pick = |row| row.cpu_us_per_token;
    add("CPU per token, memory / HAProxy", AtMost(1.15), memory(token), haproxy(token));
    add("CPU per token, memory / best router", Bar::None, memory(token), least(routers(report, token)));
    let delay: Pick = |row| row.delay_p50_us;
    add("relay delay (median), memory / HAProxy", Bar::None, memory(delay), haproxy(delay));
    let tail: Pick = |row| row.delay_p99_us;
    add("relay delay (p99), memory / HAProxy", AtMost(1.5), memory(tail), haproxy(tail));
    let idle: Pick = |row| row.idle_kib;
    add("KiB per idle stream, memory", AtMost(16.0), memory(idle), Some(1.0));
    add(
        "memory per idle stream, memory / best router",
        Bar::None,
        memory(idle),
        least(routers(report, idle)),
    );
    let submissions: Pick = |row| row.submissions_per_second;
    add(
        "durable submissions per second / raw SQLite rows",
        Bar::None,
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
