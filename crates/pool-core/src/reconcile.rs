//! Records against processes: what is gone, what has no record, what the records lag behind.

use api_types::WorkerId;
use api_types::pool::{ProcessIdentity, RecordState, WorkerRecord};
use api_types::worker::WorkerReport;

use crate::worker_record::{Seen, identify, with_report};

/// A process that carries this pool's mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// The worker id it was started with.
    pub worker_id: WorkerId,
    /// Its identity.
    pub process: ProcessIdentity,
}

/// Everything that was looked at in one go.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Records as they lie on the disk.
    pub records: Vec<WorkerRecord>,
    /// What stands under the numbers of the records now.
    pub processes: Vec<ProcessIdentity>,
    /// Leaders among the processes that carry this pool's mark.
    pub marked: Vec<Marked>,
    /// Reports as they lie on the disk.
    pub reports: Vec<WorkerReport>,
}

/// One difference between records and processes, and what mends it.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// The record lags behind what the worker reported.
    Refresh(WorkerRecord),
    /// The process is gone: remove the record once somebody asks for it.
    Remove(WorkerRecord),
    /// A worker of this pool has no record, because the pool was lost while it was started.
    Adopt(WorkerRecord),
}

/// The workers as they are, by id: records brought up to date, those without a process as `gone`,
/// processes without a record with one.
pub fn view(observed: &Observed) -> Vec<WorkerRecord> {
    let mut workers: Vec<WorkerRecord> =
        observed.records.iter().map(|record| current(record, observed)).collect();
    workers.extend(unrecorded(observed));
    workers.sort_by(|a, b| a.worker_id.cmp(&b.worker_id));
    workers
}

/// What would bring the records in line with [`view`]; empty when they are.
pub fn actions(observed: &Observed) -> Vec<Action> {
    let changes = observed.records.iter().filter_map(|record| {
        let now = current(record, observed);
        match now.state {
            RecordState::Gone => Some(Action::Remove(now)),
            RecordState::Spawned | RecordState::Ready | RecordState::Stopping => {
                (now != *record).then_some(Action::Refresh(now))
            }
        }
    });
    changes.chain(unrecorded(observed).map(Action::Adopt)).collect()
}

fn current(record: &WorkerRecord, observed: &Observed) -> WorkerRecord {
    let found = observed.processes.iter().find(|found| found.pid == record.process.pid);
    let mut now = observed.reports.iter().fold(record.clone(), with_report);
    if identify(&record.process, found) == Seen::Gone {
        now.state = RecordState::Gone;
    }
    now
}

fn unrecorded(observed: &Observed) -> impl Iterator<Item = WorkerRecord> {
    let known = |id: &WorkerId| observed.records.iter().any(|record| record.worker_id == *id);
    observed
        .marked
        .iter()
        .filter(move |marked| !known(&marked.worker_id))
        .map(|marked| adopted(marked, observed))
}

fn adopted(marked: &Marked, observed: &Observed) -> WorkerRecord {
    let report = observed.reports.iter().find(|report| report.health.facts.worker_id == marked.worker_id);
    let facts = report.map(|report| &report.health.facts);
    let record = WorkerRecord {
        worker_id: marked.worker_id.clone(),
        backend: facts.map_or_else(|| "unknown".to_owned(), |facts| facts.backend.clone()),
        device: None,
        model: facts.map_or_else(|| "unknown".to_owned(), |facts| facts.model.clone()),
        port: None,
        uri: None,
        process: marked.process.clone(),
        state: RecordState::Spawned,
        reported: None,
        log: String::new(),
        spawned_at: String::new(),
        predicted_bytes: None,
        measured_bytes: None,
    };
    observed.reports.iter().fold(record, with_report)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::worker_record::tests::{record, report};

    fn states(observed: &Observed) -> Vec<(String, RecordState)> {
        view(observed).into_iter().map(|worker| (worker.worker_id.to_string(), worker.state)).collect()
    }

    #[test]
    fn the_dead_the_living_and_the_unrecorded_are_told_apart() {
        let (alive, dead, reused) = (record("a", 1), record("b", 2), record("c", 3));
        let stranger = ProcessIdentity { start_ticks: 999, ..reused.process.clone() };
        let orphan = Marked { worker_id: "d".parse().expect("id"), process: record("d", 4).process };
        let observed = Observed {
            processes: vec![alive.process.clone(), stranger, orphan.process.clone()],
            records: vec![alive, dead, reused],
            marked: vec![orphan],
            reports: vec![report("a", 1, "ready"), report("d", 4, "loading")],
        };
        let states = states(&observed);
        let expected = [
            ("a", RecordState::Ready),
            ("b", RecordState::Gone),
            ("c", RecordState::Gone),
            ("d", RecordState::Spawned),
        ];
        assert_eq!(states, expected.map(|(id, state)| (id.to_owned(), state)));
        let kinds: Vec<u8> = actions(&observed)
            .iter()
            .map(|action| match action {
                Action::Refresh(_) => b'~',
                Action::Remove(_) => b'-',
                Action::Adopt(_) => b'+',
            })
            .collect();
        assert_eq!(kinds, b"~--+");
    }

    #[test]
    fn after_a_reboot_everything_is_gone() {
        let old = record("a", 1);
        let reborn = ProcessIdentity { boot_id: "next".into(), ..old.process.clone() };
        let observed = Observed { records: vec![old], processes: vec![reborn], ..Observed::default() };
        assert_eq!(states(&observed), [("a".to_owned(), RecordState::Gone)]);
    }

    proptest! {
        #[test]
        fn carrying_the_actions_out_leaves_nothing_to_do(alive in proptest::collection::vec(any::<(bool, bool)>(), 0..8)) {
            let mut observed = Observed::default();
            for (at, (runs, ready)) in alive.into_iter().enumerate() {
                let record = record(&format!("w{at}"), at as u32 + 1);
                if runs { observed.processes.push(record.process.clone()); }
                if ready { observed.reports.push(report(&format!("w{at}"), at as u32 + 1, "ready")); }
                observed.records.push(record);
            }
            for action in actions(&observed) {
                match action {
                    Action::Refresh(new) | Action::Adopt(new) => {
                        observed.records.retain(|record| record.worker_id != new.worker_id);
                        observed.records.push(new);
                    }
                    Action::Remove(old) => observed.records.retain(|record| record.worker_id != old.worker_id),
                }
            }
            prop_assert!(actions(&observed).is_empty());
        }
    }
}
