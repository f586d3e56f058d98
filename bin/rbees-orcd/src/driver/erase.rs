//! Erasing ended jobs because somebody asks for it: record, events and result, from the database and
//! from memory. A job that has not ended stays.

use api_types::{ErrorDetail, JobId};
use orchestrator_core::Event;
use tokio::sync::oneshot;

use super::brain::Brain;
use super::hold::storage_full;
use crate::store::StoreError;

/// Jobs erased in one go, so that nobody waits for it.
const BATCH: u32 = 200;

/// What is to be erased, and who waits to hear how much was.
pub(super) struct Erasure {
    /// One job, or all that have ended.
    pub which: Option<JobId>,
    /// Jobs so far.
    pub erased: u64,
    /// Who waits.
    pub reply: oneshot::Sender<Result<u64, ErrorDetail>>,
}

impl Brain {
    /// Goes on with everything that is to be erased. Follows a commit, so that every end that was
    /// decided is in the database.
    pub(super) fn erase(&mut self) -> Result<(), StoreError> {
        for mut erasure in std::mem::take(&mut self.erasures) {
            match self.store.erase(erasure.which, BATCH) {
                Ok(stored) => {
                    let more = stored.len() >= BATCH as usize;
                    let in_memory = self.actions.subscribers.forget_ended(erasure.which);
                    for job_id in stored.into_iter().chain(in_memory) {
                        erasure.erased += 1;
                        self.handle(Event::Withdraw { job_id })?;
                    }
                    if more {
                        self.erasures.push(erasure);
                        continue;
                    }
                    self.store.clear_log();
                    let _ = erasure.reply.send(Ok(erasure.erased));
                }
                // Deleting needs room too.
                Err(error) => {
                    self.note_refusal(error)?;
                    let _ = erasure.reply.send(Err(storage_full()));
                }
            }
        }
        Ok(())
    }
}
