//! An HTTP server that answers each request by a script and then closes the connection, wherever
//! in a frame that may be.

use std::sync::{Arc, Mutex};

use api_types::TaskEvent;
use api_types::sse::encode_event;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method and path with query, `GET /health`.
    pub line: String,
    /// Everything up to the body, lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Request {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// A running server.
pub struct Server {
    pub url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers the n-th request with `answer(n, request)`, raw bytes of HTTP/1.1.
    pub async fn start(answer: impl Fn(usize, &Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let log = seen.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Some(request) = read_request(&mut stream).await else { continue };
                let n = {
                    let mut log = log.lock().expect("not poisoned");
                    log.push(request.clone());
                    log.len() - 1
                };
                let _ = stream.write_all(&answer(n, &request)).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { url, seen }
    }

    /// What arrived so far.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let line = String::from_utf8_lossy(&bytes[..end])
                .lines()
                .next()?
                .trim_end_matches(" HTTP/1.1")
                .to_owned();
            let request = Request { line, head, body: String::new() };
            let length: usize =
                request.header("content-length").map_or(0, |length| length.parse().unwrap_or(0));
            if bytes.len() >= end + 4 + length {
                let body = String::from_utf8_lossy(&bytes[end + 4..]).into_owned();
                return Some(Request { body, ..request });
            }
        }
        let count = stream.read(&mut buffer).await.ok()?;
        if count == 0 {
            return None;
        }
        bytes.extend_from_slice(&buffer[..count]);
    }
}

/// An answer with a JSON body.
pub fn json(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
        .into_bytes()
}

/// An answer whose body is an event stream that ends with the connection.
pub fn stream(job: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-rbees-job-id: {job}\r\nconnection: close\r\n\r\n")
        .into_bytes();
    answer.extend_from_slice(body);
    answer
}

/// Numbered events from `from` on, as bytes.
pub fn frames(events: &[TaskEvent], from: usize) -> Vec<u8> {
    let numbered = events.iter().enumerate().skip(from);
    numbered.flat_map(|(id, event)| encode_event(Some(id as u64), event).to_vec()).collect()
}
