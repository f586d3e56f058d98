//! Workers that are registered by a name, and a name server that is ill.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::{answer, until};
use crate::process::{PROGRAM, Process, folders};
use crate::worker::Worker;

/// How long a test waits for a question that must come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the name server listens; a loopback address of its own.
const SERVER: &str = "127.0.77.53:53";

/// A name server that takes questions and never answers.
fn silent_server() -> Option<UdpSocket> {
    let socket = UdpSocket::bind(SERVER);
    if socket.is_err() {
        eprintln!("SKIPPED: nobody may listen at {SERVER} here; run as root");
    }
    socket.ok()
}

/// The program, for which `servers` are the lines of resolv.conf.
fn with_resolver(folder: &std::path::Path, servers: &str) -> Command {
    let file = folder.join("resolv.conf");
    std::fs::write(&file, servers).expect("written");
    let mut command = Command::new("unshare");
    let script = format!("mount --bind '{}' /etc/resolv.conf; exec \"$0\" \"$@\"", file.display());
    command.args(["-m", "sh", "-ec", &script, PROGRAM]);
    command
}

fn named(uri: &str) -> Value {
    json!({
        "facts": {
            "worker_id": "worker-fake-00000000dead", "instance": "0191b2c3-0000-7000-8000-000000000000",
            "uri": uri, "model": crate::worker::MODEL, "backend": "fake", "devices": [], "slots": 1,
            "context_length": 1_000, "vram_bytes": 0, "ram_bytes": 0, "capabilities": ["chat", "completion"],
            "engine": "e", "version": "0", "protocol": api_types::PROTOCOL,
        },
        "status": "ready", "runs": [],
    })
}

async fn submit_to(process: &Process, worker: &str) -> String {
    let task = json!({
        "prompt": "x", "on_disconnect": "continue", "retry": "never", "placement": { "worker": worker },
    });
    let (status, body) = answer(process.http.post(format!("{}/v2/tasks", process.url)).json(&task)).await;
    assert_eq!(status, 202, "{body}");
    body["job_id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn b40_a_name_that_nobody_looks_up_holds_up_its_own_jobs_and_no_others() {
    let Some(server) = silent_server() else { return };
    let (folder, home, ready) = folders();
    let lines =
        format!("nameserver {}\noptions timeout:30 attempts:5\n", server.local_addr().expect("one").ip());
    let process = Process::start(&mut with_resolver(folder.path(), &lines), &home, &ready).await;
    let _worker = Worker::start(&process.url, &["a"]).await;
    let call =
        process.http.post(format!("{}/v2/workers/ready", process.url)).json(&named("http://slow.test:8001"));
    let (status, body) = answer(call).await;
    assert_eq!(status, 200, "{body}");
    let view = async |job: &str| answer(process.http.get(format!("{}/v2/tasks/{job}", process.url))).await.1;

    let held_up = submit_to(&process, "worker-fake-00000000dead").await;
    // One look-up asks for both kinds of addresses, and again only after half a minute; another is that for
    // a sign of life. Questions beyond those four are of another try, so the first was given up.
    let asked = tokio::task::spawn_blocking(move || {
        server.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut question = [0; 512];
        (0..6).try_for_each(|_| server.recv(&mut question).map(drop)).map(|()| server)
    });
    for _ in 0..8 {
        let job = submit_to(&process, "worker-fake-0123456789ab").await;
        until("another job completes", || async {
            (view(&job).await["status"] == "completed").then_some(())
        })
        .await;
    }
    let _server = asked.await.expect("joined").expect("the name is looked up, and again");
    let ended = until("the job of the unknown name ends", || async {
        let view = view(&held_up).await;
        (view["status"] == "failed").then_some(view)
    })
    .await;
    assert_eq!(ended["error"]["code"], "WORKER_LOST", "{ended}");
    assert_eq!(process.status("/readyz").await, 200);
}
