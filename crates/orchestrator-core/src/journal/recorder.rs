//! Gathers what is to be written of the inputs of one commit.

use crate::event::Event;
use crate::journal::Unreadable;
use crate::journal::digest::Digest;
use crate::journal::entry::{insert_cut, write_event, write_timeout};
use crate::step::Step;
use crate::time::Time;

/// Consecutive inputs and what they led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// When the first input came.
    pub from: Time,
    /// The entries, for [`super::entries`].
    pub entries: Vec<u8>,
    /// All decisions since the last snapshot, these included.
    pub digest: Digest,
}

/// Collects inputs until somebody writes them down. One per brain.
#[derive(Debug, Default)]
pub struct Recorder {
    from: Option<Time>,
    entries: Vec<u8>,
    digest: Digest,
    since_snapshot: u64,
    /// Where the last entry begins, and when it was.
    last: (usize, Time),
}

impl Recorder {
    /// Notes an event before the brain handles it.
    ///
    /// # Errors
    /// When it has no written form.
    pub fn event(&mut self, event: &Event, at: Time) -> Result<(), Unreadable> {
        self.begin_entry(at);
        write_event(&mut self.entries, event, at)
    }

    /// Notes a timeout before the brain handles it.
    ///
    /// # Errors
    /// When it has no written form.
    pub fn timeout(&mut self, at: Time) -> Result<(), Unreadable> {
        self.begin_entry(at);
        write_timeout(&mut self.entries, at)
    }

    fn begin_entry(&mut self, at: Time) {
        self.from.get_or_insert(at);
        self.last = (self.entries.len(), at);
    }

    /// Notes what the brain made of the last input, before the next one and before [`Self::take`].
    ///
    /// # Errors
    /// When what the watchdog cut has no written form.
    pub fn decided(&mut self, step: &Step) -> Result<(), Unreadable> {
        self.digest.add(step);
        if step.interrupted.is_empty() {
            return Ok(());
        }
        let (before, at) = self.last;
        insert_cut(&mut self.entries, before, &step.interrupted, at)
    }

    /// Bytes that wait to be written.
    pub const fn waiting_bytes(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of entries since the last snapshot, written or not.
    pub const fn bytes_since_snapshot(&self) -> u64 {
        self.since_snapshot + self.entries.len() as u64
    }

    /// What waits to be written, if anything.
    pub fn take(&mut self) -> Option<Segment> {
        let from = self.from.take()?;
        self.since_snapshot += self.entries.len() as u64;
        Some(Segment { from, entries: std::mem::take(&mut self.entries), digest: self.digest })
    }

    /// A snapshot was taken: decisions are counted anew from it. What waits is to be taken before.
    pub fn begin(&mut self) {
        self.digest = Digest::default();
        self.since_snapshot = 0;
    }
}
