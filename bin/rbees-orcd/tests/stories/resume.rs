//! A reader that was away goes on where it was.

use serde_json::json;

use crate::daemon::{Daemon, ids, names, until};
use crate::worker::Worker;

#[tokio::test]
async fn last_event_id_goes_on_without_a_gap() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c", "d"]).await;
    worker.allow(4);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    let mut first = daemon.follow(&job, None).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(first.next().await.expect("another event").id);
    }
    assert_eq!(seen, [0, 1, 2]);
    drop(first);
    worker.allow(usize::MAX);
    let rest = daemon.events(&job, Some(2)).await;
    assert_eq!(ids(&rest), [3, 4, 5, 6]);
    assert_eq!(names(&rest), ["token", "token", "token", "end"]);
}

#[tokio::test]
async fn many_readers_see_the_same_and_none_waits_for_another() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c", "d"]).await;
    worker.allow(3);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    // One reader that never reads on, and two that do.
    let mut stuck = daemon.follow(&job, None).await;
    stuck.next().await.expect("queued");
    let (one, two) = (daemon.follow(&job, None).await, daemon.follow(&job, None).await);
    worker.allow(usize::MAX);
    let numbered = |frames: Vec<api_types::sse::Frame>| ids(&frames);
    assert_eq!(numbered(one.rest().await), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(numbered(two.rest().await), [0, 1, 2, 3, 4, 5, 6]);
    drop(stuck);
}

#[tokio::test]
async fn who_has_the_last_event_gets_nothing_more() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    daemon.until_status(&job, "completed").await;
    assert_eq!(ids(&daemon.events(&job, Some(2)).await), [3]);
    assert!(daemon.events(&job, Some(3)).await.is_empty());
}

#[tokio::test]
async fn a_broken_connection_to_the_worker_is_taken_up_again() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    worker.allow(3);
    let job = daemon.submit(json!({ "prompt": "x" })).await;
    daemon.until_status(&job, "running").await;
    worker.break_streams();
    until("the worker is asked for its log", || async { (worker.resumed() > 0).then_some(()) }).await;
    worker.allow(usize::MAX);
    let frames = daemon.events(&job, None).await;
    assert_eq!(ids(&frames), [0, 1, 2, 3, 4, 5]);
    assert_eq!(worker.executed().len(), 1, "the run went on; it was not run again");
}
