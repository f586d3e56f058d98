//! `rbees-pool worker …` with the real worker program and its built-in stand-in for an engine.

#[path = "../../../crates/pool-host/tests/support/mod.rs"]
mod support;

mod pool;

use std::path::{Path, PathBuf};
use std::process::Command;

use pool::{Pool, stderr, stdout, wait_for};
use serde_json::Value;

/// The folder of the worker program; built when it is not there yet.
fn worker_folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_rbees-pool")).parent().expect("a folder").to_path_buf();
    if !folder.join("rbees-workerd").is_file() {
        let built = Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "rbees-workerd"]).status();
        assert!(built.expect("cargo runs").success(), "the worker program could not be built");
    }
    folder
}

fn pool() -> Pool {
    Pool::new().with_env("RBEES_BIN_DIR", &worker_folder().to_string_lossy())
}

/// Ends all workers, also when the test fails.
struct Stopping<'a>(&'a Pool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        let _ = self.0.run(&["worker", "stop-all", "--grace", "5"]);
    }
}

fn workers(pool: &Pool) -> Vec<Value> {
    pool.json(&["worker", "list"])["workers"].as_array().expect("a list").clone()
}

fn pid(worker: &Value) -> u32 {
    worker["process"]["pid"].as_u64().expect("a number") as u32
}

fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_worker_lives_from_spawn_to_stop() {
    let pool = pool();
    let _stopping = Stopping(&pool);
    let spawned = pool.json(&["worker", "spawn", "fake", "--backend", "fake", "--model", "fake:bee?seed=1"]);
    assert_eq!((&spawned["state"], &spawned["model"]), (&"ready".into(), &"bee".into()));
    let port = spawned["port"].as_u64().expect("a port");
    assert!((8001..=8999).contains(&port), "{port}");
    let listed = workers(&pool);
    assert_eq!(listed, std::slice::from_ref(&spawned));
    let id = spawned["worker_id"].as_str().expect("an id");
    assert!(id.starts_with("worker-fake-"), "{id}");
    assert!(!pool.json(&["worker", "logs", &id[..16]])["lines"].as_array().expect("lines").is_empty());
    let short = &id["worker-fake-".len()..][..6];
    assert_eq!(pool.json(&["worker", "stop", short])["worker_id"], id);
    wait_for("it has ended", || (!lives(pid(&spawned))).then_some(()));
    assert!(workers(&pool).is_empty());
}

#[test]
fn one_id_is_one_worker_also_when_two_start_it_at_once() {
    let pool = pool();
    let _stopping = Stopping(&pool);
    let spawn = ["worker", "spawn", "--model", "fake:bee?load_ms=300", "--worker-id", "worker-fake-twin"];
    let both: Vec<_> = (0..2).map(|_| pool.command(&spawn).spawn().expect("it starts")).collect();
    let outcomes: Vec<bool> =
        both.into_iter().map(|mut one| one.wait().expect("it ends").success()).collect();
    assert_eq!(outcomes.iter().filter(|success| **success).count(), 1, "{outcomes:?}");
    assert_eq!(workers(&pool).len(), 1);
}

#[test]
fn a_killed_worker_shows_as_gone_until_it_is_cleaned_up() {
    let pool = pool();
    let _stopping = Stopping(&pool);
    let spawned = pool.json(&["worker", "spawn", "--model", "fake:bee"]);
    let number = rustix::process::Pid::from_raw(pid(&spawned) as i32).expect("a number");
    rustix::process::kill_process(number, rustix::process::Signal::KILL).expect("killed");
    wait_for("it shows", || (workers(&pool)[0]["state"] == "gone").then_some(()));
    assert_eq!(workers(&pool)[0]["state"], "gone", "looking repairs nothing");
    assert_eq!(pool.json(&["worker", "cleanup"])["actions"][0]["action"], "removed");
    assert!(workers(&pool).is_empty());
}

