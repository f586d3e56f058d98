//! The events of one run, encoded once, kept until they are acknowledged.
//!
//! The run appends; any number of readers follow at their own speed. Numbered frames are never
//! dropped; a log that is full makes the run pause. One live frame (progress) may be replaced at
//! any time and is seen only by readers that have caught up.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use api_types::TaskEvent;
use api_types::sse::encode_event;
use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

/// Most bytes handed to a reader at once.
const PAGE_BYTES: usize = 64 * 1024;

/// A log of one run.
#[derive(Debug)]
pub struct RunLog {
    first_id: u64,
    capacity: usize,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Frames with the ids `first_id + dropped` and on.
    frames: VecDeque<Bytes>,
    /// Frames that were acknowledged and are gone.
    dropped: u64,
    bytes: usize,
    ended: bool,
    readers: u32,
    live: Option<Bytes>,
    /// Grows with every live frame.
    live_version: u64,
}

/// What a reader gets next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    /// Frames; read on from `next`.
    Frames {
        /// Whole frames.
        bytes: Bytes,
        /// The id after the last of them.
        next: u64,
    },
    /// A frame without a number.
    Live {
        /// The whole frame.
        bytes: Bytes,
        /// Pass this to see only later ones.
        version: u64,
    },
    /// Nothing yet; wait for a change.
    Pending,
    /// All was read and nothing follows.
    End,
    /// The frames asked for were acknowledged and are gone.
    Gone,
}

