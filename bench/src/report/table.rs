//! The report as Markdown that reads well on a terminal too.

use std::fmt::Write as _;

use crate::report::ratios::{added_p50, ratios};
use crate::report::{Report, Row};
use crate::subjects::Kind;

type Column = (&'static str, fn(&Report, &Row) -> Option<f64>);

const COLUMNS: [Column; 14] = [
    ("c1 p50 us", |_, row| row.single_p50_us),
    ("c1 p99 us", |_, row| row.single_p99_us),
    ("added p50 us", |report, row| added_p50(report, row.subject).filter(|_| row.subject != Kind::Direct)),
    ("c32 req/s", |_, row| row.per_second),
    ("c32 p99 us", |_, row| row.loaded_p99_us),
    ("CPU us/req", |_, row| row.cpu_us_per_request),
    ("c256 req/s", |_, row| row.crowded_per_second),
    ("c256 p99 us", |_, row| row.crowded_p99_us),
    ("220 KB req/s", |_, row| row.long_per_second),
    ("CPU us/token", |_, row| row.cpu_us_per_token),
    ("delay p50 us", |_, row| row.delay_p50_us),
    ("delay p99 us", |_, row| row.delay_p99_us),
    ("KiB/idle stream", |_, row| row.idle_kib),
    ("submissions/s", |_, row| row.submissions_per_second),
];

/// The machine, the table, the floor, the ratios, and what was left out.
pub fn markdown(report: &Report) -> String {
    let mut out = format!(
        "{}; load average before the run {:.1}. Medians of {} rounds; {} idle streams.\n\n",
        report.machine, report.load_before, report.rounds, report.idle_streams
    );
    out.push_str(&aligned(&subjects(report)));
    let _ = write!(
        out,
        "\nStorage by itself: 4 KiB overwrite + fdatasync {} us, append + fdatasync {} us; SQLite FULL with group \
         commit, 32 submitters, {} rows/s.\n\n",
        shown(report.floor.overwrite_us),
        shown(report.floor.append_us),
        shown(report.floor.sqlite_per_second),
    );
    let mut rows = vec![vec!["ours / theirs, this run".to_owned(), "ratio".to_owned(), "bar".to_owned()]];
    rows.extend(ratios(report).into_iter().map(|ratio| {
        vec![ratio.what.to_owned(), format!("{:.2}", ratio.value), ratio.bar.verdict(ratio.value)]
    }));
    out.push_str(&aligned(&rows));
    for line in &report.left_out {
        let _ = writeln!(out, "\nLeft out: {}", line.lines().collect::<Vec<_>>().join(" "));
    }
    out
}

fn subjects(report: &Report) -> Vec<Vec<String>> {
    let head =
        std::iter::once("subject".to_owned()).chain(COLUMNS.iter().map(|(name, _)| (*name).to_owned()));
    let mut rows = vec![head.collect::<Vec<_>>()];
    for row in &report.rows {
        let figures = COLUMNS.iter().map(|(_, pick)| shown(pick(report, row)));
        rows.push(std::iter::once(row.subject.name().to_owned()).chain(figures).collect());
    }
    rows
}

/// A Markdown table whose columns line up; the first is text, the others are numbers.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(out, "| {} |", cells.collect::<Vec<_>>().join(" | "));
        if index == 0 {
            let rule = widths.iter().enumerate().map(|(column, width)| {
                if column == 0 {
                    "-".repeat(*width)
                } else {
                    format!("{}:", "-".repeat(width.saturating_sub(1)))
                }
            });
            let _ = writeln!(out, "| {} |", rule.collect::<Vec<_>>().join(" | "));
        }
    }
    out
}

/// Three significant digits are all that such figures carry.
pub fn shown(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value.abs() < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::aligned;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "count".to_owned()], vec!["long".to_owned(), "7".to_owned()]];
        assert_eq!(aligned(&rows), "| a    | count |\n| ---- | ----: |\n| long |     7 |\n");
    }
}
