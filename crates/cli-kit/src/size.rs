//! Numbers as people read them.

use std::time::Duration;

const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];

/// Bytes in decimal units with at most one digit after the point: `98.4 MB`.
pub fn human_bytes(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        // 999.95 would print as 1000.0 of the smaller unit.
        if value < 999.95 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// Bytes in gigabytes, as the pool's tables show model sizes: `0.1 GB`.
pub fn human_gb(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// How many there are of something, in words: `1 worker`, `2 workers`.
pub fn human_count(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// A span of time: `40 us`, `340 ms`, `2.1 s`, `3 min 05 s`, `2 h 07 min`.
pub fn human_duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 if span.as_millis() == 0 => format!("{} us", span.as_micros()),
        0 => format!("{} ms", span.as_millis()),
        1..60 => format!("{:.1} s", (span.as_secs_f64() * 10.0).floor() / 10.0),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well_at_every_size() {
        let shown: Vec<String> = [0, 999, 1000, 98_362_432, 999_950_000, u64::MAX].map(human_bytes).into();
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "98.4 MB", "1.0 GB", "18446.7 PB"]);
        assert_eq!(human_gb(98_362_432), "0.1 GB");
    }

    #[test]
    fn time_reads_well_at_every_length() {
        assert_eq!(human_duration(Duration::from_micros(40)), "40 us");
        let shown: Vec<String> =
            [340, 2_149, 59_990, 185_000, 7_620_000].map(Duration::from_millis).map(human_duration).into();
        assert_eq!(shown, ["340 ms", "2.1 s", "59.9 s", "3 min 05 s", "2 h 07 min"]);
    }
}
