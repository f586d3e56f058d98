//! A response body that follows a run's log.

use std::sync::Arc;
use std::time::Duration;

use api_types::sse::KEEP_ALIVE;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::watch;

use crate::run_log::Page;
use crate::runs::{BY_HAND, Run};

/// A connection without events gets a comment this often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);

/// One open response body.
struct Reader {
    run: Arc<Run>,
    next: u64,
    live: u64,
    changes: watch::Receiver<u64>,
}

impl Reader {
    fn new(run: Arc<Run>, from: u64) -> Self {
        run.log.enter();
        let changes = run.log.changes();
        Self { run, next: from, live: 0, changes }
    }

    async fn page(&mut self) -> Option<Bytes> {
        loop {
            self.changes.borrow_and_update();
            match self.run.log.read(self.next, self.live) {
                Page::Frames { bytes, next } => {
                    self.next = next;
                    return Some(bytes);
                }
                Page::Live { bytes, version } => {
                    self.live = version;
                    return Some(bytes);
                }
                Page::End | Page::Gone => return None,
                Page::Pending => {}
            }
            match tokio::time::timeout(KEEP_ALIVE_EVERY, self.changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(Bytes::from_static(KEEP_ALIVE)),
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let left = self.run.log.leave();
        // A run with an attempt belongs to an orchestrator, which comes back for its log; one
        // without belongs to the person who has just closed the connection.
        if left == 0 && self.run.attempt == BY_HAND && !self.run.log.has_ended() {
            self.run.cancel();
        }
    }
}

/// The answer that streams a run's events from the id `from` on.
pub fn stream(run: Arc<Run>, from: u64) -> Response {
    let reader = Reader::new(run, from);
    let pages = futures_util::stream::unfold(reader, |mut reader| async move {
        let page = reader.page().await?;
        Some((Ok::<_, std::convert::Infallible>(page), reader))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(pages)).into_response()
}