impl RunLog {
    /// An empty log whose first event gets `first_id`, and which is full at `capacity` bytes.
    pub fn new(first_id: u64, capacity: usize) -> Self {
        Self { first_id, capacity, inner: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// Appends a numbered event. The last event of a run ends the log; later ones are ignored.
    pub fn append(&self, event: &TaskEvent) {
        let mut inner = self.lock();
        if inner.ended {
            return;
        }
        let id = self.first_id + inner.dropped + inner.frames.len() as u64;
        let frame = encode_event(Some(id), event);
        inner.bytes += frame.len();
        inner.frames.push_back(frame);
        inner.ended = event.is_last();
        drop(inner);
        self.notify();
    }

    /// Shows an unnumbered event to the readers that have caught up; replaces the one before.
    pub fn show(&self, event: &TaskEvent) {
        let mut inner = self.lock();
        if inner.ended || inner.readers == 0 {
            return;
        }
        inner.live = Some(encode_event(None, event));
        inner.live_version += 1;
        drop(inner);
        self.notify();
    }

    /// What follows for a reader that has read up to the id `from` and live frames up to
    /// `version`. A `from` before the first event means the first event.
    pub fn read(&self, from: u64, version: u64) -> Page {
        let inner = self.lock();
        let from = from.max(self.first_id);
        let at = from - self.first_id;
        let Some(index) = at.checked_sub(inner.dropped) else {
            return Page::Gone;
        };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if index < inner.frames.len() {
            return page(&inner, index, from);
        }
        if inner.ended {
            return Page::End;
        }
        match &inner.live {
            Some(frame) if inner.live_version > version => {
                Page::Live { bytes: frame.clone(), version: inner.live_version }
            }
            _ => Page::Pending,
        }
    }

    /// Forgets the events before `id`, which a reader has stored elsewhere.
    pub fn acknowledge(&self, id: u64) {
        let mut inner = self.lock();
        while self.first_id + inner.dropped < id {
            let Some(frame) = inner.frames.pop_front() else { break };
            inner.bytes -= frame.len();
            inner.dropped += 1;
        }
        drop(inner);
        self.notify();
    }

    /// Whether the run must pause.
    pub fn is_full(&self) -> bool {
        let inner = self.lock();
        inner.bytes >= self.capacity && !inner.ended
    }

    /// Whether the last event is in the log.
    pub fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Open readers.
    pub fn readers(&self) -> u32 {
        self.lock().readers
    }

    /// Counts one more reader.
    pub fn enter(&self) {
        self.lock().readers += 1;
    }

    /// Counts one reader less, and gives how many are left.
    pub fn leave(&self) -> u32 {
        let mut inner = self.lock();
        inner.readers = inner.readers.saturating_sub(1);
        inner.readers
    }

    /// Tells when to read again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change above is complete before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn page(inner: &Inner, index: usize, from: u64) -> Page {
    let Some(first) = inner.frames.get(index) else { return Page::Pending };
    if inner.frames.len() == index + 1 {
        return Page::Frames { bytes: first.clone(), next: from + 1 };
    }
    let mut bytes = BytesMut::new();
    let mut next = from;
    for frame in inner.frames.range(index..) {
        if !bytes.is_empty() && bytes.len() + frame.len() > PAGE_BYTES {
            break;
        }
        bytes.extend_from_slice(frame);
        next += 1;
    }
    Page::Frames { bytes: bytes.freeze(), next }
}

#[cfg(test)]
mod tests {
    use api_types::event::{RunEnd, RunMetrics, StopReason};

    use super::*;

    fn token(i: u32) -> TaskEvent {
        TaskEvent::Token { t: "x".into(), i, k: None }
    }

    fn end() -> TaskEvent {
        TaskEvent::End(RunEnd {
            tokens_in: 1,
            tokens_out: 1,
            queue_time_ms: 0,
            prefill_time_ms: 0,
            decode_time_ms: 0,
            stop_reason: StopReason::Eos,
            seed: None,
            tokens_cached: None,
        })
    }

    fn text(page: &Page) -> String {
        match page {
            Page::Frames { bytes, .. } | Page::Live { bytes, .. } => {
                String::from_utf8_lossy(bytes).into_owned()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ids_count_on_from_the_first_and_reading_resumes_anywhere() {
        let log = RunLog::new(5, 1000);
        (0..3).for_each(|i| log.append(&token(i)));
        assert!(text(&log.read(0, 0)).starts_with("id: 5\n"));
        let from_seven = log.read(7, 0);
        assert!(text(&from_seven).starts_with("id: 7\n"), "{from_seven:?}");
        assert_eq!(log.read(8, 0), Page::Pending);
        log.append(&end());
        log.append(&token(9));
        assert!(text(&log.read(8, 0)).contains("event: end"));
        assert_eq!(log.read(9, 0), Page::End);
    }

    #[test]
    fn a_full_log_says_so_until_it_is_acknowledged() {
        let log = RunLog::new(0, 60);
        log.append(&token(0));
        assert!(!log.is_full());
        log.append(&token(1));
        assert!(log.is_full());
        log.acknowledge(1);
        assert!(!log.is_full());
        assert_eq!(log.read(0, 0), Page::Gone);
        assert!(text(&log.read(1, 0)).starts_with("id: 1\n"));
    }

    #[test]
    fn live_frames_reach_only_readers_that_have_caught_up() {
        let log = RunLog::new(0, 1000);
        let metrics = TaskEvent::Metrics(RunMetrics {
            prompt_tokens_done: Some(1),
            prompt_tokens: Some(2),
            tokens_out: 0,
            tokens_per_second: 0.0,
        });
        log.show(&metrics);
        assert_eq!(log.read(0, 0), Page::Pending, "nobody reads yet");
        log.enter();
        log.append(&token(0));
        log.show(&metrics);
        assert!(text(&log.read(0, 0)).starts_with("id: 0\n"));
        let live = log.read(1, 0);
        assert!(text(&live).starts_with("event: metrics"));
        assert_eq!(log.read(1, 1), Page::Pending);
    }

    #[test]
    fn big_logs_come_in_pages() {
        let log = RunLog::new(0, usize::MAX);
        (0..3000).for_each(|i| log.append(&token(i)));
        let mut from = 0;
        let mut pages = 0;
        while let Page::Frames { bytes, next } = log.read(from, 0) {
            assert!(bytes.len() <= PAGE_BYTES);
            (from, pages) = (next, pages + 1);
        }
        assert!(from == 3000 && pages > 1, "{from} {pages}");
    }
}
