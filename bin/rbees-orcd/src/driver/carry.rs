//! Jobs that go on elsewhere: what of their logs is on disk, and what a lost run has left in them.

use api_types::task::TaskStatus;
use orchestrator_core::{Action, Event, JobRow};

use super::prepare::checkpoint;
use crate::store::Change;
use crate::subscribers::{AHEAD, Subscribers};

/// Takes over the log of such a job from the database. Readers of a running one may have been ahead
/// of it, and so may those of one that waits after such a loss.
pub fn take_over(subscribers: &Subscribers, row: &JobRow) {
    let Some(log) = subscribers.log(row.job_id) else { return };
    let carried = row.carried.as_ref().map_or(0, |carried| carried.events + u64::from(carried.unsure));
    let running = row.status == TaskStatus::Running;
    let reach = if running { log.tally().events + AHEAD as u64 } else { 0 };
    subscribers.carry(row.job_id, true, reach.max(carried));
}

/// What every run that is to be salvaged has left. To be told at once, before the next decision.
pub fn salvaged(subscribers: &Subscribers, actions: &[Action]) -> Vec<Event> {
    let runs = actions.iter().filter_map(|action| match action {
        Action::Salvage(run) => Some(run),
        _ => None,
    });
    runs.filter_map(|run| {
        let kept = subscribers.log(run.job_id)?.tally();
        Some(Event::Salvaged { run: run.clone(), kept })
    })
    .collect()
}

/// Everything that is not on disk yet of jobs that go on elsewhere.
pub fn checkpoints(subscribers: &Subscribers) -> Vec<Change> {
    subscribers.carried().iter().filter_map(|log| checkpoint(log)).collect()
}

/// The checkpoints among these changes are on disk.
pub fn saved(subscribers: &Subscribers, changes: &[Change]) {
    for change in changes {
        if let Change::Checkpoint { job_id, unsaved } = change
            && let Some(log) = subscribers.log(*job_id)
        {
            log.saved(unsaved.next_event);
        }
    }
}
