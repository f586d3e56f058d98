//! The life of a worker process in the records, and the ladder that ends it.

use api_types::pool::{ProcessIdentity, RecordState, WorkerRecord};
use api_types::worker::{WorkerReport, WorkerStatus};
use api_types::{ErrorCode, ErrorDetail};

/// How long a worker may take to end by itself after SIGTERM, in milliseconds.
pub const STOP_GRACE_MS: u64 = 30_000;

/// What a process number turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Our process: number, start time and boot agree.
    Alive,
    /// It is gone: no such number, a zombie, another start time, or another boot.
    Gone,
}

/// Compares a record with what stands under its number now; `None` when nothing does.
pub fn identify(record: &ProcessIdentity, found: Option<&ProcessIdentity>) -> Seen {
    if found == Some(record) { Seen::Alive } else { Seen::Gone }
}

/// One rung of the ladder that ends a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// Ask it to end.
    Terminate,
    /// Wait; look again soon.
    Wait,
    /// End it and everything it started.
    Kill,
    /// Nothing is left of it but perhaps helpers it started.
    Sweep,
}

/// What to do next with a worker that is to end, `since_ms` after it was asked; `None` when it
/// has not been asked.
pub fn next_rung(seen: Seen, since_ms: Option<u64>, grace_ms: u64) -> Rung {
    match (seen, since_ms) {
        (Seen::Gone, _) => Rung::Sweep,
        (Seen::Alive, None) => Rung::Terminate,
        (Seen::Alive, Some(since)) if since < grace_ms => Rung::Wait,
        (Seen::Alive, Some(_)) => Rung::Kill,
    }
}

/// The record with what the worker reported; a report of another process changes nothing.
#[must_use]
pub fn with_report(mut record: WorkerRecord, report: &WorkerReport) -> WorkerRecord {
    let ours = report.pid == record.process.pid && report.health.facts.worker_id == record.worker_id;
    if !ours {
        return record;
    }
    let facts = &report.health.facts;
    record.reported = Some(report.health.status);
    if let Some(port) = port_of(&facts.uri) {
        record.port = Some(port);
        record.uri = Some(facts.uri.clone());
    }
    if report.health.status == WorkerStatus::Ready {
        let measured = facts.vram_bytes.saturating_add(facts.ram_bytes);
        record.measured_bytes = Some(measured).filter(|bytes| *bytes > 0);
        if record.state == RecordState::Spawned {
            record.state = RecordState::Ready;
        }
    }
    record
}

fn port_of(uri: &str) -> Option<u16> {
    uri.trim_end_matches('/').rsplit_once(':')?.1.parse().ok()
}

/// The record that an id or an unambiguous beginning of one means.
///
/// # Errors
/// `WORKER_NOT_FOUND`, or `AMBIGUOUS_ID` with the candidates.
pub fn find<'a>(records: &'a [WorkerRecord], id: &str) -> Result<&'a WorkerRecord, ErrorDetail> {
    if let Some(exact) = records.iter().find(|record| record.worker_id.as_str() == id) {
        return Ok(exact);
    }
    let like: Vec<&WorkerRecord> = records.iter().filter(|record| starts(record, id)).collect();
    match like.as_slice() {
        [only] => Ok(only),
        [] => Err(ErrorDetail::new(
            ErrorCode::WorkerNotFound,
            format!("no worker's id starts with `{}`", shown(id)),
        )
        .with_hint("list them: rbees-pool worker list")),
        many => {
            let ids: Vec<&str> = many.iter().map(|record| record.worker_id.as_str()).collect();
            let message = format!("`{}` could be any of: {}", shown(id), ids.join(", "));
            Err(ErrorDetail::new(ErrorCode::AmbiguousId, message).with_hint("give more characters of the id"))
        }
    }
}

/// Whether an id, or its last part, starts like this.
fn starts(record: &WorkerRecord, beginning: &str) -> bool {
    let id = record.worker_id.as_str();
    let last = id.rsplit('-').next().unwrap_or(id);
    !beginning.is_empty() && (id.starts_with(beginning) || last.starts_with(beginning))
}

