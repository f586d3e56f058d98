//! What goes ahead of a commit that waits for room on the disk.
//!
//! While rows are held back, workers and callers go on speaking. What depends on a held row waits
//! with it: commit, then act, also when the commit takes an hour. An action depends on the held
//! rows when one of them is about its job or its worker; then it waits, and from then on so does
//! everything about that job, in order. Anything else is done at once:
//!
//! - A sign of life is always answered, or workers would think themselves orphaned while all that
//!   is wrong is our disk. The answer names no run to drop and asks for no drain, because both may
//!   follow from rows that are not on disk; the heartbeats after the commit tell them.
//! - Questions to workers and pools change nothing there and are asked; a refusal promises nothing
//!   and is given.
//! - Jobs of `durability: memory` have no rows, so they are taken in, run and end, on workers whose
//!   registration is on disk.
//! - A slot that such a job gets may have been freed by a held decision. That is no dependence: the
//!   worker itself says whether the slot is free, and refuses the run otherwise.
//! - Changes of workers, pools, sessions and policies wait, and so does their answer.

use std::collections::BTreeSet;

use api_types::{JobId, WorkerId};
use orchestrator_core::{Action, Answer, Event, Notice};

use crate::store::Change;

/// The jobs and workers that something waits for the disk about.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    jobs: BTreeSet<JobId>,
    workers: BTreeSet<WorkerId>,
}

/// What an action, an answer or a row is about.
#[derive(Debug, Default, Clone)]
pub(super) struct Subject {
    job: Option<JobId>,
    worker: Option<WorkerId>,
}

impl Subject {
    const fn job(job_id: JobId) -> Self {
        Self { job: Some(job_id), worker: None }
    }

    fn worker(worker_id: &WorkerId) -> Self {
        Self { job: None, worker: Some(worker_id.clone()) }
    }

    fn run(job_id: JobId, worker_id: &WorkerId) -> Self {
        Self { job: Some(job_id), worker: Some(worker_id.clone()) }
    }

    fn is_nobody(&self) -> bool {
        self.job.is_none() && self.worker.is_none()
    }

    /// Whom the answer to this event is about, which the answer itself does not always say.
    pub fn of_event(event: &Event) -> Self {
        match event {
            Event::Cancel { job_id, .. } | Event::Abandon { job_id } => Self::job(*job_id),
            Event::WorkerReady { facts, .. } => Self::worker(&facts.worker_id),
            Event::WorkerFailed { worker_id, .. } | Event::DrainWorker { worker_id, .. } => {
                Self::worker(worker_id)
            }
            _ => Self::default(),
        }
    }
}

impl Awaited {
    /// These rows wait.
    pub fn rows<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) {
        for change in changes {
            self.jobs.extend(change.job_id());
            match change {
                Change::PutWorker(row) => self.workers.insert(row.facts.worker_id.clone()),
                Change::DeleteWorker(worker_id) | Change::DeleteSpawn(worker_id) => {
                    self.workers.insert(worker_id.clone())
                }
                Change::PutSpawn(row) => self.workers.insert(row.worker_id.clone()),
                _ => false,
            };
        }
    }

    /// This action waits, and so does what follows about its job. Runs of other jobs on the same
    /// worker are free to go.
    fn action(&mut self, action: &Action) {
        self.jobs.extend(subject_of(action).and_then(|subject| subject.job));
    }

    /// The actions that need not wait, in a form that needs nothing held; the others, which do.
    pub fn sort(&mut self, actions: Vec<Action>, asked: &Subject) -> (Vec<Action>, Vec<Action>) {
        let (mut ahead, mut held) = (Vec::new(), Vec::new());
        for action in actions {
            if self.lets_pass(&action, asked) {
                ahead.push(without_held(action));
            } else {
                self.action(&action);
                held.push(action);
            }
        }
        (ahead, held)
    }

    fn lets_pass(&self, action: &Action, asked: &Subject) -> bool {
        match action {
            Action::ProbeWorker { .. } | Action::AskPool { .. } => true,
            Action::Answer { answer: Answer::Heartbeat { .. } | Answer::Refused(_), .. } => true,
            Action::Answer { answer: Answer::Accepted { job_id, .. }, .. } => {
                self.knows_nothing_of(&Subject::job(*job_id))
            }
            Action::Answer { .. } => !asked.is_nobody() && self.knows_nothing_of(asked),
            _ => subject_of(action).is_some_and(|subject| self.knows_nothing_of(&subject)),
        }
    }

    fn knows_nothing_of(&self, subject: &Subject) -> bool {
        let job_free = subject.job.is_none_or(|job_id| !self.jobs.contains(&job_id));
        job_free && subject.worker.as_ref().is_none_or(|worker_id| !self.workers.contains(worker_id))
    }
}

