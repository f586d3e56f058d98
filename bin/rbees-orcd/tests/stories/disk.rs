//! Disks that fill up, fail, lie or belong to somebody else, under the real program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;

use crate::daemon::{Daemon, Follower, answer, until};
use crate::process::{PROGRAM, Process, folders};
use crate::worker::Worker;

/// A command in a file system view of its own, after `setup` has run there.
fn with_mounts(setup: &str) -> Command {
    let mut command = Command::new("unshare");
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    command.arg(if is_root { "-m" } else { "-Urm" });
    command.args(["sh", "-ec", &format!("{setup}\nexec \"$0\" \"$@\""), PROGRAM]);
    command
}

/// Runs the program until it ends by itself.
fn ended(command: &mut Command, home: &Path) -> Output {
    command.args(["--bind", "127.0.0.1:0", "--home"]).arg(home);
    command.output().expect("it ran")
}

#[tokio::test]
async fn b05_with_a_full_disk_new_jobs_are_refused_streams_go_on_and_room_mends_it() {
    let (_folder, home, ready) = folders();
    let mount = format!("mount -t tmpfs -o size=8m tmpfs '{}'", home.display());
    let process = Process::start(&mut with_mounts(&mount), &home, &ready).await;
    let worker = Worker::start(&process.url, &["a", "b", "c", "d"]).await;
    // Up to its first token: from then on readers see what comes.
    worker.allow(3);
    let running = process.submit("x").await.expect("an answer");
    let job = running.headers()["x-rbees-job-id"].to_str().expect("an id").to_owned();
    let events = process.http.get(format!("{}/v2/tasks/{job}/events", process.url)).send().await;
    let mut reader = Follower::new(events.expect("a stream"));
    while reader.next().await.expect("an event").id != Some(2) {}

    // What the process sees under its own mounts.
    let fill = PathBuf::from(format!("/proc/{}/root{}/fill", process.child.id(), home.display()));
    let full = std::fs::write(&fill, vec![7; 16 << 20]).expect_err("the disk fills up");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let refused = until("a job is refused", || async {
        let answer = process.submit("y").await.ok()?;
        (answer.status() == 507).then_some(answer)
    })
    .await;
    assert!(refused.headers().contains_key("retry-after"));
    let body: serde_json::Value = refused.json().await.expect("JSON");
    assert_eq!(body["error"]["code"], "STORAGE_FULL", "{body}");
    assert_eq!((process.status("/readyz").await, process.status("/healthz").await), (503, 200));
    worker.allow(4);
    while reader.next().await.expect("tokens go on").id != Some(3) {}

    std::fs::remove_file(&fill).expect("freed");
    worker.allow(usize::MAX);
    until("jobs are taken again", || async {
        process.submit("z").await.ok().filter(|answer| answer.status() == 202)
    })
    .await;
    assert_eq!(process.status("/readyz").await, 200);
    let rest = reader.rest().await;
    assert_eq!(rest.last().map(|frame| &*frame.event), Some("end"), "{rest:?}");
}

