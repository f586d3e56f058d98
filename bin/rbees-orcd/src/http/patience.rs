//! Patience with a client that takes nothing of what is sent to it, and its end.
//!
//! While nothing can be written, nothing more is made ready for the connection, so such a client costs
//! little; but it must not hold its place, and the job its reader, for ever. A stream ends with an `error`
//! event when the client takes something again within a grace; else the connection is closed.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use api_types::sse::encode_event;
use api_types::{ErrorCode, ErrorDetail, TaskEvent};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::openai;
use crate::metrics::Metrics;

/// How long a client that is to be cut may still take what is on its way, and hear why.
pub const GRACE: Duration = Duration::from_secs(5);

/// An answer that is not a stream, or none.
const WHOLE: u8 = 0;
/// A stream of events.
const STREAM: u8 = 1;
/// A stream that is to be cut.
const LOST: u8 = 2;

/// What the socket and the answer of one connection know of each other.
#[derive(Debug, Clone)]
pub struct Patience {
    standing: Arc<AtomicU8>,
    limit: Duration,
    metrics: Metrics,
}

impl Patience {
    /// Ends after `limit` without a byte taken.
    pub fn new(limit: Duration, metrics: Metrics) -> Self {
        Self { standing: Arc::default(), limit, metrics }
    }

    /// Has this answer end early when the client is cut, where it is a stream. `is_openai`: its dialect.
    pub fn with(&self, answer: Response, is_openai: bool) -> Response {
        let is_stream = answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
        self.set(if is_stream { STREAM } else { WHOLE });
        if !is_stream {
            return answer;
        }
        answer.map(|frames| {
            Body::new(Stream { frames, patience: self.clone(), is_openai, at_border: true, over: false })
        })
    }

    fn set(&self, standing: u8) {
        self.standing.store(standing, Ordering::Relaxed);
    }

    fn is(&self, standing: u8) -> bool {
        self.standing.load(Ordering::Relaxed) == standing
    }

    /// The client is cut now; says whether it may still be told.
    fn lose(&self) -> bool {
        self.metrics.clients_cut.inc();
        let may_hear = self.is(STREAM);
        self.set(if may_hear { LOST } else { WHOLE });
        may_hear
    }

    fn farewell(&self, is_openai: bool) -> Bytes {
        let silent_ms = u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX);
        let message = format!(
            "nothing of this stream was taken for {silent_ms} ms, so it ends here; its job does not end for that. \
             Read on with Last-Event-ID"
        );
        let details = serde_json::json!({ "silent_ms": silent_ms });
        if is_openai {
            let error = ErrorDetail::new(ErrorCode::ClientCut, message).with_details(details);
            return Bytes::from(format!("data: {}\n\n", openai::error::body(&error)));
        }
        let code = ErrorCode::ClientCut;
        let event = TaskEvent::Error { code, message, retriable: true, details: Some(details) };
        encode_event(None, &event)
    }
}

/// The frames of a stream, until the client is cut.
struct Stream {
    frames: Body,
    patience: Patience,
    is_openai: bool,
    /// Whether a frame of its own may stand here.
    at_border: bool,
    over: bool,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if self.at_border && self.patience.is(LOST) {
            self.over = true;
            self.patience.set(WHOLE);
            // Its reader leaves now.
            self.frames = Body::empty();
            tracing::debug!(code = "CLIENT_CUT", "a client that took nothing is told so");
            return Poll::Ready(Some(Ok(Frame::data(self.patience.farewell(self.is_openai)))));
        }
        let frame = ready!(Pin::new(&mut self.frames).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                self.at_border = frame.data_ref().is_some_and(|bytes| bytes.ends_with(b"\n\n"));
            }
            Some(Err(_)) | None => self.patience.set(WHOLE),
        }
        Poll::Ready(frame)
    }
}

/// A socket that fails once the patience with its client has ended.
#[derive(Debug)]
pub struct PatientSocket {
    socket: TcpStream,
    patience: Patience,
    /// Runs while the client takes nothing; when it fires, something has to be done.
    stalled: Option<Pin<Box<Sleep>>>,
    /// What was read already and is to be read again.
    unread: Bytes,
}

impl PatientSocket {
    /// Nothing was refused yet.
    pub const fn new(socket: TcpStream, patience: Patience) -> Self {
        Self { socket, patience, stalled: None, unread: Bytes::new() }
    }

    /// Has these bytes read before all others.
    pub fn put_back(&mut self, bytes: Bytes) {
        self.unread =
            if self.unread.is_empty() { bytes } else { [bytes, self.unread.clone()].concat().into() };
    }

    fn watch(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.patience.limit;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(context));
        if !self.patience.is(LOST) && self.patience.lose() {
            timer.as_mut().reset(Instant::now() + GRACE);
            ready!(timer.as_mut().poll(context));
        }
        self.patience.set(WHOLE);
        tracing::warn!(
            code = "CLIENT_CUT",
            silent_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            "a client took nothing of its answer; its connection is closed"
        );
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for PatientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let length = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for PatientSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.watch(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.watch(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
