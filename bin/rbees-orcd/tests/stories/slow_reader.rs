//! A reader that takes nothing is cut, keeps nobody waiting, and may come back.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use api_types::sse::Frame;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::daemon::{Daemon, Follower, ids, text, until};
use crate::process::{PROGRAM, Process, folders};
use crate::worker::Worker;

/// A text that no socket's buffers hold.
const TOKEN_BYTES: usize = 64 * 1024;
const TOKENS: usize = 256;

const CUT: &str = "rbees_orcd_clients_cut_total";

/// Sends a request over a socket with a small buffer, and reads nothing.
fn send_and_stall(address: SocketAddr, request: &str) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    socket.connect(&address.into()).expect("connected");
    let mut stream = TcpStream::from(socket);
    stream.write_all(request.as_bytes()).expect("asked");
    stream
}

/// Asks for the events of a job and reads nothing.
fn ask_and_stall(address: SocketAddr, job: &str) -> TcpStream {
    let head = format!("GET /v2/tasks/{job}/events HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    send_and_stall(address, &head)
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
    assert_eq!(daemon.metric(CUT).await, 1);
    // What lay in its own buffer it may still read; then the connection is over.
    let mut rest = Vec::new();
    let over = stalled.read_to_end(&mut rest);
    assert!(over.is_err() || rest.len() < TOKEN_BYTES * TOKENS, "it was cut, not served");
    assert!(whole(&daemon.events(&job, None).await), "and may come back for all of it");
}

/// All that a client reads who wakes up once it is to be cut.
async fn reads_late(daemon: &Daemon, mut stalled: TcpStream, cut_before: u64) -> String {
    until("it is to be cut", || async { (daemon.metric(CUT).await > cut_before).then_some(()) }).await;
    let read = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        stalled.read_to_end(&mut all).map(|_| all)
    });
    String::from_utf8(read.await.expect("joined").expect("the answer ends in order")).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_wakes_up_too_late_is_told_why_its_stream_ends() {
    let daemon = Daemon::start_with(|config| config.limits.silent_time = Duration::from_secs(1)).await;
    let token = "x".repeat(TOKEN_BYTES);
    let worker = Worker::start(&daemon.url(""), &vec![token.as_str(); TOKENS]).await;
    let address = daemon.server.address;
    let job =
        daemon.submit(json!({ "prompt": "x", "max_tokens": TOKENS, "on_disconnect": "continue" })).await;
    let read = reads_late(&daemon, ask_and_stall(address, &job), 0).await;
    let last = read.rfind("event: error\n").map(|at| &read[at..]).expect("an error event");
    assert!(!last.contains("id:"), "it is no event of the job");
    assert!(last.contains(r#""code":"CLIENT_CUT""#) && last.contains(r#""retriable":true"#), "{last}");
    assert!(last.ends_with("0\r\n\r\n"), "the answer ends: {last}");
    assert!(whole(&daemon.events(&job, None).await), "the job is whole");

    worker.allow(TOKENS);
    let body = json!({ "stream": true, "messages": [{ "role": "user", "content": "x" }] }).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let read = reads_late(&daemon, send_and_stall(address, &request), 1).await;
    let last = read.rfind("data: {").map(|at| &read[at..]).expect("a chunk");
    assert!(last.contains(r#""code":"client_cut""#), "{last}");
    assert!(last.ends_with("0\r\n\r\n"), "the answer ends: {last}");
}

/// Bytes of memory that a process has.
fn resident(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn readers_that_take_nothing_cost_little_memory_and_the_job_goes_on() {
    const STALLED: u64 = 60;
    let (_folder, home, ready) = folders();
    let process = Process::start(&mut std::process::Command::new(PROGRAM), &home, &ready).await;
    let token = "x".repeat(TOKEN_BYTES);
    let worker = Worker::start(&process.url, &vec![token.as_str(); TOKENS]).await;
    // All but the last tokens.
    worker.allow(TOKENS - 8);
    let task = json!({ "prompt": "x", "max_tokens": TOKENS, "on_disconnect": "continue" });
    let submitted = process.http.post(format!("{}/v2/tasks", process.url)).json(&task).send().await;
    let job = submitted.expect("an answer").headers()["x-rbees-job-id"].to_str().expect("an id").to_owned();
    let events = format!("{}/v2/tasks/{job}/events", process.url);
    let mut reader = Follower::new(process.http.get(&events).send().await.expect("a stream"));
    // `queued` and `started` before them; the worker's progress has no number.
    let last = TOKENS as u64 - 10 + 1;
    while reader.next().await.expect("an event").id != Some(last) {}

    let address: SocketAddr =
        process.url.strip_prefix("http://").expect("a URL").parse().expect("an address");
    let before = resident(&process);
    let stalled: Vec<_> = (0..STALLED).map(|_| ask_and_stall(address, &job)).collect();
    let health = format!("{}/metrics", process.url);
    until("all are served", || async {
        let text = process.http.get(&health).send().await.ok()?.text().await.ok()?;
        let open = text.lines().find_map(|line| line.strip_prefix("rbees_orcd_open_connections "))?;
        (open.parse::<u64>().ok()? > STALLED).then_some(())
    })
    .await;
    worker.allow(usize::MAX);
    let rest = reader.rest().await;
    assert_eq!(rest.last().map(|frame| &*frame.event), Some("end"), "the job goes on to its end");
    let whole_log = (TOKEN_BYTES * TOKENS) as u64;
    let grown = resident(&process).saturating_sub(before);
    assert!(grown < STALLED * whole_log / 8, "{grown} bytes for {STALLED} readers of {whole_log} bytes");
    drop(stalled);
}
