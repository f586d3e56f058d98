//! One kept-alive HTTP/1.1 connection to a worker, driven by whoever reads its stream: no task of
//! its own, no buffer while it is silent.
//!
//! A relay reads thousands of streams with a few bytes each. A general client spends a task, two
//! channels and 16 KiB of buffers on each; this one spends a socket.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// Longest head of an answer, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// Most header lines of an answer.
const MAX_HEADERS: usize = 64;
/// Longest line that announces a chunk, in bytes.
const MAX_CHUNK_LINE: usize = 1024;
/// Read from a socket in one go, at most.
const READ_BYTES: usize = 16 * 1024;

thread_local! {
    /// Where sockets are read into; what came is copied out at its size.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// What follows in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// This many bytes.
    Length(u64),
    /// The line that announces a chunk.
    ChunkLine,
    /// The rest of a chunk.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// Trailers, up to an empty line.
    Trailers,
    /// Bytes until the connection closes.
    UntilClose,
    /// Nothing.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    next: Next,
    /// Whether another request may follow.
    keep: bool,
    /// Since when it waits for its next request.
    pub idle_since: Instant,
}

impl Connection {
    /// A connection that was just made.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: BytesMut::new(), next: Next::Nothing, keep: true, idle_since: Instant::now() }
    }

    /// Sends a request and reads the answer's head. Gives the status.
    pub async fn send(&mut self, [head, tail]: &[Bytes; 2]) -> io::Result<u16> {
        if tail.is_empty() {
            self.stream.write_all(head).await?;
        } else {
            self.stream.write_all_buf(&mut head.clone().chain(tail.clone())).await?;
        }
        loop {
            if let Some(status) = self.head()? {
                return Ok(status);
            }
            if std::future::poll_fn(|cx| self.poll_fill(cx)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Whether any of the answer has arrived.
    pub fn has_bytes(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Reads the head of the answer, when all of it is there; skips interim answers.
    fn head(&mut self) -> io::Result<Option<u16>> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut answer = httparse::Response::new(&mut headers);
            let parsed = answer.parse(&self.buffer).map_err(|error| odd(error.to_string()))?;
            let httparse::Status::Complete(length) = parsed else {
                let long = self.buffer.len() > MAX_HEAD;
                return if long { Err(odd("the head of its answer has no end")) } else { Ok(None) };
            };
            let status = answer.code.unwrap_or(0);
            if !(100..200).contains(&status) {
                (self.next, self.keep) = framing(&answer, status)?;
                self.buffer.advance(length);
                return Ok(Some(status));
            }
            self.buffer.advance(length);
        }
    }

    /// The next bytes of the body; `None` after the last.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match self.decode() {
                Ok(Some(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            if self.next == Next::Nothing {
                return Poll::Ready(None);
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if self.next == Next::UntilClose => self.next = Next::Nothing,
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Whether the answer is over and the connection can carry another request. What is left of an
    /// answer whose end is known to be near is taken where it has arrived.
    pub fn is_reusable(&mut self) -> bool {
        if !self.keep {
            return false;
        }
        if self.next != Next::Nothing {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            if !matches!(self.poll_body(&mut cx), Poll::Ready(None)) {
                return false;
            }
        }
        self.buffer.is_empty()
    }

    /// Whether only the end of the answer is missing.
    pub fn is_nearly_over(&self) -> bool {
        self.keep && matches!(self.next, Next::ChunkLine | Next::ChunkEnd | Next::Trailers | Next::Nothing)
    }

    /// Whether the other side closed it, or sent what nobody asked for, while it was idle.
    pub fn is_spoiled(&mut self) -> bool {
        let mut byte = [0];
        !matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Takes what of the body is in the buffer.
    fn decode(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.next {
                Next::Nothing => return Ok(None),
                _ if self.buffer.is_empty() => return Ok(None),
                Next::UntilClose => return Ok(Some(self.buffer.split().freeze())),
                Next::Length(left) => {
                    let (bytes, left) = self.split(left);
                    self.next = if left == 0 { Next::Nothing } else { Next::Length(left) };
                    return Ok(Some(bytes));
                }
                Next::Chunk(left) => {
                    let (bytes, left) = self.split(left);
                    self.next = if left == 0 { Next::ChunkEnd } else { Next::Chunk(left) };
                    return Ok(Some(bytes));
                }
                Next::ChunkLine => {
                    let Some(line) = self.line()? else { return Ok(None) };
                    self.next = match chunk_size(&line)? {
                        0 => Next::Trailers,
                        size => Next::Chunk(size),
                    };
                }
                Next::ChunkEnd => match self.line()? {
                    Some(line) if line.is_empty() => self.next = Next::ChunkLine,
                    Some(_) => return Err(odd("a chunk is longer than announced")),
                    None => return Ok(None),
                },
                Next::Trailers => match self.line()? {
                    Some(line) if line.is_empty() => self.next = Next::Nothing,
                    Some(_) => {}
                    None => return Ok(None),
                },
            }
        }
    }

    /// Up to `wanted` bytes of the buffer, and how many are still wanted.
    fn split(&mut self, wanted: u64) -> (Bytes, u64) {
        let here = self.buffer.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
        (self.buffer.split_to(here).freeze(), wanted - here as u64)
    }

    /// A line without its end, when all of it is there.
    fn line(&mut self) -> io::Result<Option<Bytes>> {
        let Some(length) = self.buffer.iter().position(|byte| *byte == b'\n') else {
            let long = self.buffer.len() > MAX_CHUNK_LINE;
            return if long { Err(odd("a line between chunks has no end")) } else { Ok(None) };
        };
        let mut line = self.buffer.split_to(length + 1).freeze();
        line.truncate(length);
        if line.ends_with(b"\r") {
            line.truncate(length - 1);
        }
        Ok(Some(line))
    }

    /// Reads what has arrived behind what is in the buffer. Gives how much; 0 at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
            if self.buffer.is_empty() {
                // What was handed out shares the old buffer: an idle stream is not to hold any.
                self.buffer = BytesMut::from(read.filled());
            } else {
                self.buffer.extend_from_slice(read.filled());
            }
            Poll::Ready(Ok(read.filled().len()))
        })
    }
}

/// How long the body is (RFC 9112, section 6.3), and whether the connection stays open after it.
fn framing(answer: &httparse::Response<'_, '_>, status: u16) -> io::Result<(Next, bool)> {
    let mut keep = answer.version == Some(1);
    let (mut length, mut chunked) = (None, false);
    for header in answer.headers.iter() {
        if header.name.eq_ignore_ascii_case("connection") {
            keep &= !header.value.to_ascii_lowercase().windows(5).any(|word| word == b"close");
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = header.value.trim_ascii().to_ascii_lowercase().ends_with(b"chunked");
            if !chunked {
                return Err(odd("its answer has a transfer encoding that was not asked for"));
            }
        } else if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value.trim_ascii()).ok();
            length = Some(
                text.and_then(|text| text.parse::<u64>().ok()).ok_or_else(|| odd("a length is no number"))?,
            );
        }
    }
    Ok(match (status, chunked, length) {
        (204 | 304, _, _) | (_, false, Some(0)) => (Next::Nothing, keep),
        (_, true, _) => (Next::ChunkLine, keep),
        (_, false, Some(length)) => (Next::Length(length), keep),
        (_, false, None) => (Next::UntilClose, false),
    })
}

