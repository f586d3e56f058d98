//! One reader of a job's log.

use std::sync::Arc;
use std::time::Duration;

use api_types::sse::KEEP_ALIVE;
use bytes::Bytes;
use futures_util::Stream;

use super::Subscribers;
use super::log::{Found, JobLog, MAX_SLICE_BYTES};
use crate::silence::Silence;
use crate::turns::step_back;

/// A silent stream gets a comment this often.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// What a reader is told when the orchestrator stops: the job goes on.
const STOPPING: &[u8] = b": the orchestrator is stopping; reconnect with Last-Event-ID\n\n";

/// Reads a job's log from some event on. Dropping it is leaving.
#[derive(Debug)]
pub struct Reader {
    subscribers: Subscribers,
    log: Arc<JobLog>,
    next: u64,
    live: u64,
    had_last: bool,
    done: bool,
    holds: bool,
    /// What was not given yet of a frame that is longer than a slice.
    rest: Bytes,
    silence: Silence,
}

impl Reader {
    pub(super) fn new(subscribers: Subscribers, log: Arc<JobLog>, last_event_id: Option<u64>) -> Self {
        let next = last_event_id.map_or(0, |id| id.saturating_add(1));
        let live = log.live_count();
        let silence = Silence::new(KEEP_ALIVE_EVERY);
        Self {
            subscribers,
            log,
            next,
            live,
            had_last: false,
            done: false,
            holds: false,
            rest: Bytes::new(),
            silence,
        }
    }

    /// The job is there for this reader: when it leaves before the end, and no other holds the job in
    /// this way, the job ends too. The stop of the orchestrator is no such leaving.
    pub fn hold(&mut self) {
        if !std::mem::replace(&mut self.holds, true) {
            self.log.hold();
        }
    }

    /// As much as is given at once; the rest comes next.
    fn part(&mut self, mut bytes: Bytes) -> Bytes {
        let part = bytes.split_to(bytes.len().min(MAX_SLICE_BYTES));
        self.rest = bytes;
        part
    }

    /// The next frames or comment, at most 64 KiB of them; `None` after the last event or when the orchestrator stops.
    pub async fn next(&mut self) -> Option<Bytes> {
        let log = Arc::clone(&self.log);
        while !self.done {
            let changed = log.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(frames) = self.find() {
                self.silence.is_broken();
                return frames.map(|frames| self.part(frames));
            }
            tokio::select! {
                biased;
                () = changed => step_back().await,
                () = self.silence.too_long() => {
                    self.silence.is_broken();
                    return Some(Bytes::from_static(KEEP_ALIVE));
                }
            }
        }
        None
    }

    /// What there is for this reader now; `None` when it has to wait.
    fn find(&mut self) -> Option<Option<Bytes>> {
        if !self.rest.is_empty() {
            return Some(Some(std::mem::take(&mut self.rest)));
        }
        match self.log.find(self.next, self.live, self.had_last) {
            Found::Frames(frames, next, last) => {
                self.had_last = last;
                self.next = next;
                Some(Some(frames))
            }
            Found::Live(frame, count) => {
                self.live = count;
                Some(Some(frame))
            }
            Found::Ended => {
                self.done = true;
                Some(None)
            }
            Found::Nothing if self.subscribers.are_closing() => {
                self.done = true;
                Some(Some(Bytes::from_static(STOPPING)))
            }
            Found::Nothing => None,
        }
    }

    /// As a stream of body chunks.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        futures_util::stream::unfold(self, |mut reader| async move {
            let bytes = reader.next().await?;
            Some((Ok(bytes), reader))
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.subscribers.detach(&self.log, self.holds);
    }
}
