//! Answers that are streams, written to the socket by ourselves.
//!
//! hyper reads every request and writes every answer that is whole. A stream stays open for minutes and
//! says little at a time; for it hyper would keep 16 KiB of buffers. So its connection is taken from
//! hyper when the stream begins ([`Handover`]), and given back when it ends: until then it holds nothing
//! but what could not be sent yet.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, Version, header};
use http_body::Body as _;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::patience::PatientSocket;

/// Frames that are ready go out in one write, up to about so many bytes.
const WRITE_BYTES: usize = 64 * 1024;
/// Room for the head of an answer and its first frames.
const FIRST_BYTES: usize = 1_024;
/// What a client may send ahead while its stream is open; more waits in the kernel.
const AHEAD_BYTES: usize = 1_024;

/// Where an answer lies that is to be written without hyper.
#[derive(Debug, Clone, Default)]
pub struct Handover(Arc<Mutex<Option<Streamed>>>);

/// An answer that is a stream.
#[derive(Debug)]
pub struct Streamed {
    answer: Response,
    /// Whether the connection ends with it.
    close: bool,
}

/// What of a request decides about that.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    fits: bool,
    close: bool,
}

impl Asked {
    /// Looks at a request before it is read. It has to be read to its end before the stream begins:
    /// handlers of `POST` read their body before they answer, others look at none.
    pub fn of<B: http_body::Body>(request: &Request<B>) -> Self {
        let is_read = match *request.method() {
            Method::POST => true,
            Method::GET => request.body().is_end_stream(),
            _ => false,
        };
        let close = request.headers().get_all(header::CONNECTION).iter().any(|value| {
            value
                .as_bytes()
                .split(|byte| *byte == b',')
                .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
        });
        Self { fits: is_read && request.version() == Version::HTTP_11, close }
    }
}

impl Handover {
    /// Takes the answer if it is such a stream; gives back any other.
    pub fn offer(&self, asked: Asked, answer: Response) -> Option<Response> {
        let is_stream =
            answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
        if !(asked.fits && is_stream) {
            return Some(answer);
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Streamed { answer, close: asked.close });
        None
    }

    /// What was taken.
    pub fn take(&self) -> Option<Streamed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// One stream on its way to one client.
#[derive(Debug)]
pub struct Writing {
    socket: PatientSocket,
    frames: Body,
    close: bool,
    /// What is to be sent.
    out: BytesMut,
    /// Whether the client does not take it: nothing more is made ready then.
    blocked: bool,
    /// What the client sent meanwhile.
    ahead: BytesMut,
    over: bool,
}

impl Writing {
    /// Begins with the head. `ahead` is what the client has sent behind its request.
    pub fn new(socket: PatientSocket, streamed: Streamed, ahead: &[u8]) -> Self {
        let Streamed { answer, close } = streamed;
        let (parts, frames) = answer.into_parts();
        let mut out = BytesMut::with_capacity(FIRST_BYTES);
        put_head(&mut out, parts.status, &parts.headers, close);
        Self { socket, frames, close, out, blocked: false, ahead: BytesMut::from(ahead), over: false }
    }

    /// Writes all of it. Gives the connection for the next request; nothing when it ends too.
    ///
    /// # Errors
    /// When the client left, takes nothing, or the frames break off.
    pub async fn run(mut self) -> io::Result<Option<PatientSocket>> {
        poll_fn(|context| self.poll(context)).await?;
        if self.close {
            poll_fn(|context| Pin::new(&mut self.socket).poll_shutdown(context)).await?;
            return Ok(None);
        }
        self.socket.put_back(self.ahead.freeze());
        Ok(Some(self.socket))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.listen(context)?;
            if !self.blocked {
                self.gather(context)?;
            }
            if self.out.is_empty() {
                // A silent stream is not to hold any room.
                self.out = BytesMut::new();
                return if self.over { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            self.blocked = true;
            let written = ready!(Pin::new(&mut self.socket).poll_write(context, &self.out))?;
            self.blocked = false;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
    }

    /// Notices when the client leaves, and keeps what it says.
    fn listen(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while self.ahead.len() < AHEAD_BYTES {
            let mut bytes = [0; AHEAD_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.socket).poll_read(context, &mut read) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(())) if read.filled().is_empty() => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Poll::Ready(Ok(())) => self.ahead.extend_from_slice(read.filled()),
            }
        }
        Ok(())
    }

    /// Takes the frames that are ready, each as a chunk (RFC 9112, section 7.1).
    fn gather(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while !self.over && self.out.len() < WRITE_BYTES {
            match Pin::new(&mut self.frames).poll_frame(context) {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    self.over = true;
                    self.out.extend_from_slice(b"0\r\n\r\n");
                }
                Poll::Ready(Some(Err(error))) => return Err(io::Error::other(error)),
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(bytes) = frame.data_ref().filter(|bytes| !bytes.is_empty()) {
                        put_chunk(&mut self.out, bytes);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Writing to a `BytesMut` cannot fail.
fn put_chunk(out: &mut BytesMut, bytes: &Bytes) {
    out.reserve(bytes.len() + 16);
    let _ = write!(out, "{:x}\r\n", bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn put_head(out: &mut BytesMut, status: StatusCode, headers: &HeaderMap, close: bool) {
    let _ = write!(out, "HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default());
    for (name, value) in headers {
        put_header(out, name.as_str(), value.as_bytes());
    }
    put_header(out, "transfer-encoding", b"chunked");
    if let Ok(date) = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now()) {
        put_header(out, "date", date.as_bytes());
    }
    if close {
        put_header(out, "connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
}

fn put_header(out: &mut BytesMut, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}