fn shown(id: &str) -> String {
    id.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(id: &str, pid: u32) -> WorkerRecord {
        WorkerRecord {
            worker_id: id.parse().expect("an id"),
            backend: "cpu".into(),
            device: None,
            model: "m".into(),
            port: None,
            uri: None,
            process: ProcessIdentity { pid, start_ticks: 100, boot_id: "boot".into() },
            state: RecordState::Spawned,
            reported: None,
            log: "x.log".into(),
            spawned_at: "2026-01-01T00:00:00Z".into(),
            predicted_bytes: None,
            measured_bytes: None,
        }
    }

    pub(crate) fn report(id: &str, pid: u32, status: &str) -> WorkerReport {
        serde_json::from_value(serde_json::json!({
            "pid": pid,
            "health": {
                "status": status, "slots_busy": 0, "worker_id": id,
                "instance": "00000000-0000-0000-0000-000000000001", "uri": "http://127.0.0.1:8003",
                "model": "m", "backend": "cpu", "devices": [], "slots": 1, "context_length": 512,
                "vram_bytes": 0, "ram_bytes": 77, "capabilities": [], "engine": "fake", "version": "0",
                "protocol": 1,
            },
        }))
        .expect("a report")
    }

    #[test]
    fn only_number_start_and_boot_together_are_the_process() {
        let ours = record("w", 7).process;
        assert_eq!(identify(&ours, Some(&ours.clone())), Seen::Alive);
        assert_eq!(identify(&ours, None), Seen::Gone);
        for stranger in [
            ProcessIdentity { pid: 8, ..ours.clone() },
            ProcessIdentity { start_ticks: 101, ..ours.clone() },
            ProcessIdentity { boot_id: "later".into(), ..ours.clone() },
        ] {
            assert_eq!(identify(&ours, Some(&stranger)), Seen::Gone);
        }
    }

    #[test]
    fn the_ladder_asks_waits_and_kills() {
        assert_eq!(next_rung(Seen::Alive, None, 30), Rung::Terminate);
        assert_eq!(next_rung(Seen::Alive, Some(29), 30), Rung::Wait);
        assert_eq!(next_rung(Seen::Alive, Some(30), 30), Rung::Kill);
        for since in [None, Some(0), Some(99)] {
            assert_eq!(next_rung(Seen::Gone, since, 30), Rung::Sweep);
        }
    }

    #[test]
    fn a_report_makes_ready_and_a_strangers_report_changes_nothing() {
        let ready = with_report(record("w", 7), &report("w", 7, "ready"));
        assert_eq!(
            (ready.state, ready.port, ready.measured_bytes),
            (RecordState::Ready, Some(8003), Some(77))
        );
        let loading = with_report(record("w", 7), &report("w", 7, "loading"));
        assert_eq!((loading.state, loading.port), (RecordState::Spawned, Some(8003)));
        assert_eq!(with_report(record("w", 7), &report("w", 8, "ready")), record("w", 7));
        assert_eq!(with_report(record("w", 7), &report("v", 7, "ready")), record("w", 7));
        let mut stopping = record("w", 7);
        stopping.state = RecordState::Stopping;
        assert_eq!(with_report(stopping, &report("w", 7, "ready")).state, RecordState::Stopping);
    }

    #[test]
    fn ids_are_found_by_their_beginning() {
        let records = [
            record("worker-cpu-aa11", 1),
            record("worker-cpu-aa22", 2),
            record("worker-cuda-bb", 3),
            record("aa11", 4),
        ];
        assert_eq!(find(&records, "worker-cuda").expect("one").process.pid, 3);
        assert_eq!(find(&records, "bb").expect("one").process.pid, 3);
        assert_eq!(find(&records, "aa11").expect("exact").process.pid, 4);
        assert_eq!(find(&records, "aa").expect_err("three").code, ErrorCode::AmbiguousId);
        assert_eq!(find(&records, "").expect_err("none").code, ErrorCode::WorkerNotFound);
        assert_eq!(find(&records, "zz").expect_err("none").code, ErrorCode::WorkerNotFound);
    }
}
