//! From what the brain asked for to what is written: adds the texts that the brain never sees.
//!
//! Logs are brought to the state that the commit will make true, where no reader can see it yet;
//! the actions then only show it.

use std::collections::HashMap;
use std::sync::Arc;

use api_types::JobId;
use bytes::Bytes;
use orchestrator_core::{Action, Write};

use crate::store::housekeeping::StoredRequest;
use crate::store::{Change, KeptStream};
use crate::subscribers::{JobLog, Subscribers};

/// The changes of one step. `request` is that of the durable job which the step takes in, if it does.
pub fn changes(
    subscribers: &Subscribers,
    writes: Vec<Write>,
    actions: &[Action],
    request: Option<StoredRequest>,
) -> Vec<Change> {
    let mut texts = Texts { request, is_written: !writes.is_empty(), ..Texts::default() };
    for action in actions {
        texts.stage(subscribers, action);
    }
    if writes.is_empty() {
        // A job in memory only: its events are nowhere but in its log.
        return Vec::new();
    }
    let mut changes: Vec<Change> = writes.into_iter().map(|write| texts.complete(write)).collect();
    changes.extend(texts.checkpoints);
    changes.extend(texts.published.into_iter().map(|(job_id, frames)| Change::Publish { job_id, frames }));
    changes
}

/// Frames and logs of the jobs of one step.
#[derive(Default)]
struct Texts {
    /// Whether anything of this step goes to disk.
    is_written: bool,
    published: HashMap<JobId, Vec<u8>>,
    sealed: HashMap<JobId, Arc<JobLog>>,
    request: Option<StoredRequest>,
    checkpoints: Vec<Change>,
}

/// Everything of this log that is to be on disk and is not; nothing for a job that cannot go on
/// elsewhere.
pub fn checkpoint(log: &JobLog) -> Option<Change> {
    let unsaved = log.unsaved()?;
    Some(Change::Checkpoint { job_id: log.job_id(), unsaved })
}

impl Texts {
    fn stage(&mut self, subscribers: &Subscribers, action: &Action) {
        match action {
            Action::Publish { job_id, event } => {
                let log = subscribers.log(*job_id).unwrap_or_else(|| subscribers.create(*job_id, &[], true));
                let frames = self.is_written.then(|| self.published.entry(*job_id).or_default());
                log.stage(event, frames);
            }
            Action::PassStream(run) => {
                if let Some(log) = subscribers.log(run.job_id) {
                    log.keep_held();
                    self.checkpoints.extend(checkpoint(&log));
                }
            }
            Action::Salvage(run) => {
                if let Some(log) = subscribers.log(run.job_id) {
                    self.checkpoints.extend(checkpoint(&log));
                }
            }
            Action::DropStream(run) => {
                if let Some(log) = subscribers.log(run.job_id) {
                    log.drop_run();
                }
            }
            Action::EndJob { job_id, release_held, last_event } => {
                let log = subscribers.log(*job_id).unwrap_or_else(|| subscribers.create(*job_id, &[], false));
                log.seal(*release_held, last_event);
                if self.is_written {
                    self.sealed.insert(*job_id, log);
                }
            }
            _ => {}
        }
    }

    fn complete(&mut self, write: Write) -> Change {
        match write {
            Write::InsertJob(row) => {
                let published = self.published.remove(&row.job_id).unwrap_or_default();
                let request = self.request.take().unwrap_or_else(|| StoredRequest::Row(Bytes::new()));
                Change::InsertJob { row, request, published }
            }
            Write::UpdateJob(row) => Change::UpdateJob(row),
            Write::EndJob { row, .. } => {
                let log = self.sealed.remove(&row.job_id);
                let stream = log.map_or_else(KeptStream::default, |log| log.to_keep());
                Change::EndJob { row, stream }
            }
            Write::PutDecision { job_id, attempt, decision } => {
                Change::PutDecision { job_id, attempt, decision }
            }
            Write::PutWorker(row) => Change::PutWorker(row),
            Write::DeleteWorker(worker_id) => Change::DeleteWorker(worker_id),
            Write::PutPool(row) => Change::PutPool(row),
            Write::DeletePool(pool_id) => Change::DeletePool(pool_id),
            Write::PutEstimates(estimates) => Change::PutEstimates(estimates),
            Write::PutSession(row) => Change::PutSession(row),
            Write::DeleteSession { tenant, session_id } => Change::DeleteSession(tenant, session_id),
            Write::PutPolicies(rows) => Change::PutPolicies(rows),
            Write::PutSpawn(row) => Change::PutSpawn(row),
            Write::DeleteSpawn(worker_id) => Change::DeleteSpawn(worker_id),
        }
    }
}
