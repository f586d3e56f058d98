//! An ordered end: new work is refused, open streams are told to come back, runs go on.

use std::process::Command;

use rbees_orcd::store::migrate::MIGRATIONS;
use rusqlite::Connection;
use serde_json::json;

use crate::daemon::{Daemon, Follower, ids, names, text, until};
use crate::process::{PROGRAM, Process, folders};
use crate::worker::Worker;

#[tokio::test]
async fn open_streams_end_with_a_comment_and_go_on_after_the_restart() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    worker.allow(3);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    daemon.until_status(&job, "running").await;
    let url = daemon.url(&format!("/v2/tasks/{job}/events"));
    let mut open = daemon.http.get(url).send().await.expect("a stream");
    let Daemon { home, server, http } = daemon;
    server.stop().await.expect("everything is on disk");
    let mut text = String::new();
    while let Some(chunk) = open.chunk().await.expect("an orderly end") {
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(text.contains("event: queued"), "{text}");
    assert!(text.trim_end().ends_with("reconnect with Last-Event-ID"), "{text}");

    let daemon = Daemon::open(home, http).await;
    worker.register(&daemon.url("")).await;
    worker.allow(usize::MAX);
    let frames = daemon.events(&job, Some(1)).await;
    assert_eq!((names(&frames), ids(&frames)), (vec!["token", "token", "end"], vec![2, 3, 4]));
    assert_eq!(worker.executed().len(), 1);
}

#[tokio::test]
async fn a_stopped_daemon_listens_no_more() {
    let daemon = Daemon::start().await;
    let address = daemon.server.address;
    daemon.server.stop().await.expect("stopped");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

fn version(home: &std::path::Path) -> i64 {
    let database = Connection::open(home.join("orchestrator.db")).expect("opened");
    database.pragma_query_value(None, "user_version", |row| row.get(0)).expect("a number")
}

/// Leaves the database as a version did that knew one migration less.
fn set_back_by_a_version(home: &std::path::Path) {
    assert_eq!(MIGRATIONS.last().map(|last| last.name), Some("0002_kept_requests"), "undo the last one");
    let database = Connection::open(home.join("orchestrator.db")).expect("opened");
    database.execute_batch("DROP TABLE kept_requests; PRAGMA user_version = 1;").expect("set back");
}

#[tokio::test]
async fn b13_a_new_version_takes_up_what_the_old_one_left_when_it_was_told_to_end() {
    let (_folder, home, ready) = folders();
    let mut old = Process::start(&mut Command::new(PROGRAM), &home, &ready).await;
    let worker = Worker::start(&old.url, &["a", "b", "c", "d"]).await;
    worker.allow(4);
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let taken = old.submit("x").await.expect("an answer");
        jobs.push(taken.headers()["x-rbees-job-id"].to_str().expect("an id").to_owned());
    }
    let follow = async |process: &Process, job: &str, after: Option<u64>| {
        let mut request = process.http.get(format!("{}/v2/tasks/{job}/events", process.url));
        if let Some(id) = after {
            request = request.header("last-event-id", id.to_string());
        }
        Follower::new(request.send().await.expect("a stream"))
    };
    let mut stream = follow(&old, &jobs[0], None).await;
    let mut frames = Vec::new();
    while frames.last().is_none_or(|frame: &api_types::sse::Frame| frame.id != Some(3)) {
        frames.push(stream.next().await.expect("an event"));
    }
    let pid = rustix::process::Pid::from_child(&old.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("told");
    assert!(stream.rest().await.is_empty(), "nothing but a comment follows");
    let child = std::cell::RefCell::new(&mut old.child);
    let status = until("it ends", || {
        let status = child.borrow_mut().try_wait().expect("asked");
        async move { status }
    })
    .await;
    assert_eq!(status.code(), Some(0));
    set_back_by_a_version(&home);

    let new = Process::start(&mut Command::new(PROGRAM), &home, &ready).await;
    assert_eq!(usize::try_from(version(&home)), Ok(MIGRATIONS.len()));
    worker.register(&new.url).await;
    worker.allow(usize::MAX);
    frames.extend(follow(&new, &jobs[0], Some(3)).await.rest().await);
    let other = follow(&new, &jobs[1], None).await.rest().await;
    for frames in [frames, other] {
        let frames: Vec<_> = frames.into_iter().filter(|frame| frame.id.is_some()).collect();
        assert_eq!(text(&frames), "abcd");
        assert!(ids(&frames).into_iter().eq(0..7), "{:?}", ids(&frames));
    }
    assert_eq!(worker.executed().len(), 2, "nothing ran twice");
}
