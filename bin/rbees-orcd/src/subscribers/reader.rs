//! One reader of a job's log.

use std::sync::Arc;
use std::time::Duration;

use api_types::sse::KEEP_ALIVE;
use bytes::Bytes;
use futures_util::Stream;
use tokio_util::sync::CancellationToken;

use super::Subscribers;
use super::log::{Found, JobLog};

/// A silent stream gets a comment this often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
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
    closing: CancellationToken,
}

impl Reader {
    pub(super) fn new(
        subscribers: Subscribers,
        log: Arc<JobLog>,
        last_event_id: Option<u64>,
        closing: CancellationToken,
    ) -> Self {
        let next = last_event_id.map_or(0, |id| id.saturating_add(1));
        let live = log.live_count();
        Self { subscribers, log, next, live, had_last: false, done: false, closing }
    }

    /// The next frames or comment; `None` after the last event or when the orchestrator stops.
    pub async fn next(&mut self) -> Option<Bytes> {
        while !self.done {
            let log = Arc::clone(&self.log);
            let changed = log.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.log.find(self.next, self.live, self.had_last) {
                Found::Frames(frames, next, last) => {
                    self.had_last = last;
                    self.next = next;
                    return Some(frames);
                }
                Found::Live(frame, count) => {
                    self.live = count;
                    return Some(frame);
                }
                Found::Ended => {
                    self.done = true;
                    return None;
                }
                Found::Nothing => {}
            }
            tokio::select! {
                () = changed => {}
                () = self.closing.cancelled() => {
                    self.done = true;
                    return Some(Bytes::from_static(STOPPING));
                }
                () = tokio::time::sleep(KEEP_ALIVE_EVERY) => return Some(Bytes::from_static(KEEP_ALIVE)),
            }
        }
        None
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
        self.subscribers.detach(&self.log);
    }
}
