//! The figures: medians over the rounds, as tables, as JSON, in the README.

mod ratios;
mod readme;
mod table;

use serde::Serialize;

pub use readme::update_section;
pub use table::{aligned, markdown, shown};

use crate::machine;
use crate::relay::{Measured, Round};
use crate::stats::median;
use crate::subjects::Kind;

/// What one run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The machine, in one line.
    pub machine: String,
    /// Processes that wanted a CPU in the minute before the run; above 1 the figures are disturbed.
    pub load_before: f64,
    /// Rounds; each figure is the median over them.
    pub rounds: usize,
    /// Streams of the memory figure.
    pub idle_streams: usize,
    /// One per subject, in the order of [`Kind::ALL`].
    pub rows: Vec<Row>,
    /// The storage floor of the same run.
    pub floor: FloorRow,
    /// Answers per second of rbees with 256 workers, as a share of those with one.
    pub fleet_share: Option<f64>,
    /// The same with a scripted policy, as a share of those with the built-in one.
    pub script_share: Option<f64>,
    /// The same with ten watchers, as a share of those with none.
    pub watched_share: Option<f64>,
    /// What was left out and why.
    pub left_out: Vec<String>,
}

/// The figures of one subject. Times in microseconds.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Which.
    pub subject: Kind,
    /// One connection, one token: median.
    pub single_p50_us: Option<f64>,
    /// The same, 99th percentile.
    pub single_p99_us: Option<f64>,
    /// 32 connections, one token: answers per second.
    pub per_second: Option<f64>,
    /// The same, 99th percentile.
    pub loaded_p99_us: Option<f64>,
    /// The same, CPU of the subject per answer.
    pub cpu_us_per_request: Option<f64>,
    /// 256 connections, one token: answers per second.
    pub crowded_per_second: Option<f64>,
    /// The same, 99th percentile.
    pub crowded_p99_us: Option<f64>,
    /// 8 connections, 220 KB prompts: answers per second.
    pub long_per_second: Option<f64>,
    /// 64 paced streams: CPU of the subject per relayed token.
    pub cpu_us_per_token: Option<f64>,
    /// The same, from the worker's write to the client's read: median.
    pub delay_p50_us: Option<f64>,
    /// The same, 99th percentile.
    pub delay_p99_us: Option<f64>,
    /// Memory of the subject per idle stream, in KiB.
    pub idle_kib: Option<f64>,
    /// Submissions per second that do not wait for their results; ours only.
    pub submissions_per_second: Option<f64>,
    /// The same, 99th percentile.
    pub submission_p99_us: Option<f64>,
}

/// What storage does by itself.
#[derive(Debug, Serialize)]
pub struct FloorRow {
    /// Median of a durable 4 KiB overwrite.
    pub overwrite_us: Option<f64>,
    /// Median of a durable 4 KiB append.
    pub append_us: Option<f64>,
    /// Rows per second into SQLite, FULL, group commit, 32 submitters.
    pub sqlite_per_second: Option<f64>,
}

impl Report {
    /// Sums up what was measured.
    pub fn new(measured: &Measured, rounds: usize, idle_streams: usize, load_before: f64) -> Self {
        let rows = measured.rounds.iter().map(|(kind, seen)| {
            let idle_kib = measured.idle_bytes.get(kind).map(|bytes| bytes / 1024.0);
            Row { idle_kib, ..row(*kind, seen) }
        });
        let floor = |pick: fn(&crate::storage::Floor) -> f64| {
            median(&measured.floors.iter().map(pick).collect::<Vec<_>>())
        };
        Self {
            machine: machine::describe(),
            load_before,
            rounds,
            idle_streams,
            rows: rows.collect(),
            floor: FloorRow {
                overwrite_us: floor(|floor| floor.overwrite_us),
                append_us: floor(|floor| floor.append_us),
                sqlite_per_second: floor(|floor| floor.sqlite_per_second),
            },
            fleet_share: median(&measured.shares.fleet),
            script_share: median(&measured.shares.script),
            watched_share: median(&measured.shares.watched),
            left_out: measured.problems.iter().map(|(kind, why)| format!("{}: {why}", kind.name())).collect(),
        }
    }

    /// The row of one subject.
    pub fn row(&self, kind: Kind) -> Option<&Row> {
        self.rows.iter().find(|row| row.subject == kind)
    }
}

fn row(kind: Kind, rounds: &[Round]) -> Row {
    let over =
        |pick: &dyn Fn(&Round) -> Option<f64>| median(&rounds.iter().filter_map(pick).collect::<Vec<_>>());
    Row {
        subject: kind,
        single_p50_us: over(&|round| Some(round.single.p50_us)),
        single_p99_us: over(&|round| Some(round.single.p99_us)),
        per_second: over(&|round| Some(round.loaded.per_second)),
        loaded_p99_us: over(&|round| Some(round.loaded.p99_us)),
        cpu_us_per_request: over(&|round| Some(round.loaded.cpu_us)),
        crowded_per_second: over(&|round| Some(round.crowded.per_second)),
        crowded_p99_us: over(&|round| Some(round.crowded.p99_us)),
        long_per_second: over(&|round| round.long.map(|seen| seen.per_second)),
        cpu_us_per_token: over(&|round| Some(round.paced.cpu_us_per_token)),
        delay_p50_us: over(&|round| Some(round.paced.delay_p50_us)),
        delay_p99_us: over(&|round| Some(round.paced.delay_p99_us)),
        idle_kib: None,
        submissions_per_second: over(&|round| round.submissions.map(|seen| seen.per_second)),
        submission_p99_us: over(&|round| round.submissions.map(|seen| seen.p99_us)),
    }
}