#[tokio::test]
async fn b05_while_a_commit_waits_for_room_workers_are_answered_and_jobs_in_memory_run() {
    let (_folder, home, ready) = folders();
    let mount = format!("mount -t tmpfs -o size=8m tmpfs '{}'", home.display());
    let process = Process::start(&mut with_mounts(&mount), &home, &ready).await;
    // So much text that the end of a job finds no room, whatever is left of it.
    let tokens = ["a".repeat(900_000), "b".repeat(900_000)];
    let worker = Worker::start(&process.url, &[&tokens[0], &tokens[1]]).await;
    worker.allow(3);
    let running = process.submit("x").await.expect("an answer");
    let job = running.headers()["x-rbees-job-id"].to_str().expect("an id").to_owned();
    let events = process.http.get(format!("{}/v2/tasks/{job}/events", process.url)).send().await;
    let mut reader = Follower::new(events.expect("a stream"));
    while reader.next().await.expect("an event").id != Some(2) {}

    let fill = PathBuf::from(format!("/proc/{}/root{}/fill", process.child.id(), home.display()));
    std::fs::write(&fill, vec![7; 16 << 20]).expect_err("the disk fills up");
    worker.allow(usize::MAX);
    until("a commit waits", || async { process.has_logged("COMMIT_REFUSED").then_some(()) }).await;
    let answered = worker.beats();
    until("heartbeats are answered", || async { (worker.beats() >= answered + 4).then_some(()) }).await;
    let task = json!({ "prompt": "y", "on_disconnect": "continue", "durability": "memory", "max_tokens": 1 });
    let (status, taken) = answer(process.http.post(format!("{}/v2/tasks", process.url)).json(&task)).await;
    assert_eq!(status, 202, "{taken}");
    let other = taken["job_id"].as_str().expect("an id").to_owned();
    let events = process.http.get(format!("{}/v2/tasks/{other}/events", process.url)).send().await;
    let frames = Follower::new(events.expect("a stream")).rest().await;
    assert_eq!(frames.last().map(|frame| &*frame.event), Some("end"));
    assert!(!worker.acknowledged().contains(&job), "the log of an end that is not on disk was given up");

    std::fs::remove_file(&fill).expect("freed");
    let rest = reader.rest().await;
    assert_eq!(rest.last().map(|frame| &*frame.event), Some("end"));
    let view = answer(process.http.get(format!("{}/v2/tasks/{job}", process.url))).await.1;
    assert_eq!(view["status"], "completed");
}

#[tokio::test]
async fn no_worker_is_told_to_stop_before_the_end_that_asks_for_it_is_on_disk() {
    let (_folder, home, ready) = folders();
    let process = Process::start(&mut Command::new(PROGRAM), &home, &ready).await;
    let worker = Worker::start(&process.url, &["a", "b"]).await;
    worker.allow(3);
    let task = json!({ "prompt": "x", "on_disconnect": "continue", "deadline_ms": 1_500 });
    let (status, taken) = answer(process.http.post(format!("{}/v2/tasks", process.url)).json(&task)).await;
    assert_eq!(status, 202, "{taken}");
    let job = taken["job_id"].as_str().expect("an id");
    let view =
        async |path: &str| answer(process.http.get(format!("{}/v2/tasks/{job}{path}", process.url))).await.1;
    until("it runs", || async { (view("").await["status"] == "running").then_some(()) }).await;
    // Another program holds the database, so that no commit gets through.
    let other = rusqlite::Connection::open(home.join("orchestrator.db")).expect("opened");
    other.execute_batch("BEGIN IMMEDIATE").expect("held");
    until("the deadline is over", || async {
        let text =
            process.http.get(format!("{}/metrics", process.url)).send().await.ok()?.text().await.ok()?;
        text.contains("rbees_orcd_running_jobs 0\n").then_some(())
    })
    .await;
    assert_eq!(view("").await["status"], "running", "as far as the disk knows");
    assert_eq!(worker.cancelled(), 0);
    other.execute_batch("ROLLBACK").expect("let go");
    until("the worker is told", || async { (worker.cancelled() > 0).then_some(()) }).await;
    assert_eq!(view("").await["status"], "failed");
}

#[tokio::test]
async fn b06_a_sync_that_fails_ends_the_process_and_nothing_acknowledged_is_lost() {
    // Counted by thread: the driver's gets there, the one that opened the database does not.
    ends_without_a_loss("fdatasync,fsync:error=EIO:when=40+").await;
}

#[tokio::test]
async fn b07_a_disk_that_turns_read_only_ends_the_process_and_nothing_acknowledged_is_lost() {
    ends_without_a_loss("pwrite64:error=EROFS:when=400+").await;
}

