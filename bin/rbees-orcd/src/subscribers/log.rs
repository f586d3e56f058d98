//! The events of one job: appended by the driver and one relay, read by many.
//!
//! Frames lie back to back in one buffer as they came from the worker. Readers see the first
//! `visible` of them; what follows is not committed yet.

mod carried;

use std::sync::{Mutex, MutexGuard, PoisonError};

use api_types::sse::{FrameDecoder, encode_event_into};
use api_types::{JobId, TaskEvent};
use bytes::Bytes;
use orchestrator_core::Event;
use tokio::sync::Notify;

use self::carried::Carried;
pub use self::carried::{AHEAD, Unsaved};
use super::OnReaders;
use crate::store::KeptStream;

/// Most bytes of events one job may have; a worker that sends more breaks the protocol.
pub const MAX_LOG_BYTES: usize = 64 * 1024 * 1024;
/// Most bytes that a reader is given at once, unless a single frame is longer.
pub(super) const MAX_SLICE_BYTES: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub struct JobLog {
    job_id: JobId,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// Where each frame ends in `bytes`.
    ends: Vec<usize>,
    /// Frames that readers may see.
    visible: usize,
    /// Whether what is appended may be seen at once.
    open: bool,
    /// Frames from here on belong to a run that is not committed as `running`.
    held_from: Option<usize>,
    /// Which relay may append; 0 is none.
    writer: u64,
    last_writer: u64,
    /// The latest event without a number, and how many there were.
    live: (u64, Bytes),
    readers: u32,
    /// Those of them that the job is there for.
    holders: u32,
    /// Whether the last event is in `bytes`, seen or not.
    sealed: bool,
    ended: bool,
    complete: bool,
    /// Set for a job that can go on elsewhere.
    carried: Option<Carried>,
}

/// What became of an appended frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is in the log.
    Kept,
    /// It was in the log already.
    Known,
    /// Frames before it are missing.
    Gap {
        /// The number that comes next.
        expected: u64,
    },
    /// The log is larger than any job's may be.
    TooLarge,
    /// Another relay writes now, or none.
    Stale,
}

/// What a reader finds at its place in the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Frames, the reader's next place, and whether the last event is among them.
    Frames(Bytes, u64, bool),
    /// An event without a number, and how many there were.
    Live(Bytes, u64),
    /// Nothing yet.
    Nothing,
    /// Nothing any more.
    Ended,
}

impl JobLog {
    /// A log that starts with these frames.
    pub(super) fn new(job_id: JobId, frames: &[u8], complete: bool) -> Self {
        let mut state = State { complete, ..State::default() };
        for length in frame_lengths(frames) {
            state.ends.push(state.ends.last().unwrap_or(&0) + length);
        }
        state.bytes.extend_from_slice(frames);
        state.visible = state.ends.len();
        Self { job_id, state: Mutex::new(state), changed: Notify::new() }
    }

    /// An ended log, as the database kept it.
    pub fn kept(job_id: JobId, stream: &KeptStream) -> Self {
        let log = Self::new(job_id, &stream.events, stream.complete);
        let mut state = log.lock();
        state.sealed = true;
        state.ended = true;
        drop(state);
        log
    }

    /// Whose events these are.
    pub fn job_id(&self) -> JobId {
        self.job_id
    }

    /// Appends an event of the orchestrator's own, unseen until [`Self::reveal`]; adds its frame to
    /// `frames` where they are wanted.
    pub fn stage(&self, event: &TaskEvent, frames: Option<&mut Vec<u8>>) {
        let mut state = self.lock();
        let (id, start) = (state.next_id(), state.bytes.len());
        encode_event_into(&mut state.bytes, Some(id), event);
        state.note_end();
        if let Some(frames) = frames {
            frames.extend_from_slice(state.bytes.get(start..).unwrap_or_default());
        }
    }

    /// Shows what was staged.
    pub fn reveal(&self) {
        let mut state = self.lock();
        state.visible = state.shown();
        drop(state);
        self.changed.notify_waiters();
    }

    /// A relay begins to write: what an earlier one held back is dropped. Gives its number, and
    /// the id of the next event. With `passed`, readers see its events at once.
    pub fn begin_run(&self, passed: bool) -> (u64, u64) {
        let mut state = self.lock();
        state.last_writer += 1;
        if !state.sealed {
            state.drop_held();
            state.held_from = if passed { None } else { Some(state.ends.len()) };
            state.open = passed;
            state.writer = state.last_writer;
        }
        (state.last_writer, state.next_id())
    }

