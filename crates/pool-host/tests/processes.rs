//! Workers as processes: who is signalled, who is not, and what is left behind.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use api_types::pool::{ProcessIdentity, RecordState, WorkerRecord};
use pool_core::reconcile;
use pool_core::spawn::{Device, ENV_HOME, ENV_WORKER_ID, SpawnPlan};
use pool_host::processes::{Supervision, identity, start};
use pool_host::{Home, records, stop};

const ID: &str = "worker-cpu-0123456789ab";

fn home(folder: &Path) -> Home {
    Home::at(folder).expect("a home")
}

/// A shell script in the place of a worker.
fn plan(home: &Home, script: &str) -> SpawnPlan {
    SpawnPlan {
        worker_id: ID.parse().expect("an id"),
        device: Device { backend: "cpu".into(), gpu: None },
        model: "m".into(),
        slots: 1,
        context: 1,
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![(ENV_WORKER_ID.into(), ID.into()), (ENV_HOME.into(), home.text())],
        log: format!("logs/{ID}.log"),
        report: format!("runtime/workers/{ID}.report.json"),
        why: String::new(),
    }
}

fn record(process: ProcessIdentity) -> WorkerRecord {
    WorkerRecord {
        worker_id: ID.parse().expect("an id"),
        backend: "cpu".into(),
        device: None,
        model: "m".into(),
        port: None,
        uri: None,
        process,
        state: RecordState::Ready,
        reported: None,
        log: String::new(),
        spawned_at: String::new(),
        predicted_bytes: None,
        measured_bytes: None,
    }
}

/// Starts a script and waits until it has said where its helper is.
fn started(home: &Home, script: &str) -> (WorkerRecord, u32) {
    let worker = start(&plan(home, script), home, Supervision::Session).expect("started");
    let record = record(worker.identity.clone());
    records::write(home, &record).expect("written");
    worker.keep();
    let log = home.logs().join(format!("{ID}.log"));
    let helper = wait_for(|| std::fs::read_to_string(&log).ok()?.lines().next()?.parse().ok());
    (record, helper)
}

fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = condition() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the condition did not come true within 30 s");
}

fn stranger() -> Child {
    Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("sleep starts")
}

#[tokio::test]
async fn a_polite_worker_ends_by_itself_and_its_helpers_are_swept() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = home(folder.path());
    let (record, helper) = started(&home, "trap 'exit 0' TERM; sleep 1000 & echo $!; wait");
    assert!(identity(helper).is_some());
    let killed = stop::stop(&home, &record, Duration::from_secs(20)).await.expect("stopped");
    assert!(!killed);
    wait_for(|| (identity(record.process.pid).is_none() && identity(helper).is_none()).then_some(()));
    assert!(!home.record(&record.worker_id).exists());
}

#[tokio::test]
async fn a_stubborn_worker_is_killed_with_its_helpers() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = home(folder.path());
    let script = "trap '' TERM; (trap '' TERM; exec sleep 1000) & echo $!; while :; do sleep 0.05; done";
    let (record, helper) = started(&home, script);
    let killed = stop::stop(&home, &record, Duration::from_millis(200)).await.expect("stopped");
    assert!(killed);
    wait_for(|| (identity(record.process.pid).is_none() && identity(helper).is_none()).then_some(()));
}

#[tokio::test]
async fn a_number_that_passed_to_a_stranger_is_never_signalled() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = home(folder.path());
    let mut stranger = stranger();
    let living = identity(stranger.id()).expect("alive");
    for old in [
        ProcessIdentity { start_ticks: living.start_ticks - 1, ..living.clone() },
        ProcessIdentity { boot_id: "an earlier boot".into(), ..living.clone() },
    ] {
        let record = record(old);
        records::write(&home, &record).expect("written");
        let shown = reconcile::view(&records::observe(&home).expect("looked at"));
        assert_eq!(shown[0].state, RecordState::Gone);
        assert!(!stop::stop(&home, &record, Duration::from_millis(50)).await.expect("stopped"));
        assert!(!home.record(&record.worker_id).exists());
        assert_eq!(identity(stranger.id()), Some(living.clone()), "the stranger was signalled");
    }
    stranger.kill().expect("it still lives");
    stranger.wait().expect("reaped");
}

#[test]
fn a_worker_that_was_not_kept_is_killed_with_its_helpers() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = home(folder.path());
    let script = "trap '' TERM; sleep 1000 & echo $!; wait";
    let worker = start(&plan(&home, script), &home, Supervision::Session).expect("started");
    let pid = worker.identity.pid;
    let log = home.logs().join(format!("{ID}.log"));
    let helper: u32 = wait_for(|| std::fs::read_to_string(&log).ok()?.lines().next()?.parse().ok());
    drop(worker);
    wait_for(|| (identity(pid).is_none() && identity(helper).is_none()).then_some(()));
}

#[test]
fn a_worker_without_a_record_is_found_by_its_mark() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = home(folder.path());
    let worker = start(&plan(&home, "sleep 1000"), &home, Supervision::Session).expect("started");
    let shown = wait_for(|| {
        let shown = reconcile::view(&records::observe(&home).expect("looked at"));
        (!shown.is_empty()).then_some(shown)
    });
    assert_eq!((shown.len(), &shown[0].process), (1, &worker.identity));
    let elsewhere = tempfile::tempdir().expect("a folder");
    let other = Home::at(elsewhere.path()).expect("a home");
    assert!(reconcile::view(&records::observe(&other).expect("looked at")).is_empty());
}

/// The kernel is made to give a dead worker's number to a stranger, in a namespace of its own.
#[test]
fn forced_reuse_of_a_number_signals_no_stranger() {
    let inside = ["--pid", "--fork", "--mount-proc"];
    let permitted = Command::new("unshare").args(inside).arg("true").stderr(Stdio::null()).status();
    if !permitted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this user may not make a process namespace");
        return;
    }
    let test = std::env::current_exe().expect("known");
    let run = Command::new("unshare")
        .args(inside)
        .arg(test)
        .args(["--exact", "inside_the_namespace", "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .expect("unshare runs");
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}");
    assert!(said.contains("reused for a stranger"), "{said}");
}

#[tokio::test]
#[ignore = "run by forced_reuse_of_a_number_signals_no_stranger, in a process namespace"]
async fn inside_the_namespace() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = home(folder.path());
    let mut victim = stranger();
    let dead = identity(victim.id()).expect("alive");
    victim.kill().expect("killed");
    victim.wait().expect("reaped");
    // Ticks are hundredths of a second: the stranger must not be born in the victim's.
    std::thread::sleep(Duration::from_millis(50));
    let (mut stranger, living) = reuse(dead.pid);
    assert_ne!(living, dead);
    println!("{} reused for a stranger", dead.pid);
    let record = record(dead);
    records::write(&home, &record).expect("written");
    stop::stop(&home, &record, Duration::from_millis(50)).await.expect("stopped");
    assert_eq!(identity(stranger.id()), Some(living), "the stranger was signalled");
    stranger.kill().expect("it still lives");
    stranger.wait().expect("reaped");
}

/// A process that gets this number; another thread may take it first, so it is tried again.
fn reuse(pid: u32) -> (Child, ProcessIdentity) {
    for _ in 0..100 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("the kernel lets us");
        let mut child = stranger();
        if child.id() == pid {
            let living = identity(pid).expect("alive");
            return (child, living);
        }
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }
    panic!("the kernel did not give {pid} again");
}