fn chunk_size(line: &[u8]) -> io::Result<u64> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let text = std::str::from_utf8(digits).ok();
    text.and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or_else(|| odd("the size of a chunk is no number"))
}

fn odd(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Writes each of `parts` by itself to whoever asks, and closes where told to.
    async fn served(parts: Vec<Vec<u8>>) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            stream.set_nodelay(true).expect("nodelay");
            let mut request = [0; 64];
            let _ = stream.read(&mut request).await;
            for part in parts {
                let _ = stream.write_all(&part).await;
                tokio::task::yield_now().await;
            }
            // Keeps it open until the caller leaves.
            let _ = stream.read(&mut request).await;
        });
        Connection::new(TcpStream::connect(address).await.expect("listening"))
    }

    async fn whole(connection: &mut Connection) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(bytes) = std::future::poll_fn(|cx| connection.poll_body(cx)).await {
            all.extend_from_slice(&bytes?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_chunked_body_is_read_whatever_the_borders() {
        let answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
            5;x=y\r\nhello\r\n7\r\n, world\r\n0\r\nA: b\r\n\r\n";
        for size in [1, 2, 3, 7, 31, answer.len()] {
            let mut connection = served(answer.chunks(size).map(<[u8]>::to_vec).collect()).await;
            assert_eq!(
                connection
                    .send(&[Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"), Bytes::new()])
                    .await
                    .expect("an answer"),
                200
            );
            assert_eq!(whole(&mut connection).await.expect("a body"), b"hello, world", "parts of {size}");
            assert!(connection.is_reusable());
        }
    }

    #[tokio::test]
    async fn a_body_of_known_length_ends_there() {
        let answer = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy".to_vec();
        let mut connection = served(vec![answer]).await;
        assert_eq!(connection.send(&[Bytes::from_static(b"x"), Bytes::new()]).await.expect("an answer"), 503);
        assert_eq!(whole(&mut connection).await.expect("a body"), b"busy");
        assert!(connection.is_reusable() && !connection.is_spoiled());
    }

    #[tokio::test]
    async fn a_connection_that_is_to_close_is_not_used_again() {
        let answer = b"HTTP/1.1 200 OK\r\nConnection: Close\r\ncontent-length: 1\r\n\r\n.".to_vec();
        let mut connection = served(vec![answer]).await;
        connection.send(&[Bytes::from_static(b"x"), Bytes::new()]).await.expect("an answer");
        whole(&mut connection).await.expect("a body");
        assert!(!connection.is_reusable());
    }

    #[tokio::test]
    async fn what_is_not_http_is_said_to_be_odd() {
        for answer in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"] {
            let mut connection = served(vec![answer.as_bytes().to_vec()]).await;
            let error = match connection.send(&[Bytes::from_static(b"x"), Bytes::new()]).await {
                Ok(_) => whole(&mut connection).await.expect_err("no chunk"),
                Err(error) => error,
            };
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }
}
