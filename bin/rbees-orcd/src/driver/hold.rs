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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use api_types::task::{Durability, OnDisconnect, Placement, Priority, RetryMode};
    use api_types::worker::{ExecuteRequest, WorkerFacts, WorkerStatus};
    use api_types::{InstanceId, PROTOCOL, PrefixChain, TenantId};
    use orchestrator_core::{Orchestrator, RequestId, Rows, Settings, Submission};
    use tempfile::TempDir;
    use tokio::sync::oneshot;
    use uuid::Uuid;

    use super::*;
    use crate::actions::{Actions, PoolLimits};
    use crate::clock::{Clock, Wall};
    use crate::driver::Keeping;
    use crate::driver::handle::Message;
    use crate::driver::requests::RequestBody;
    use crate::hashes::HashKey;
    use crate::metrics::Metrics;
    use crate::pool_directory::PoolDirectory;
    use crate::relay::StallLimits;
    use crate::store::Store;
    use crate::subscribers::Subscribers;

    const MODEL: &str = "small";
    /// More than what is left of any page, and less than what lies in a file.
    const PROMPT_BYTES: usize = 12 * 1024;

    fn brain(home: &TempDir) -> Brain {
        let store = Store::open(home.path()).expect("opened");
        let (handle, _) = crate::driver::mailbox(HashKey([0; 16]), store.keeper().clone());
        let settings = Settings::default();
        let (clock, _) = Clock::start(Wall::default().now(), Time(0));
        let limit = Duration::from_secs(60);
        let actions = Actions::new(
            tokio::runtime::Handle::current(),
            handle,
            Subscribers::new(Box::new(drop), Box::new(|| ())),
            PoolDirectory::new(home.path().to_owned(), "http://127.0.0.1:1".to_owned(), None),
            StallLimits { first_token: limit, between_events: limit },
            PoolLimits::of(&settings.supply),
            Metrics::default(),
        );
        let (orchestrator, _) = Orchestrator::recover(settings, Rows::default(), clock.now());
        let keeping = Keeping { retention: limit, prompts: false, journal_snapshot_bytes: 1 << 20 };
        Brain::new(orchestrator, store, clock, actions, keeping)
    }

    fn worker_with_one_slot() -> Event {
        let facts = WorkerFacts {
            worker_id: "w".parse().expect("an id"),
            instance: InstanceId(Uuid::from_u128(1)),
            pool_id: None,
            uri: "http://127.0.0.1:1".to_owned(),
            model: MODEL.to_owned(),
            model_ref: None,
            backend: "fake".to_owned(),
            devices: Vec::new(),
            slots: 1,
            context_length: 100_000,
            vram_bytes: 0,
            ram_bytes: 0,
            quantization: None,
            tokenizer: None,
            capabilities: Vec::new(),
            evictable: false,
            engine: "fake".to_owned(),
            version: "0".to_owned(),
            protocol: PROTOCOL,
        };
        let (status, runs) = (WorkerStatus::Ready, Vec::new());
        Event::WorkerReady { request: RequestId(0), facts: Box::new(facts), status, runs, secret: None }
    }

    fn job(number: u64) -> JobId {
        JobId::from_uuid(Uuid::from_u128(number.into()))
    }

    fn submit(brain: &mut Brain, number: u64) -> oneshot::Receiver<Reply> {
        let prompt = "b".repeat(PROMPT_BYTES);
        let submission = Submission {
            request: RequestId(number),
            job_id: job(number),
            model: Some(MODEL.to_owned()),
            chat: false,
            tenant: TenantId::default(),
            session_id: None,
            prompt_bytes: prompt.len() as u64,
            prompt_tokens: None,
            prefix: PrefixChain::default(),
            max_tokens: Some(16),
            priority: Priority::Interactive,
            deadline_ms: None,
            on_disconnect: OnDisconnect::Continue,
            retry: RetryMode::BeforeFirstToken,
            placement: Placement::default(),
            durability: Durability::Durable,
            is_read: false,
            idempotency: None,
            correlation_id: "test".parse().expect("an id"),
        };
        let body = RequestBody::new(ExecuteRequest { prompt: Some(prompt), ..Default::default() });
        let (reply, answer) = oneshot::channel();
        let waiting = Some((RequestId(number), reply));
        brain.take(Message::Submit(Box::new(submission), body, None, waiting));
        answer
    }

    #[tokio::test]
    async fn the_slot_of_a_job_that_a_full_disk_refuses_goes_to_no_other_that_it_refuses() {
        let home = TempDir::new().expect("a folder");
        let mut brain = brain(&home);
        brain.take(Message::Event(Box::new(worker_with_one_slot()), None));
        brain.commit().expect("there is room");
        brain.store.grow_no_more();
        // The first is handed to the worker, the second waits behind it.
        let mut answers = [submit(&mut brain, 1), submit(&mut brain, 2)];
        let (changes, acts) = std::mem::take(&mut brain.round).into_parts();
        assert!(changes.iter().filter_map(new_job).eq([job(1), job(2)]), "{changes:?}");
        let left = brain.write_or_hold(changes, acts, brain_time()).expect("it passes");
        let left = left.expect("nothing is left to be written");
        let about = left.iter().filter_map(|act| match act {
            Act::Action(action) => job_of(action),
            Act::Question(_) => None,
        });
        assert_eq!(about.collect::<Vec<_>>(), [], "neither was ever in");
        for answer in &mut answers {
            let Answer::Refused(error) = answer.try_recv().expect("an answer").answer else {
                panic!("it was taken in")
            };
            assert_eq!(error.code, ErrorCode::StorageFull);
        }
    }

    fn brain_time() -> Time {
        Wall::default().now()
    }
}
