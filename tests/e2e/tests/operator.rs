//! The operator's commands against the real programs.

use std::process::{Command, Output};

use e2e::binaries::{binary, real_model};
use e2e::{Cluster, Engine};
use serde_json::Value;

/// Runs a command without blocking the test's runtime, which the daemons' log readers share.
async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().expect("the command starts")).await.expect("joined")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_submitted_job_streams_to_standard_output_and_explains_itself() {
    let cluster = Cluster::start(Engine::Real, 1).await;
    let mut submit = cluster.rbees();
    submit.args(["jobs", "submit", "--model", "smollm2-135m", "--prompt", "The capital of France is"]);
    submit.args(["--temperature", "0", "--max-tokens", "16"]);
    let submitted = output(submit).await;
    assert_eq!(submitted.status.code(), Some(0), "{}", stderr(&submitted));
    assert!(stdout(&submitted).contains("Paris"), "{}", stdout(&submitted));

    let mut list = cluster.rbees();
    list.args(["jobs", "list", "--json"]);
    let listed: Value = serde_json::from_str(&stdout(&output(list).await)).expect("JSON");
    let job = listed["tasks"][0]["job_id"].as_str().expect("an id").to_owned();
    let mut why = cluster.rbees();
    why.args(["jobs", "why", &job]);
    let why = output(why).await;
    assert_eq!(why.status.code(), Some(0), "{}", stderr(&why));
    assert!(stdout(&why).contains(&cluster.workers[0].id), "{}", stdout(&why));
}

#[tokio::test]
async fn exit_codes_tell_failures_apart() {
    let cluster = Cluster::start(Engine::Fake, 1).await;
    let rows: [(&[&str], i32); 4] = [
        (&["jobs", "submit", "--model", "no-such", "--prompt", "x"], 3),
        (&["jobs", "submit", "--no-such-flag"], 2),
        (&["jobs", "show", "job_01901234-5678-7abc-8def-0123456789ab"], 3),
        (&["--endpoint", "http://127.0.0.1:9", "jobs", "list"], 5),
    ];
    for (arguments, code) in rows {
        let mut command = cluster.rbees();
        command.args(arguments);
        let result = output(command).await;
        assert_eq!(result.status.code(), Some(code), "{arguments:?}: {}", stderr(&result));
        assert!(!stderr(&result).is_empty(), "{arguments:?} says why");
    }
}

#[tokio::test]
async fn a_pool_spawns_lists_and_stops_workers_and_repairs_its_records() {
    let home = tempfile::tempdir().expect("a folder");
    let pool = |arguments: &[&str]| {
        let mut command = Command::new(binary("rbees-pool"));
        command.arg("--home").arg(home.path()).args(arguments);
        output(command)
    };
    let mut ids = Vec::new();
    for _ in 0..2 {
        let spawned =
            pool(&["worker", "spawn", "--backend", "fake", "--model", "fake:fake-bee?seed=1", "--json"])
                .await;
        assert_eq!(spawned.status.code(), Some(0), "{}", stderr(&spawned));
        let record: Value = serde_json::from_str(&stdout(&spawned)).expect("JSON");
        ids.push(record["worker_id"].as_str().expect("an id").to_owned());
    }
    let listed: Value =
        serde_json::from_str(&stdout(&pool(&["worker", "list", "--json"]).await)).expect("JSON");
    let workers = listed["workers"].as_array().expect("workers").clone();
    assert_eq!(workers.len(), 2);
    let victim = workers.iter().find(|worker| worker["worker_id"] == ids[0].as_str()).expect("listed");
    let pid = victim["process"]["pid"].as_i64().expect("a number") as i32;
    let pid = rustix::process::Pid::from_raw(pid).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it can be killed");

    e2e::until("the record shows it", || async {
        let listed: Value =
            serde_json::from_str(&stdout(&pool(&["worker", "list", "--json"]).await)).expect("JSON");
        let workers = listed["workers"].as_array().expect("workers").clone();
        workers
            .iter()
            .any(|worker| worker["worker_id"] == ids[0].as_str() && worker["state"] == "gone")
            .then_some(())
    })
    .await;
    assert_eq!(pool(&["worker", "cleanup"]).await.status.code(), Some(0));
    assert_eq!(pool(&["worker", "stop-all"]).await.status.code(), Some(0));
    let listed: Value =
        serde_json::from_str(&stdout(&pool(&["worker", "list", "--json"]).await)).expect("JSON");
    assert_eq!(listed["workers"].as_array().map(Vec::len), Some(0), "{listed}");
}

#[tokio::test]
async fn one_command_gives_an_answer_and_leaves_no_process() {
    let home = tempfile::tempdir().expect("a folder");
    let mut register = Command::new(binary("rbees-pool"));
    register.arg("--home").arg(home.path()).args([
        "models",
        "register",
        "--id",
        "smollm2-135m",
        "--name",
        "SmolLM2 135M",
    ]);
    register.arg("--repo").arg(format!("file:{}", real_model().display())).args(["--architecture", "llama"]);
    let registered = output(register).await;
    assert_eq!(registered.status.code(), Some(0), "{}", stderr(&registered));

    let mut up = Command::new(binary("rbees"));
    up.arg("--home").arg(home.path()).args([
        "up",
        "--once",
        "--bind",
        "127.0.0.1:0",
        "--model",
        "smollm2-135m",
    ]);
    up.env("XDG_CONFIG_HOME", home.path().join("config"));
    let result = output(up).await;
    let said = format!("{}{}", stdout(&result), stderr(&result));
    assert_eq!(result.status.code(), Some(0), "{said}");
    for words in ["tokens/s", "first token", "http://127.0.0.1:", "curl", "openai"] {
        assert!(said.to_lowercase().contains(words), "`{words}` is missing in: {said}");
    }
    assert_eq!(processes_with(&home.path().display().to_string()), Vec::<String>::new(), "a process is left");
}

/// Command lines of live processes that mention `text`.
fn processes_with(text: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("/proc");
    entries
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(text))
        .collect()
}
