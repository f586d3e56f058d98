//! Jobs that go on elsewhere, in small: what of their logs is on disk, and how far readers see.

use std::collections::BTreeMap;

use api_types::task::{Durability, RetryMode, TaskStatus};
use api_types::{JobId, TaskEvent};
use orchestrator_core::{Action, Event, JobRow, Kept, RunKey, Step};

use crate::bugs::Bug;
use crate::daemon::{Daemon, Logged};
use crate::world::{Happening, World};

/// Events that readers may see before they are on disk.
const AHEAD: usize = 20;
/// Milliseconds between two checkpoints.
const CHECKPOINT_MS: u64 = 1_000;

/// Whether a job's log is written down as it grows.
pub fn is_carried(row: &JobRow) -> bool {
    row.retry == RetryMode::Continue && row.durability == Durability::Durable
}

impl Daemon {
    /// What a lost run has left, as of the actions decided so far.
    pub fn salvaged(&self, step: &Step, run: &RunKey) -> Event {
        let log = self.log_at_end(step, run.job_id);
        let count = |wanted: fn(&Logged) -> bool| log.iter().filter(|logged| wanted(logged)).count() as u32;
        let reach = self.reach.get(&run.job_id).copied().unwrap_or(0);
        let kept = Kept {
            events: log.len() as u64,
            tokens: count(|logged| matches!(logged, Logged::Token { .. })),
            seams: count(|logged| matches!(logged, Logged::Other(TaskEvent::Seam { .. }))),
            unsure: if self.bug == Some(Bug::SeamTooEarly) {
                0
            } else {
                reach.saturating_sub(log.len()) as u32
            },
            ids_known: true,
        };
        Event::Salvaged { run: run.clone(), kept }
    }

    /// What a step puts on disk of the logs of jobs that go on elsewhere.
    pub fn checkpoints(&self, step: &Step) -> BTreeMap<JobId, Vec<Logged>> {
        let of_jobs = step.actions.iter().filter_map(|action| match action {
            Action::Salvage(run) | Action::PassStream(run) => Some(run.job_id),
            _ => None,
        });
        of_jobs.map(|job_id| (job_id, self.log_at_end(step, job_id))).collect()
    }
}

impl World {
    /// The logs and their reach as a new orchestrator finds them.
    pub fn logs_on_disk(&self) -> (BTreeMap<JobId, Vec<Logged>>, BTreeMap<JobId, usize>) {
        let living = self.store.jobs.iter().filter(|(_, stored)| !stored.row.status.is_terminal());
        let (mut logs, mut reach) = (BTreeMap::new(), BTreeMap::new());
        for (id, stored) in living {
            let log: Vec<Logged> = std::iter::once(&stored.queued).chain(&stored.saved).cloned().collect();
            if is_carried(&stored.row) {
                let running = if stored.row.status == TaskStatus::Running { log.len() + AHEAD } else { 0 };
                let carried = stored.row.carried.as_ref();
                let carried = carried.map_or(0, |carried| carried.events as usize + carried.unsure as usize);
                reach.insert(*id, running.max(carried));
            }
            logs.insert(*id, log);
        }
        (logs, reach)
    }

    /// The part of a living job's log that readers may see.
    pub fn shown<'a>(&self, job_id: JobId, log: &'a [Logged]) -> &'a [Logged] {
        let stored = self.store.jobs.get(&job_id).filter(|stored| is_carried(&stored.row));
        let bound = stored.map_or(usize::MAX, |stored| 1 + stored.saved.len() + AHEAD);
        log.get(..bound).unwrap_or(log)
    }

    /// Everything said so far by jobs that go on elsewhere is on disk.
    pub fn checkpoint(&mut self) {
        self.after(CHECKPOINT_MS, Happening::Checkpoint);
        let Some(daemon) = self.daemon.as_ref().filter(|_| self.now >= self.daemon_stopped_until) else {
            return;
        };
        // With a commit that the disk refuses, what is not on disk is part of a later checkpoint.
        if daemon.held.is_some() {
            return;
        }
        let mut saved = Vec::new();
        for (job_id, log) in &daemon.logs {
            let stored = self.store.jobs.get_mut(job_id);
            if let Some(stored) = stored.filter(|s| is_carried(&s.row) && !s.row.status.is_terminal()) {
                stored.saved = log.get(1..).unwrap_or_default().to_vec();
                saved.push(*job_id);
            }
        }
        saved.into_iter().for_each(|job_id| self.wake_readers(job_id));
    }
}
