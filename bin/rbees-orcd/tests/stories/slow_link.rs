//! A worker behind a bad link: late, narrow, and now and then a pause as after a lost packet.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::daemon::{Daemon, names, text, until};
use crate::worker::Worker;

/// From one end to the other.
const LATENCY: Duration = Duration::from_millis(200);
/// 256 kbit/s.
const BYTES_PER_SECOND: u64 = 32_000;
/// One packet in so many is lost, and sent again after a while.
const LOST_ONE_IN: u64 = 50;
const SENT_AGAIN_AFTER: Duration = Duration::from_millis(400);
/// Bytes of a packet.
const PACKET: usize = 1_400;

/// A link that listens, and leads to `target` in its bad way. Gives its URL.
async fn link(target: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let target = target.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                tokio::time::sleep(LATENCY).await;
                let Ok(far) = TcpStream::connect(target).await else { return };
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(carry(near_in, far_out));
                carry(far_in, near_out).await;
            });
        }
    });
    url
}

/// Carries bytes one way: each packet leaves when the line is free, and arrives later.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (sender, mut line) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(64);
    let arriving = tokio::spawn(async move {
        while let Some((at, packet)) = line.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&packet).await.is_err() {
                return;
            }
        }
    });
    let (mut free_at, mut packets) = (Instant::now(), 0_u64);
    let mut packet = vec![0; PACKET];
    while let Ok(bytes @ 1..) = from.read(&mut packet).await {
        packets += 1;
        let on_the_line = Duration::from_micros(bytes as u64 * 1_000_000 / BYTES_PER_SECOND);
        free_at = free_at.max(Instant::now()) + on_the_line;
        if packets % LOST_ONE_IN == 0 {
            free_at += SENT_AGAIN_AFTER;
        }
        tokio::time::sleep_until(free_at).await;
        if sender.send((free_at + LATENCY, packet[..bytes].to_vec())).await.is_err() {
            break;
        }
    }
    drop(sender);
    let _ = arriving.await;
}

/// More than a lease lasts, at two heartbeats a second and two ways each.
const BEATS: u64 = 14;

#[tokio::test(flavor = "multi_thread")]
async fn b39_over_a_bad_link_everything_is_slower_and_nobody_is_lost() {
    let daemon = Daemon::start().await;
    let home = link(daemon.url("")).await;
    let tokens: Vec<String> = (0..60).map(|n| format!("{n} ").repeat(20)).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let near = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("set");
    let mut uri = String::new();
    let worker = Worker::start_with(&home, &tokens, |facts| {
        // Whoever calls the worker calls the link.
        uri = std::mem::replace(&mut facts.uri, format!("http://{near}"));
        let (listener, target) = (listener, uri.clone());
        tokio::spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let far = link(target).await;
            while let Ok((mut near, _)) = listener.accept().await {
                let far = far.trim_start_matches("http://").to_owned();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(far).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
    })
    .await;
    worker.allow(20);
    let job = daemon.submit(json!({ "prompt": "x", "on_disconnect": "continue" })).await;
    daemon.until_status(&job, "running").await;
    // The run stands still for longer than a lease, with nothing but heartbeats on the link.
    until("many heartbeats were answered", || async { (worker.beats() >= BEATS).then_some(()) }).await;
    worker.allow(usize::MAX);
    let frames = daemon.events(&job, None).await;
    assert_eq!(names(&frames).last(), Some(&"end"));
    assert_eq!(text(&frames), tokens.concat());
    let (_, view) = daemon.get(&format!("/v2/tasks/{job}")).await;
    assert_eq!((view["status"].as_str(), view["attempt"].as_u64()), (Some("completed"), Some(1)), "{view}");
    assert_eq!(worker.executed().len(), 1, "it ran once");
    let (_, list) = daemon.get("/v2/workers").await;
    assert_eq!(list["workers"][0]["incarnation"], 1, "it was never given up: {list}");
    assert_eq!(list["workers"][0]["state"], "ready");
}
