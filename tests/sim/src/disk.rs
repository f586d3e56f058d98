//! A disk that takes nothing for a while: new jobs are taken back, everything else waits.

use std::collections::BTreeSet;

use api_types::{ErrorCode, ErrorDetail, JobId};
use orchestrator_core::{Action, Answer, Event, RequestId, Step, Write};

use crate::bugs::Bug;
use crate::world::{Happening, World};

/// Between two tries of a commit that waits, in milliseconds.
const TRY_AGAIN_AFTER_MS: u64 = 500;

/// Whether the disk takes commits.
#[derive(Debug, Default)]
pub struct Disk {
    /// Until when it refuses some.
    pub refuses_until: u64,
    /// Whether it is full; else somebody else holds it.
    pub is_full: bool,
    /// Faults that nobody has noticed yet.
    pub unfelt: u64,
}

impl World {
    /// Whether the disk refuses this commit.
    fn is_refused(&mut self) -> bool {
        if self.now >= self.disk.refuses_until {
            return false;
        }
        self.counts.faults += std::mem::take(&mut self.disk.unfelt);
        true
    }

    /// What of a step is committed now. Of one that the disk refuses, new jobs are taken back and the
    /// rest waits, unless it is small enough.
    pub fn what_the_disk_takes(&mut self, mut step: Step) -> Option<Step> {
        if step.writes.is_empty() || !self.is_refused() {
            return Some(step);
        }
        let new: BTreeSet<JobId> = step.writes.iter().filter_map(new_job).collect();
        if self.disk.is_full && !new.is_empty() {
            if self.bug != Some(Bug::WithdrawForgotten) {
                new.iter().for_each(|job_id| self.decide(Event::Withdraw { job_id: *job_id }, &mut step));
            }
            // The slot of one that is taken back may go to another that is taken back next.
            step = self.without(step, &new);
            if self.rng.chance(30) {
                return Some(step);
            }
        }
        self.hold(step);
        None
    }

    fn hold(&mut self, mut step: Step) {
        if self.bug == Some(Bug::HeldForgotten) {
            step.writes.clear();
        }
        let life = self.life;
        if let Some(daemon) = &mut self.daemon {
            daemon.held = Some((step, self.now + TRY_AGAIN_AFTER_MS));
            self.after(TRY_AGAIN_AFTER_MS, Happening::DriverTurn(life));
        }
    }

    /// What is left of a step when these jobs were never in. Their submitters are told so.
    fn without(&mut self, step: Step, withdrawn: &BTreeSet<JobId>) -> Step {
        let gone = |job_id: Option<JobId>| job_id.is_some_and(|job_id| withdrawn.contains(&job_id));
        let writes = step.writes.into_iter().filter(|write| !gone(job_of_write(write))).collect();
        let mut actions = Vec::new();
        for action in step.actions {
            match &action {
                Action::Answer { request, answer: Answer::Accepted { job_id, .. } }
                    if gone(Some(*job_id)) && self.bug != Some(Bug::FullDiskAccepted) =>
                {
                    self.tell_full(*request);
                }
                other if gone(job_of(other)) => {}
                _ => actions.push(action),
            }
        }
        Step { writes, actions, ..step }
    }

    fn tell_full(&mut self, request: RequestId) {
        self.counts.withdrawn += 1;
        let error = ErrorDetail::new(ErrorCode::StorageFull, "scripted");
        self.answer(request, Answer::Refused(error));
    }
}

const fn new_job(write: &Write) -> Option<JobId> {
    match write {
        Write::InsertJob(row) => Some(row.job_id),
        _ => None,
    }
}

const fn job_of_write(write: &Write) -> Option<JobId> {
    match write {
        Write::InsertJob(row) | Write::UpdateJob(row) | Write::EndJob { row, .. } => Some(row.job_id),
        Write::PutDecision { job_id, .. } => Some(*job_id),
        _ => None,
    }
}

const fn job_of(action: &Action) -> Option<JobId> {
    match action {
        Action::OpenStream(open) => Some(open.run.job_id),
        Action::PassStream(run) | Action::DropStream(run) => Some(run.job_id),
        Action::ResumeStream { run, .. } | Action::StopRun { run, .. } | Action::AckRun { run, .. } => {
            Some(run.job_id)
        }
        Action::Publish { job_id, .. } | Action::EndJob { job_id, .. } => Some(*job_id),
        _ => None,
    }
}
