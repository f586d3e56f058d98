//! What the brain is told goes into the journal, with the commit that follows.

use api_types::ErrorCode;
use orchestrator_core::journal::Recorder;
use orchestrator_core::{Event, Orchestrator, Step, Time};

use crate::store::Change;

/// Inputs that no commit waits for are written once they are this many bytes,
const PATIENCE_BYTES: usize = 256 * 1024;
/// or this old, in milliseconds.
const PATIENCE_MS: u64 = 60_000;
/// A journal begins anew with a snapshot after this many bytes of entries, so that what is older
/// can be deleted.
const SNAPSHOT_EVERY_BYTES: u64 = 16 * 1024 * 1024;

/// The driver's side of the journal.
#[derive(Debug, Default)]
pub struct Journal {
    recorder: Recorder,
    /// When the oldest input came that is not written.
    waiting_since: Option<Time>,
    /// Nothing is recorded before the first snapshot, or after an input without a written form.
    begun: bool,
}

impl Journal {
    /// Notes an event, before the brain handles it.
    pub fn event(&mut self, event: &Event, now: Time) {
        if self.begun {
            let noted = self.recorder.event(event, now);
            self.note(noted.err(), now);
        }
    }

    /// Notes a timeout, before the brain handles it.
    pub fn timeout(&mut self, now: Time) {
        if self.begun {
            let noted = self.recorder.timeout(now);
            self.note(noted.err(), now);
        }
    }

    fn note(&mut self, error: Option<impl std::fmt::Display>, now: Time) {
        self.waiting_since.get_or_insert(now);
        self.begin_anew_after(error);
    }

    /// A journal with a hole would replay to something that never happened: it ends here, and the
    /// next commit begins another.
    fn begin_anew_after(&mut self, error: Option<impl std::fmt::Display>) {
        if let Some(error) = error {
            tracing::error!(code = ErrorCode::Internal.as_str(), %error, "the journal begins anew");
            self.recorder.take();
            self.begun = false;
        }
    }

    /// Notes what the brain made of the last input.
    pub fn decided(&mut self, step: &Step) {
        if self.begun {
            let noted = self.recorder.decided(step);
            self.begin_anew_after(noted.err());
        }
    }

    /// Whether inputs have waited for a commit long enough to get one of their own.
    pub fn is_overdue(&self, now: Time) -> bool {
        self.recorder.waiting_bytes() >= PATIENCE_BYTES
            || self.waiting_since.is_some_and(|since| now.since(since) >= PATIENCE_MS)
    }

    /// What is to be written at the end of a round. `committing`: a commit happens anyway.
    pub fn changes(&mut self, brain: &Orchestrator, committing: bool, now: Time) -> Vec<Change> {
        let mut changes = Vec::new();
        // A life begins its journal before anything happens in it, so that every decision can be had again.
        if committing || !self.begun || self.is_overdue(now) {
            self.waiting_since = None;
            changes.extend(self.recorder.take().map(Change::AppendJournal));
            let full = self.recorder.bytes_since_snapshot() >= SNAPSHOT_EVERY_BYTES;
            if !self.begun || full {
                changes.extend(self.begin(brain, now));
            }
        }
        changes
    }

    fn begin(&mut self, brain: &Orchestrator, now: Time) -> Option<Change> {
        match brain.snapshot() {
            Ok(snapshot) => {
                self.recorder.begin();
                self.begun = true;
                Some(Change::BeginJournal { at: now, snapshot })
            }
            Err(error) => {
                tracing::error!(code = ErrorCode::Internal.as_str(), %error, "no journal can be kept");
                None
            }
        }
    }
}