/// Hands in jobs until the calls that strace is to spoil end the process.
async fn ends_without_a_loss(inject: &str) {
    let (_folder, home, ready) = folders();
    let mut strace = Command::new("strace");
    let calls = inject.split(':').next().expect("calls");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={inject}"), PROGRAM]);
    let mut process = Process::start(&mut strace, &home, &ready).await;
    let _worker = Worker::start(&process.url, &["a"]).await;
    let mut acknowledged = Vec::new();
    while let Ok(answer) = process.submit("x").await {
        if answer.status() == 202 {
            acknowledged.push(answer.headers()["x-rbees-job-id"].to_str().expect("an id").to_owned());
        }
    }
    let child = std::cell::RefCell::new(&mut process.child);
    let status = until("it ends", || {
        let status = child.borrow_mut().try_wait().expect("asked");
        async move { status }
    })
    .await;
    assert_eq!(status.code(), Some(75));
    assert!(!acknowledged.is_empty());
    let again = Process::start(&mut Command::new(PROGRAM), &home, &ready).await;
    for job in acknowledged {
        assert_eq!(again.status(&format!("/v2/tasks/{job}")).await, 200, "{job} is lost");
    }
}

#[tokio::test]
async fn b08_a_damaged_database_is_refused_by_name_and_left_as_it_is() {
    let daemon = Daemon::start().await;
    for _ in 0..50 {
        daemon.post("/v2/pools", json!({ "pool_id": "p" }).to_string()).await;
    }
    let Daemon { home, server, .. } = daemon;
    server.stop().await.expect("stopped");
    let path = home.path().join("orchestrator.db");
    let sound = std::fs::read(&path).expect("read");
    let mut damaged = sound.clone();
    damaged[100..sound.len().min(40_000)].iter_mut().for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&path, &damaged).expect("written");
    let output = ended(&mut Command::new(PROGRAM), home.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{said}");
    assert!(said.contains("orchestrator.db") && said.contains("db check"), "{said}");
    assert!(std::fs::read(&path).expect("read") == damaged, "the file was changed");
}

#[tokio::test]
async fn b09_a_second_orchestrator_ends_at_once_and_the_first_goes_on() {
    let (_folder, home, ready) = folders();
    let first = Process::start(&mut Command::new(PROGRAM), &home, &ready).await;
    let output = ended(&mut Command::new(PROGRAM), &home);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(said.contains(&format!("\"pid\":{}", first.child.id())), "{said}");
    assert_eq!(first.status("/readyz").await, 200);
}

#[test]
fn b07_a_read_only_folder_is_refused_with_what_is_needed() {
    let (_folder, home, _) = folders();
    let home_text = home.display();
    let mount = format!("mount --bind '{home_text}' '{home_text}'; mount -o remount,ro,bind '{home_text}'");
    let output = ended(&mut with_mounts(&mount), &home);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.contains(&home.display().to_string()), "{said}");
}

#[tokio::test]
async fn a_torn_request_of_a_living_job_does_not_pass_the_check() {
    torn_request_is_found(0).await;
}

#[tokio::test]
async fn a_torn_request_that_is_kept_with_its_ended_job_does_not_pass_the_check() {
    torn_request_is_found(usize::MAX).await;
}

/// Tears the request of a job whose worker shows so many frames.
async fn torn_request_is_found(allowed: usize) {
    let daemon = Daemon::start_with(|config| config.keeping.prompts = true).await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    worker.allow(allowed);
    let task = json!({ "prompt": "bee ".repeat(20_000), "on_disconnect": "continue" });
    let job = daemon.submit(task).await;
    if allowed > 0 {
        daemon.until_status(&job, "completed").await;
    }
    let Daemon { home, server, .. } = daemon;
    server.stop().await.expect("stopped");
    let check = || {
        let output = Command::new(PROGRAM).args(["db", "check", "--home"]).arg(home.path()).output();
        let output = output.expect("it ran");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check().0, Some(0));
    // A sector that did not reach the disk.
    let path = home.path().join("prompts").join(format!("{job}.json"));
    let mut torn = std::fs::read(&path).expect("read");
    torn[40_960..41_472].fill(0);
    std::fs::write(&path, torn).expect("written");
    let (code, said) = check();
    assert!(code == Some(65) && said.contains(&job), "{code:?} {said}");
}

#[test]
fn a_sound_database_passes_its_check() {
    let (_folder, home, _) = folders();
    let output = Command::new(PROGRAM).args(["db", "check", "--home"]).arg(&home).output().expect("it ran");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("sound: 0 jobs"));
}
