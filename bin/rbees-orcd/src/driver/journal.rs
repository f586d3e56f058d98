//! What the brain is told goes into the journal, with the commit that follows.

use api_types::ErrorCode;
use orchestrator_core::journal::Recorder;
use orchestrator_core::{Event, Orchestrator, Step, Time};

use crate::store::Change;

/// Inputs that no commit waits for are written once they are this many bytes,
const PATIENCE_BYTES: usize = 256 * 1024;
/// or this old, in milliseconds.
const PATIENCE_MS: u64 = 60_000;

/// The driver's side of the journal.
#[derive(Debug)]
pub struct Journal {
    /// It begins anew with a snapshot after this many bytes of entries, so that what is older can be
    /// deleted; but not before as many as the last snapshot took.
    snapshot_every: u64,
    /// Bytes of the last snapshot.
    last_snapshot: u64,
    recorder: Recorder,
    /// When the oldest input came that is not written.
    waiting_since: Option<Time>,
    /// Nothing is recorded before the first snapshot, or after an input without a written form.
    begun: bool,
}

impl Journal {
    /// A journal that begins anew after so many bytes of entries.
    pub fn new(snapshot_every: u64) -> Self {
        let (recorder, waiting_since) = (Recorder::default(), None);
        Self { snapshot_every, last_snapshot: 0, recorder, waiting_since, begun: false }
    }

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
    pub fn segment(&mut self, committing: bool, now: Time) -> Option<Change> {
        if !(committing || self.is_overdue(now)) {
            return None;
        }
        self.waiting_since = None;
        self.recorder.take().map(Change::AppendJournal)
    }

    /// A snapshot to begin (anew) with, when it is time and nothing waits to be written. A life begins
    /// its journal before anything happens in it, so that every decision can be had again.
    pub fn begin_if_due(&mut self, brain: &Orchestrator, now: Time) -> Option<Change> {
        let written = self.recorder.bytes_since_snapshot();
        let full = written >= self.snapshot_every.max(self.last_snapshot);
        (self.recorder.waiting_bytes() == 0 && (full || !self.begun))
            .then(|| self.begin(brain, now))
            .flatten()
    }

    fn begin(&mut self, brain: &Orchestrator, now: Time) -> Option<Change> {
        match brain.snapshot() {
            Ok(snapshot) => {
                self.recorder.begin();
                self.begun = true;
                self.last_snapshot = snapshot.len() as u64;
                Some(Change::BeginJournal { at: now, snapshot })
            }
            Err(error) => {
                tracing::error!(code = ErrorCode::Internal.as_str(), %error, "no journal can be kept");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use orchestrator_core::{Rows, Settings};

    use super::*;

    #[test]
    fn snapshots_are_never_more_bytes_than_what_is_written_between_them() {
        let (brain, _) = Orchestrator::recover(Settings::default(), Rows::default(), Time(1));
        let mut journal = Journal::new(1);
        let size = |change: Option<Change>| match change {
            Some(Change::BeginJournal { snapshot, .. }) => snapshot.len() as u64,
            other => panic!("a journal begins with a snapshot, not with {other:?}"),
        };
        let snapshot = size(journal.begin_if_due(&brain, Time(1)));
        let mut written = 0;
        for ms in 2.. {
            journal.timeout(Time(ms));
            assert!(journal.begin_if_due(&brain, Time(ms)).is_none(), "what waits goes first");
            let Some(Change::AppendJournal(segment)) = journal.segment(true, Time(ms)) else {
                panic!("a timeout is written")
            };
            written += segment.entries.len() as u64;
            let begun = journal.begin_if_due(&brain, Time(ms));
            assert_eq!(begun.is_some(), written >= snapshot, "{written} of {snapshot} bytes");
            if begun.is_some() {
                assert_eq!(size(begun), snapshot);
                return;
            }
        }
    }
}