#[test]
fn a_worker_whose_record_was_lost_is_adopted() {
    let pool = pool();
    let _stopping = Stopping(&pool);
    let spawned = pool.json(&["worker", "spawn", "--model", "fake:bee"]);
    let id = spawned["worker_id"].as_str().expect("an id").to_owned();
    std::fs::remove_file(pool.home().join(format!("runtime/workers/{id}.json"))).expect("removed");
    assert_eq!(workers(&pool)[0]["process"], spawned["process"]);
    assert_eq!(pool.json(&["worker", "cleanup"])["actions"][0]["action"], "adopted");
    pool.json(&["worker", "stop", &id]);
    wait_for("it has ended", || (!lives(pid(&spawned))).then_some(()));
}

#[test]
fn a_failing_worker_tells_its_own_reason_and_leaves_nothing() {
    let pool = pool();
    let error = pool.error(&["worker", "spawn", "--model", "fake:bee?nonsense=1"], 2);
    assert!(error["message"].as_str().expect("text").contains("nonsense"), "{error}");
    assert!(!error["details"]["log_lines"].as_array().expect("lines").is_empty(), "{error}");
    assert!(workers(&pool).is_empty());
    let timeout = pool.error(&["worker", "spawn", "--model", "fake:bee?load_ms=600000", "--timeout", "1"], 1);
    assert_eq!(timeout["code"], "SPAWN_TIMEOUT");
    assert!(workers(&pool).is_empty(), "it was killed");
}

#[test]
fn a_caller_that_is_lost_while_a_worker_loads_leaves_no_worker() {
    let pool = pool();
    let _stopping = Stopping(&pool);
    let args = r#"{"protocol":1,"args":["worker","spawn","--model","fake:bee?load_ms=600000","--json"]}"#;
    let mut child = pool.remote(args);
    let loading = wait_for("it loads", || workers(&pool).into_iter().next());
    assert!(lives(pid(&loading)));
    drop(child.stdin.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(!lives(pid(&loading)) && workers(&pool).is_empty());
}

#[test]
fn a_ctrl_c_while_a_worker_loads_leaves_no_worker() {
    let pool = pool();
    let _stopping = Stopping(&pool);
    let mut child =
        pool.command(&["worker", "spawn", "--model", "fake:bee?load_ms=600000"]).spawn().expect("starts");
    let loading = wait_for("it loads", || workers(&pool).into_iter().next());
    let number = rustix::process::Pid::from_raw(child.id() as i32).expect("a number");
    rustix::process::kill_process(number, rustix::process::Signal::INT).expect("signalled");
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    assert!(!lives(pid(&loading)) && workers(&pool).is_empty());
}

#[test]
fn contradictions_and_absent_devices_are_refused() {
    let pool = pool();
    for (args, code, exit) in [
        (&["fake", "--backend", "cpu", "--model", "fake:bee"][..], "INVALID_FIELD", 2),
        (&["cuda", "--model", "fake:bee"], "INVALID_FIELD", 2),
        (&["--model", "fake:bee", "--gpu", "0"], "INVALID_FIELD", 2),
        (&["--model", "fake:bee", "--slots", "0"], "INVALID_FIELD", 2),
    ] {
        let error = pool.error(&[&["worker", "spawn"], args].concat(), exit);
        assert_eq!(error["code"], code, "{args:?}: {error}");
    }
    let file = pool.home().join("m.gguf");
    std::fs::write(&file, pool::model_file(4096)).expect("written");
    let reference = format!("file:{}", file.display());
    let error = pool.error(&["worker", "spawn", "cuda", "--gpu", "77", "--model-ref", &reference], 3);
    assert_eq!(error["code"], "DEVICE_NOT_FOUND", "{error}");
}

#[test]
fn the_status_is_the_handshake() {
    let pool = pool();
    let status = pool.json(&["status"]);
    assert_eq!(status["protocol"], 1);
    assert!(status["hardware"]["ram_total_bytes"].as_u64().expect("bytes") > 0);
    assert_eq!(status["models"].as_array().map(Vec::len), Some(6));
    let skewed = pool.remote(r#"{"protocol":99,"args":["status"]}"#).wait_with_output().expect("ends");
    assert_eq!(skewed.status.code(), Some(4));
    assert!(stdout(&skewed).is_empty() && stderr(&skewed).contains("VERSION_SKEW"), "{}", stderr(&skewed));
}
