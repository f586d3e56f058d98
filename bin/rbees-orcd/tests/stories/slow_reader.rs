//! A reader that takes nothing is cut, keeps nobody waiting, and may come back.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use api_types::sse::Frame;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::daemon::{Daemon, ids, text, until};
use crate::worker::Worker;

/// A text that no socket's buffers hold.
const TOKEN_BYTES: usize = 64 * 1024;
const TOKENS: usize = 256;

/// Asks for the events of a job over a socket with a small buffer, and reads nothing.
fn ask_and_stall(address: SocketAddr, job: &str) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    socket.connect(&address.into()).expect("connected");
    let mut stream = TcpStream::from(socket);
    let request = format!("GET /v2/tasks/{job}/events HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("asked");
    stream
}

async fn connections(daemon: &Daemon) -> u64 {
    daemon.metric("rbees_orcd_open_connections").await
}

fn whole(frames: &[Frame]) -> bool {
    text(frames).len() == TOKEN_BYTES * TOKENS && ids(frames).windows(2).all(|pair| pair[1] == pair[0] + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_is_cut_and_others_are_not() {
    let daemon = Daemon::start_with(|config| config.limits.silent_time = Duration::from_secs(1)).await;
    let token = "x".repeat(TOKEN_BYTES);
    let tokens = vec![token.as_str(); TOKENS];
    let _worker = Worker::start(&daemon.url(""), &tokens).await;
    let job =
        daemon.submit(json!({ "prompt": "x", "max_tokens": TOKENS, "on_disconnect": "continue" })).await;
    let before = connections(&daemon).await;
    let mut stalled = ask_and_stall(daemon.server.address, &job);
    until("the reader is connected", || async { (connections(&daemon).await > before).then_some(()) }).await;
    assert!(whole(&daemon.events(&job, None).await), "who reads gets everything meanwhile");
    until("the stalled reader is cut", || async { (connections(&daemon).await <= before).then_some(()) })
        .await;
    // What lay in its own buffer it may still read; then the connection is over.
    let mut rest = Vec::new();
    let over = stalled.read_to_end(&mut rest);
    assert!(over.is_err() || rest.len() < TOKEN_BYTES * TOKENS, "it was cut, not served");
    assert!(whole(&daemon.events(&job, None).await), "and may come back for all of it");
}
