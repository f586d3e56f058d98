//! Many callers meet one brain: what needs no disk is not held up wrongly, what needs it is there.

use futures_util::future::join_all;
use rbees_orcd::server::DriverError;
use rusqlite::{Connection, OpenFlags};
use serde_json::json;

use crate::daemon::{Daemon, names, text, until};
use crate::worker::Worker;

/// How many rows the database of a daemon has for a job, as another process sees it.
fn rows_of(daemon: &Daemon, job: &str) -> i64 {
    let file = daemon.folder().join("orchestrator.db");
    let file = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the database");
    file.busy_timeout(std::time::Duration::from_secs(10)).expect("patience");
    let id: api_types::JobId = job.parse().expect("an id");
    file.query_row("SELECT count(*) FROM jobs WHERE job_id = ?1", [id.uuid().as_bytes()], |row| row.get(0))
        .expect("a count")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_a_crowd_each_durable_job_is_on_disk_when_it_is_answered_and_no_other_ever_is() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    let jobs = join_all((0..120).map(|number| {
        let daemon = &daemon;
        async move {
            let durable = number % 2 == 0;
            let durability = if durable { "durable" } else { "memory" };
            let job = daemon.submit(json!({ "prompt": format!("{number}"), "durability": durability })).await;
            assert_eq!(rows_of(daemon, &job), i64::from(durable), "{durability} {job}");
            (job, durable)
        }
    }))
    .await;
    for (job, durable) in &jobs {
        let frames = daemon.events(job, None).await;
        let kept: Vec<_> = frames.into_iter().filter(|frame| frame.id.is_some()).collect();
        assert_eq!(names(&kept), ["queued", "started", "token", "token", "end"]);
        assert_eq!(text(&kept), "ab");
        assert_eq!(rows_of(&daemon, job), i64::from(*durable));
    }
    assert_eq!(worker.executed().len(), jobs.len(), "none ran twice");
}

#[tokio::test]
async fn every_log_is_acknowledged_although_no_run_has_a_request_of_its_own_for_it() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    let mut jobs = Vec::new();
    for _ in 0..12 {
        let job = daemon.submit(json!({ "prompt": "x", "durability": "memory" })).await;
        daemon.events(&job, None).await;
        jobs.push(job);
    }
    jobs.sort();
    until("all logs may go", || async {
        let mut gone = worker.acknowledged();
        gone.sort();
        (gone == jobs).then_some(())
    })
    .await;
}

#[tokio::test]
async fn b18_a_brain_that_panicked_is_asked_no_more_and_ends_the_daemon() {
    // Nothing but the panic wakes the thread that is to end.
    let never = std::time::Duration::from_secs(3_600);
    let daemon = Daemon::start_with(|config| config.pool_interval = never).await;
    let Daemon { home, mut server, http } = daemon;
    // The panic is on the caller's thread, not on the driver's.
    let driver = server.driver.clone();
    let asked = tokio::spawn(async move { driver.read::<()>(|_, _| panic!("a test")).await });
    drop(asked.await);
    let ended = tokio::time::timeout(crate::daemon::PATIENCE, server.driver_failed()).await;
    assert!(matches!(ended, Ok(Err(DriverError::Panicked))), "{ended:?}");
    drop(server);
    let daemon = Daemon::open(home, http).await;
    assert_eq!(daemon.get("/readyz").await.0, 200);
}
