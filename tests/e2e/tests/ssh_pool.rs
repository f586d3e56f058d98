//! A pool on "another machine": the real commands over a real SSH server, up to a real answer.

#[path = "../../../crates/clients/tests/sshd/mod.rs"]
#[allow(dead_code, reason = "each user of the server needs a part of it")]
mod sshd;

use std::process::{Command, Output};

use api_types::TaskEvent;
use e2e::binaries::{binary, real_model};
use e2e::{Cluster, Engine};
use serde_json::{Value, json};
use sshd::Sshd;

/// Runs `rbees pool … --host testhost` without blocking the test's runtime.
async fn pool(cluster: &Cluster, sshd: &Sshd, arguments: &[&str]) -> Output {
    let mut command = cluster.rbees();
    command.arg("pool").args(arguments).args(["--host", "testhost"]);
    command.env("RBEES_SSH_CONFIG", sshd.client_config());
    run(command).await
}

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().expect("the command starts")).await.expect("joined")
}

fn json_of(output: &Output) -> Value {
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{words}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {words}"))
}

/// Puts the real programs where a login finds them.
fn install(sshd: &Sshd) {
    let folder = sshd.home().join(".local/bin");
    std::fs::create_dir_all(&folder).expect("a folder");
    for name in ["rbees-pool", "rbees-workerd"] {
        std::os::unix::fs::symlink(binary(name), folder.join(name)).expect("a link");
    }
}

#[tokio::test]
async fn a_worker_spawned_over_ssh_answers_and_stops() {
    let sshd = Sshd::start();
    install(&sshd);
    let cluster = Cluster::without_workers(Engine::Real).await;

    let status = json_of(&pool(&cluster, &sshd, &["status", "--json"]).await);
    assert_eq!(status["protocol"], api_types::PROTOCOL);
    let reference = format!("file:{}", real_model().display());
    let registered = pool(
        &cluster,
        &sshd,
        &[
            "models",
            "register",
            "--id",
            "smollm2-135m",
            "--name",
            "Small; $(touch pwned) 'one'",
            "--repo",
            &reference,
            "--architecture",
            "llama",
            "--json",
        ],
    )
    .await;
    assert_eq!(json_of(&registered)["name"], "Small; $(touch pwned) 'one'", "arguments arrive as they are");
    assert!(!sshd.home().join("pwned").exists());

    let downloaded = pool(&cluster, &sshd, &["models", "download", "smollm2-135m", "--json"]).await;
    assert_eq!(json_of(&downloaded)["downloaded"], true);

    let orchestrator = cluster.url("");
    let spawn = [
        "worker",
        "spawn",
        "--model",
        "smollm2-135m",
        "--context",
        "1024",
        "--orchestrator",
        &orchestrator,
        "--json",
    ];
    let spawned = json_of(&pool(&cluster, &sshd, &spawn).await);
    let id = spawned["worker_id"].as_str().expect("an id").to_owned();
    cluster.wait_for_worker_state(&id, "ready").await;
    let (_, received) =
        cluster.run(json!({"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0})).await;
    assert!(received.text().contains("Paris"), "{}", received.text());
    assert!(matches!(received.last(), Some(TaskEvent::End(_))));

    let listed = json_of(&pool(&cluster, &sshd, &["worker", "list", "--json"]).await);
    assert_eq!(listed["workers"][0]["worker_id"], id.as_str());
    assert_eq!(
        json_of(&pool(&cluster, &sshd, &["worker", "stop", &id, "--json"]).await)["worker_id"],
        id.as_str()
    );
    let listed = json_of(&pool(&cluster, &sshd, &["worker", "list", "--json"]).await);
    assert_eq!(listed["workers"], json!([]));
    assert_eq!(
        pool(&cluster, &sshd, &["worker", "stop", "worker-none"]).await.status.code(),
        Some(3),
        "codes are kept"
    );
}
