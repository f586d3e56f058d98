//! A server that behaves like the Hub, and misbehaves on request.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_host::download::{Downloader, Limits};
use sha2::{Digest, Sha256};

/// What a client asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub path: String,
    pub from: Option<u64>,
    pub if_range: Option<String>,
    pub auth: Option<String>,
}

/// What it gets: bytes of a whole HTTP answer, then silence or the end.
pub struct Reply {
    pub bytes: Vec<u8>,
    pub stall: bool,
}

impl Reply {
    /// Ends the connection after this many bytes of the body.
    pub fn cut(mut self, body_bytes: usize) -> Self {
        let head = self.bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
        self.bytes.truncate(head + body_bytes);
        self
    }

    /// Falls silent instead of ending.
    pub fn stalled(mut self) -> Self {
        self.stall = true;
        self
    }
}

/// An answer with a status line, headers and a body.
pub fn reply(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut bytes =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n", body.len()).into_bytes();
    for (name, value) in headers {
        bytes.extend(format!("{name}: {value}\r\n").bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    Reply { bytes, stall: false }
}

/// The file as a correct server gives it: whole, or the rest when the tag still holds.
pub fn correct(request: &Request, body: &[u8], etag: &str) -> Reply {
    let same = request.if_range.as_deref().is_none_or(|tag| tag == etag);
    match request.from.filter(|_| same) {
        Some(from) if from >= body.len() as u64 => reply("416 Range Not Satisfiable", &[], b""),
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            let headers = [("Content-Range", range.as_str()), ("ETag", etag)];
            reply("206 Partial Content", &headers, &body[from as usize..])
        }
        None => reply("200 OK", &[("ETag", etag)], body),
    }
}

/// A server on a free port of loopback.
pub struct Server {
    pub url: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers each request with what `answer` makes of it and its number, from 0.
    pub fn start(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&log));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                std::thread::spawn(move || serve(stream, &*answer, &seen));
            }
        });
        Self { url, log }
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().expect("not poisoned").clone()
    }
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(&Request, usize) -> Reply, seen: &Mutex<Vec<Request>>) {
    let Some(request) = read(&stream) else { return };
    let number = {
        let mut seen = seen.lock().expect("not poisoned");
        seen.push(request.clone());
        seen.len() - 1
    };
    let reply = answer(&request, number);
    let _ = stream.write_all(&reply.bytes);
    if reply.stall {
        std::thread::sleep(Duration::from_secs(600));
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut request = Request { path, ..Request::default() };
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "range" => request.from = value.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok(),
            "if-range" => request.if_range = Some(value.to_owned()),
            "authorization" => request.auth = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(request)
}

/// Bytes that do not repeat soon.
pub fn body(len: usize) -> Vec<u8> {
    (0..len as u32).flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_le_bytes()).take(len).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A downloader with short times and nobody watching.
pub fn downloader() -> Downloader {
    let limits = Limits { stall: Duration::from_millis(400), backoff: Duration::from_millis(5) };
    Downloader::new(limits, pool_host::download::silent()).expect("a downloader")
}
