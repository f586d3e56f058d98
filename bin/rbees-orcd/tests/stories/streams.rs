//! A connection after, before and beside a stream on it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::json;

use crate::daemon::Daemon;
use crate::worker::Worker;

/// Sends the first part, the second once `sign` was read, and reads until the server closes.
async fn exchange(address: SocketAddr, first: String, sign: &'static str, second: String) -> String {
    let exchange = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).expect("connected");
        stream.write_all(first.as_bytes()).expect("asked");
        let (mut all, mut bytes) = (String::new(), [0; 4_096]);
        let mut second = Some(second);
        // It may close in disorder over what it did not want to read.
        while let Ok(read @ 1..) = stream.read(&mut bytes) {
            all.push_str(std::str::from_utf8(&bytes[..read]).expect("text"));
            if let Some(second) = second.take_if(|_| all.contains(sign)) {
                stream.write_all(second.as_bytes()).expect("asked");
            }
        }
        all
    });
    exchange.await.expect("joined")
}

/// A chat whose answer is a stream.
fn chat(address: SocketAddr) -> String {
    let body = json!({ "stream": true, "messages": [{ "role": "user", "content": "x" }] }).to_string();
    let length = body.len();
    format!("POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n{body}")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sends_ahead_of_the_end_of_a_stream_is_answered_after_it() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    let address = daemon.server.address;
    let last = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let all = exchange(address, [chat(address), chat(address)].concat(), "assistant", last).await;
    let answers: Vec<&str> = all.split("HTTP/1.1 200 OK\r\n").skip(1).collect();
    assert_eq!(answers.len(), 3, "{all}");
    for stream in &answers[..2] {
        assert!(
            stream.contains("transfer-encoding: chunked\r\n") && stream.contains("\r\ndate: "),
            "{stream}"
        );
        assert!(stream.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{stream}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_a_request_for_a_stream_is_no_request() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let address = daemon.server.address;
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    daemon.until_status(&job, "completed").await;
    let body = format!("GET /nowhere HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let head = format!(
        "GET /v2/tasks/{job}/events HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let all = exchange(address, head, "event: end", body).await;
    assert!(all.contains("event: end"), "{all}");
    assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "what follows the head is its body: {all}");
}