    /// Appends a worker's frame as it came.
    pub fn append(&self, writer: u64, id: u64, raw: &[u8]) -> Appended {
        let mut state = self.lock();
        let expected = state.next_id();
        if state.writer != writer {
            return Appended::Stale;
        }
        if id != expected {
            return if id < expected { Appended::Known } else { Appended::Gap { expected } };
        }
        if state.bytes.len() + raw.len() > MAX_LOG_BYTES {
            return Appended::TooLarge;
        }
        state.push(raw);
        state.complete = true;
        let shown = state.open;
        if shown {
            state.visible = state.shown();
        }
        drop(state);
        if shown {
            self.changed.notify_waiters();
        }
        Appended::Kept
    }

    /// Shows an event without a number to those who read now. Only the latest is held.
    pub fn append_live(&self, writer: u64, raw: Bytes) {
        let mut state = self.lock();
        if state.writer == writer {
            state.live = (state.live.0 + 1, raw);
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// Shows an event of the orchestrator's own, without a number, to those who read now; while a
    /// relay writes, the worker's news are the newer ones.
    pub fn announce(&self, event: &TaskEvent) {
        let mut frame = Vec::with_capacity(128);
        encode_event_into(&mut frame, None, event);
        let mut state = self.lock();
        if state.writer == 0 && !state.sealed {
            state.live = (state.live.0 + 1, frame.into());
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// The run's events belong to the log from now on; unseen until [`Self::pass`].
    pub fn keep_held(&self) {
        self.lock().held_from = None;
    }

    /// Shows what was held back, and what follows.
    pub fn pass(&self) {
        let mut state = self.lock();
        state.open = state.writer != 0;
        state.visible = state.shown();
        drop(state);
        self.changed.notify_waiters();
    }

    /// The relay may no longer write, and what it held back is gone.
    pub fn drop_run(&self) {
        let mut state = self.lock();
        state.drop_held();
        state.open = false;
        state.writer = 0;
    }

    /// Closes the log with its last event, unseen until [`Self::end`].
    pub fn seal(&self, release_held: bool, last_event: &TaskEvent) {
        let mut state = self.lock();
        state.writer = 0;
        state.open = false;
        state.sealed = true;
        if release_held {
            state.held_from = None;
        }
        state.drop_held();
        let id = state.next_id();
        encode_event_into(&mut state.bytes, Some(id), last_event);
        state.note_end();
    }

    /// What is to be kept of a sealed log.
    pub fn to_keep(&self) -> KeptStream {
        let state = self.lock();
        let result = completion_text(&state.bytes);
        KeptStream { events: state.bytes.clone(), complete: state.complete, result }
    }

    /// Shows the last event; readers leave after it.
    pub fn end(&self) {
        let mut state = self.lock();
        state.visible = state.ends.len();
        state.ended = true;
        drop(state);
        self.changed.notify_waiters();
    }

    /// The text of the completion so far; absent without a token.
    pub fn text(&self) -> Option<String> {
        let state = self.lock();
        let end = state.visible.checked_sub(1).and_then(|last| state.ends.get(last)).copied();
        completion_text(state.bytes.get(..end.unwrap_or(0)).unwrap_or_default())
    }

    /// One more reader. Reported under the lock, so that reports keep their order; says whether it
    /// was.
    pub(super) fn reader_came(&self, report: &OnReaders) -> bool {
        let mut state = self.lock();
        state.readers += 1;
        let first = state.readers == 1 && !state.ended;
        if first {
            report(Event::ReadersChanged { job_id: self.job_id, readers: 1 });
        }
        first
    }

    /// One more reader, of whom everybody knows.
    pub(super) fn count_reader(&self) {
        self.lock().readers += 1;
    }

    /// One reader less; says whether that was reported.
    pub(super) fn reader_left(&self, report: &OnReaders) -> bool {
        let mut state = self.lock();
        state.readers = state.readers.saturating_sub(1);
        let last = state.readers == 0 && !state.ended;
        if last {
            report(Event::ReadersChanged { job_id: self.job_id, readers: 0 });
        }
        last
    }

    /// One more reader that the job is there for.
    pub(super) fn hold(&self) {
        self.lock().holders += 1;
    }

    /// One of those less. Reported under the lock when it was the last and the job goes on: who holds
    /// it after that finds its key free. Says whether it was.
    pub(super) fn let_go(&self, report: &OnReaders, is_leaving: bool) -> bool {
        let mut state = self.lock();
        state.holders = state.holders.saturating_sub(1);
        let abandoned = is_leaving && state.holders == 0 && !state.ended;
        if abandoned {
            report(Event::Abandon { job_id: self.job_id });
        }
        abandoned
    }

    /// Wakes when something changed. Made before [`Self::find`], so that no change is missed.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// What is there for a reader whose next event is `next`, who has seen `live` live events,
    /// and who has or has not been given the last one.
    pub(super) fn find(&self, next: u64, live: u64, had_last: bool) -> Found {
        let state = self.lock();
        let at = usize::try_from(next).unwrap_or(usize::MAX);
        if at < state.visible {
            let to = state.slice_end(at);
            let last = state.ended && to == state.visible;
            return Found::Frames(state.slice(at, to), to as u64, last);
        }
        if state.ended {
            return state.last_for_late_reader(at, had_last);
        }
        if state.live.0 > live {
            return Found::Live(state.live.1.clone(), state.live.0);
        }
        Found::Nothing
    }

    /// Has every reader look again.
    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// How many live events there were.
    pub(super) fn live_count(&self) -> u64 {
        self.lock().live.0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_id(&self) -> u64 {
        self.ends.len() as u64
    }

    fn push(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
        self.note_end();
    }

    /// A frame ends here.
    fn note_end(&mut self) {
        self.ends.push(self.bytes.len());
    }

    fn drop_held(&mut self) {
        if let Some(from) = self.held_from.take() {
            self.ends.truncate(from);
            self.bytes.truncate(self.ends.last().copied().unwrap_or(0));
        }
    }

    /// Where frame `at` begins in `bytes`.
    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0)
    }

    /// Behind the last of the visible frames from `at` on that go out together; at least one.
    fn slice_end(&self, at: usize) -> usize {
        let most = self.start(at) + MAX_SLICE_BYTES;
        let ends = self.ends.get(at..self.visible).unwrap_or_default();
        at + ends.partition_point(|end| *end <= most).max(1)
    }

    fn slice(&self, from: usize, to: usize) -> Bytes {
        let start = self.start(from);
        let end = to.checked_sub(1).and_then(|last| self.ends.get(last)).copied().unwrap_or(0);
        Bytes::copy_from_slice(self.bytes.get(start..end).unwrap_or_default())
    }

    /// A reader at or past the end of an ended log has everything, unless events were lost: then
    /// its numbers mean nothing, and it still has to learn how the job ended.
    fn last_for_late_reader(&self, at: usize, had_last: bool) -> Found {
        let lost = at > self.visible || !self.complete;
        match self.visible.checked_sub(1) {
            Some(last) if lost && !had_last => Found::Frames(self.slice(last, self.visible), at as u64, true),
            _ => Found::Ended,
        }
    }
}

/// Lengths of the frames in `bytes`, which holds whole frames only.
fn frame_lengths(bytes: &[u8]) -> Vec<usize> {
    let mut decoder = FrameDecoder::with_limit(MAX_LOG_BYTES);
    decoder.push(bytes);
    std::iter::from_fn(|| decoder.next_frame().ok().flatten()).map(|frame| frame.raw.len()).collect()
}

/// The joined texts of the `token` events in `bytes`.
fn completion_text(bytes: &[u8]) -> Option<String> {
    let mut decoder = FrameDecoder::with_limit(MAX_LOG_BYTES);
    decoder.push(bytes);
    let mut text: Option<String> = None;
    while let Ok(Some(frame)) = decoder.next_frame() {
        if frame.event != "token" {
            continue;
        }
        if let Ok(TaskEvent::Token { t, .. }) = frame.task_event() {
            text.get_or_insert_default().push_str(&t);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use api_types::event::{RunEnd, StopReason};
    use api_types::sse::encode_event;
    use uuid::Uuid;

    use super::*;

    fn log() -> JobLog {
        let log = JobLog::new(JobId::from_uuid(Uuid::from_u128(1)), &[], true);
        log.stage(&TaskEvent::Queued { job_id: log.job_id(), queue_position: 0, eta_ms: None }, None);
        log.reveal();
        log
    }

    fn token(id: u64) -> Bytes {
        encode_event(Some(id), &TaskEvent::Token { t: format!("t{id}"), i: 0, k: None })
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

    fn seen(log: &JobLog) -> usize {
        log.lock().visible
    }

    #[test]
    fn what_is_held_is_seen_only_once_it_is_passed() {
        let log = log();
        let (writer, next) = log.begin_run(false);
        assert_eq!(next, 1);
        assert_eq!(log.append(writer, 1, &token(1)), Appended::Kept);
        assert_eq!(seen(&log), 1);
        log.keep_held();
        assert_eq!(seen(&log), 1, "not before it is on disk");
        log.pass();
        assert_eq!(seen(&log), 2);
        assert_eq!(log.append(writer, 2, &token(2)), Appended::Kept);
        assert_eq!(seen(&log), 3);
    }

    #[test]
    fn a_dropped_run_leaves_nothing_and_writes_no_more() {
        let log = log();
        let (first, _) = log.begin_run(false);
        log.append(first, 1, &token(1));
        log.drop_run();
        assert_eq!(log.append(first, 1, &token(1)), Appended::Stale);
        let (second, next) = log.begin_run(false);
        assert_eq!(next, 1);
        assert_eq!(log.append(first, 1, &token(1)), Appended::Stale);
        assert_eq!(log.append(second, 1, &token(1)), Appended::Kept);
        assert_eq!(log.append(second, 1, &token(1)), Appended::Known);
        assert_eq!(log.append(second, 5, &token(5)), Appended::Gap { expected: 2 });
    }

    #[test]
    fn a_sealed_log_takes_nothing_more() {
        let log = log();
        let (writer, _) = log.begin_run(false);
        log.append(writer, 1, &token(1));
        log.seal(true, &end());
        let kept = log.to_keep();
        assert_eq!((kept.result.as_deref(), kept.complete), (Some("t1"), true));
        assert_eq!(seen(&log), 1, "not before it is on disk");
        let (late, _) = log.begin_run(true);
        assert_eq!(log.append(late, 3, &token(3)), Appended::Stale);
        log.end();
        assert_eq!(seen(&log), 3);
        assert_eq!(log.lock().bytes, kept.events);
    }

    #[test]
    fn sealing_without_release_drops_what_is_held() {
        let log = log();
        let (writer, _) = log.begin_run(false);
        log.append(writer, 1, &token(1));
        log.seal(false, &end());
        assert_eq!(log.to_keep().result, None);
        log.end();
        assert_eq!(seen(&log), 2);
    }

    #[test]
    fn a_reader_is_given_a_bounded_slice_of_whole_frames() {
        let log = log();
        let (writer, _) = log.begin_run(true);
        let long = |id| encode_event(Some(id), &TaskEvent::Token { t: "x".repeat(30_000), i: 0, k: None });
        (1..=5).for_each(|id| assert_eq!(log.append(writer, id, &long(id)), Appended::Kept));
        log.seal(true, &end());
        log.end();
        let (mut next, mut read, mut last) = (0, Vec::new(), false);
        while let Found::Frames(bytes, to, is_last) = log.find(next, 0, last) {
            assert!(!last && bytes.len() <= MAX_SLICE_BYTES && bytes.ends_with(b"\n\n"), "{}", bytes.len());
            read.extend_from_slice(&bytes);
            (next, last) = (to, is_last);
        }
        assert!(last, "it was given the last event");
        assert_eq!(read, log.lock().bytes);
    }

    #[test]
    fn the_last_event_reaches_a_reader_whose_events_were_lost() {
        let log = JobLog::new(JobId::from_uuid(Uuid::from_u128(1)), &token(0), false);
        log.seal(false, &end());
        log.end();
        assert!(matches!(log.find(1, 0, false), Found::Frames(_, 2, true)));
        for next in [2, 57] {
            assert!(matches!(log.find(next, 0, false), Found::Frames(_, _, true)), "{next}");
            assert_eq!(log.find(next, 0, true), Found::Ended);
        }
    }
}
