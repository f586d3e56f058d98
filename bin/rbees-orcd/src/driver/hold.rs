//! A commit that the disk refuses for want of room: new jobs are taken back and their submitters
//! told so, the other rows wait and are tried again, and so does all that depends on them. What
//! depends on none of them is done meanwhile; see [`super::ahead`].

use std::collections::BTreeSet;

use api_types::{ErrorCode, ErrorDetail, JobId};
use orchestrator_core::{Action, Answer, Event, Time};

use super::ahead::{Awaited, Subject};
use super::brain::Brain;
use super::handle::Reply;
use super::round::{Act, Round};
use crate::store::{Change, Class, StoreError};

/// Between two tries of a commit that waits, in milliseconds.
const TRY_AGAIN_AFTER_MS: u64 = 500;

/// What new jobs are told while nothing can be written down.
pub fn storage_full() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::StorageFull, "the disk of the orchestrator has no room for new jobs")
        .with_hint("free some space and send the task again; what workers generate goes on meanwhile")
        .with_retry_after_ms(5_000)
}

impl Brain {
    /// Commits and gives back what is to be done now, or keeps both until the disk takes it.
    ///
    /// # Errors
    /// When the database failed in a way that does not pass.
    pub(super) fn write_or_hold(
        &mut self,
        mut changes: Vec<Change>,
        mut acts: Vec<Act>,
        now: Time,
    ) -> Result<Option<Vec<Act>>, StoreError> {
        self.held_until = None;
        self.awaited = Awaited::default();
        let Err(error) = self.write(&changes, now) else { return Ok(Some(acts)) };
        let full = self.note_refusal(error)? == Class::Full;
        let new: BTreeSet<JobId> = changes.iter().filter_map(new_job).collect();
        if full && !new.is_empty() {
            (changes, acts) = self.withdraw(&new, changes, acts)?;
            // After all of them: the slot of one may have gone to another that was taken back next.
            changes.retain(|change| change.job_id().is_none_or(|job_id| !new.contains(&job_id)));
            acts = acts.into_iter().filter_map(|act| self.without(act, &new)).collect();
            let Err(error) = self.write(&changes, now) else { return Ok(Some(acts)) };
            self.note_refusal(error)?;
        }
        self.hold(changes, acts, now)?;
        Ok(None)
    }

    fn hold(&mut self, changes: Vec<Change>, acts: Vec<Act>, now: Time) -> Result<(), StoreError> {
        let mut actions = Vec::new();
        for act in acts {
            match act {
                Act::Action(action) => actions.push(action),
                // With a full disk, how things stand is what people need to see.
                Act::Question(question) => question(&self.orchestrator, now),
            }
        }
        self.held_until = Some(now + TRY_AGAIN_AFTER_MS);
        let waiting = self.act_ahead(&changes, actions)?;
        self.round = Round::from_parts(changes, waiting.into_iter().map(Act::Action).collect());
        Ok(())
    }

    /// Does what depends on nothing that waits, these changes among it, and gives back the rest.
    /// While no commit is held that is all of it: the commit that is due comes soon.
    pub(super) fn act_ahead(
        &mut self,
        changes: &[Change],
        actions: Vec<Action>,
    ) -> Result<Vec<Action>, StoreError> {
        if self.held_until.is_none() {
            return Ok(actions);
        }
        self.awaited.rows(changes);
        let asked: Subject = std::mem::take(&mut self.asked);
        let (ahead, waiting) = self.awaited.sort(actions, &asked);
        ahead.into_iter().try_for_each(|action| self.perform(action))?;
        Ok(waiting)
    }

    /// Only what may pass without us is waited for: room on the disk, or another program that holds
    /// the database for a while.
    pub(super) fn note_refusal(&self, error: StoreError) -> Result<Class, StoreError> {
        let class = error.class();
        match class {
            Class::Full | Class::Busy => {
                tracing::warn!(code = "COMMIT_REFUSED", %error, "a commit waits; it is tried again");
                if class == Class::Full {
                    self.store.keeper().room().refuse();
                }
                Ok(class)
            }
            Class::NotWritable | Class::Unusable | Class::Broken => Err(error),
        }
    }

    /// What is left of an act when these jobs were never in. Their submitters are told so at once.
    fn without(&mut self, act: Act, withdrawn: &BTreeSet<JobId>) -> Option<Act> {
        let Act::Action(action) = act else { return Some(act) };
        if let Action::Answer { request, answer: Answer::Accepted { job_id, .. } } = &action
            && withdrawn.contains(job_id)
        {
            if let Some(waiting) = self.waiting.remove(request) {
                let refused = Answer::Refused(storage_full());
                let _ = waiting.send(Reply { answer: refused, reader: None });
            }
            return None;
        }
        let about = job_of(&action);
        about.is_none_or(|job_id| !withdrawn.contains(&job_id)).then_some(Act::Action(action))
    }

    /// Tells the brain that these jobs were never in. What follows from it joins what is to be
    /// written and done.
    fn withdraw(
        &mut self,
        new: &BTreeSet<JobId>,
        changes: Vec<Change>,
        acts: Vec<Act>,
    ) -> Result<(Vec<Change>, Vec<Act>), StoreError> {
        self.round = Round::from_parts(changes, acts);
        for job_id in new {
            self.requests.forget(*job_id);
            self.actions.subscribers.remove(*job_id, false);
            self.handle(Event::Withdraw { job_id: *job_id })?;
        }
        Ok(std::mem::take(&mut self.round).into_parts())
    }
}

fn new_job(change: &Change) -> Option<JobId> {
    match change {
        Change::InsertJob { row, .. } => Some(row.job_id),
        _ => None,
    }
}

fn job_of(action: &Action) -> Option<JobId> {
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