/// What a worker is told without what may not be on disk yet; it is told that with a later answer.
fn without_held(action: Action) -> Action {
    let Action::Answer { request, answer } = action else { return action };
    let answer = match answer {
        Answer::Heartbeat { .. } => Answer::Heartbeat { drop_runs: Vec::new(), drain: false },
        Answer::Registered { incarnation, .. } => Answer::Registered { incarnation, drop_runs: Vec::new() },
        answer => answer,
    };
    Action::Answer { request, answer }
}

/// Whom an action is about; nothing for one that always waits.
fn subject_of(action: &Action) -> Option<Subject> {
    match action {
        Action::OpenStream(open) => Some(Subject::run(open.run.job_id, &open.run.worker_id)),
        Action::PassStream(run)
        | Action::DropStream(run)
        | Action::Salvage(run)
        | Action::ResumeStream { run, .. }
        | Action::StopRun { run, .. }
        | Action::AckRun { run, .. } => Some(Subject::run(run.job_id, &run.worker_id)),
        Action::Publish { job_id, .. }
        | Action::PublishLive { job_id, .. }
        | Action::EndJob { job_id, .. }
        | Action::Notify(Notice::Job { job_id, .. }) => Some(Subject::job(*job_id)),
        Action::Notify(Notice::Worker { worker_id, .. } | Notice::ProtocolBroken { worker_id, .. }) => {
            Some(Subject::worker(worker_id))
        }
        Action::Notify(Notice::Queue { .. } | Notice::StaleDropped { .. } | Notice::PolicyFailed { .. }) => {
            Some(Subject::default())
        }
        Action::Answer { .. }
        | Action::ProbeWorker { .. }
        | Action::AskPool { .. }
        | Action::SpawnWorker { .. }
        | Action::StopWorker { .. }
        | Action::Notify(Notice::Spawn { .. } | Notice::Unload { .. } | Notice::PolicyDemoted(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use api_types::task::TaskStatus;
    use api_types::{Attempt, Incarnation};
    use orchestrator_core::{RequestId, Run, RunKey};
    use uuid::Uuid;

    use super::*;

    fn job(number: u128) -> JobId {
        JobId::from_uuid(Uuid::from_u128(number))
    }

    fn answer(answer: Answer) -> Action {
        Action::Answer { request: RequestId(1), answer }
    }

    fn drop_stream(job_id: JobId) -> Action {
        let worker_id = "w".parse().expect("an id");
        Action::DropStream(RunKey { job_id, attempt: Attempt(1), worker_id, incarnation: Incarnation(1) })
    }

    fn awaiting(job_id: JobId) -> Awaited {
        let mut awaited = Awaited::default();
        awaited.rows(&[Change::Publish { job_id, frames: Vec::new() }]);
        awaited
    }

    #[test]
    fn what_is_about_a_held_row_waits_and_the_rest_does_not() {
        let (ahead, held) =
            awaiting(job(1)).sort(vec![drop_stream(job(1)), drop_stream(job(2))], &Subject::default());
        assert_eq!((ahead, held), (vec![drop_stream(job(2))], vec![drop_stream(job(1))]));
    }

    #[test]
    fn a_heartbeat_is_answered_without_what_may_not_be_on_disk() {
        let run = Run { job_id: job(1), attempt: Attempt(1), ended: true };
        let told = answer(Answer::Heartbeat { drop_runs: vec![run], drain: true });
        let (ahead, _) = awaiting(job(1)).sort(vec![told], &Subject::default());
        assert_eq!(ahead, vec![answer(Answer::Heartbeat { drop_runs: Vec::new(), drain: false })]);
    }

    #[test]
    fn an_answer_goes_ahead_only_when_it_is_known_whom_it_is_about() {
        let told = || vec![answer(Answer::Cancelled { status: TaskStatus::Completed, already_ended: true })];
        let mut awaited = awaiting(job(1));
        assert!(awaited.sort(told(), &Subject::job(job(1))).0.is_empty());
        assert!(awaited.sort(told(), &Subject::default()).0.is_empty());
        assert_eq!(awaited.sort(told(), &Subject::job(job(2))).0, told());
    }
}
