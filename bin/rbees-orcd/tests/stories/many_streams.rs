//! More clients than there are descriptors for.

use std::process::Command;

use reqwest::Response;

use crate::daemon::{Follower, answer, until};
use crate::process::{PROGRAM, Process, folders};
use crate::worker::Worker;

/// Open files that the process may have.
const LIMIT: &str = "--nofile=128:128";

async fn events(process: &Process, job: &str) -> Response {
    let url = format!("{}/v2/tasks/{job}/events", process.url);
    process.http.get(url).send().await.expect("an answer")
}

#[tokio::test]
async fn b16_who_is_too_many_is_told_so_streams_go_on_and_places_come_back() {
    let (_folder, home, ready) = folders();
    let mut limited = Command::new("prlimit");
    limited.args([LIMIT, PROGRAM]);
    let process = Process::start(&mut limited, &home, &ready).await;
    let worker = Worker::start(&process.url, &["a", "b", "c"]).await;
    worker.allow(3);
    let running = process.submit("x").await.expect("an answer");
    let job = running.headers()["x-rbees-job-id"].to_str().expect("an id").to_owned();

    let mut open = Vec::new();
    let refused = loop {
        let stream = events(&process, &job).await;
        if stream.status() != 200 {
            break stream;
        }
        open.push(Follower::new(stream));
        assert!(open.len() < 128, "there are not so many descriptors");
    };
    assert!(open.len() >= 16, "only {} streams", open.len());
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let body: serde_json::Value = refused.json().await.expect("JSON");
    assert_eq!(body["error"]["code"], "TOO_MANY_STREAMS", "{body}");
    assert!(body["error"]["correlation_id"].is_string(), "{body}");
    let chat = process.http.post(format!("{}/v1/chat/completions", process.url)).body("{}");
    let (status, body) = answer(chat).await;
    assert_eq!((status, &body["error"]["code"]), (503, &"too_many_streams".into()), "{body}");

    worker.allow(usize::MAX);
    for stream in open.drain(..) {
        let frames = stream.rest().await;
        assert_eq!(frames.last().map(|frame| &*frame.event), Some("end"), "{frames:?}");
    }
    until("there is a place again", || async { (process.status("/readyz").await == 200).then_some(()) })
        .await;
    let again = process.submit("y").await.expect("an answer");
    assert_eq!(again.status(), 202);
    assert!(!process.has_logged("ACCEPT_FAILED"), "descriptors ran out");
    assert!(process.has_logged("FEW_DESCRIPTORS"), "the operator is not told");
}
