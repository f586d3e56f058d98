//! An orchestrator that asks for a token, and workers that are started for it.

use std::path::Path;
use std::process::Command;

use e2e::binaries::binary;
use e2e::{Daemon, until};
use serde_json::{Value, json};

const TOKEN: &str = "rbk_0123456789abcdef";

/// Ends the workers of a pool, whatever becomes of the test.
struct StopWorkers<'a>(&'a Path);

impl Drop for StopWorkers<'_> {
    fn drop(&mut self) {
        let mut command = Command::new(binary("rbees-pool"));
        let _ = command.arg("--home").arg(self.0).args(["worker", "stop-all"]).output();
    }
}

#[tokio::test]
async fn a_worker_spawned_for_an_orchestrator_with_a_token_registers_and_leaves() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, TOKEN).expect("written");
    let mut command = Command::new(binary("rbees-orcd"));
    command.args(["--bind", "127.0.0.1:0", "--home"]).arg(folder.path());
    command.env("XDG_CONFIG_HOME", folder.path().join("config")).env("RBEES_TOKEN_FILE", &file);
    let daemon = Daemon::start("orchestrator", folder.path(), &mut command);
    let _stop = StopWorkers(folder.path());
    let url = until("the orchestrator listens", || async {
        daemon.log().lines().find_map(|line| line.strip_prefix("listening on ").map(str::to_owned))
    })
    .await;
    let http = clients::http::http_client().expect("a client");
    let get = |path: String| {
        let request = http.get(format!("{url}{path}")).bearer_auth(TOKEN);
        async move {
            let answer = request.send().await.expect("an answer");
            (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"))
        }
    };
    until("the pool of this machine answers", || async {
        let (_, pools) = get("/v2/pools".to_owned()).await;
        (pools["pools"][0]["reachable"] == true).then_some(())
    })
    .await;
    let body = json!({ "model": "fake:bee?context=256" }).to_string();
    let spawn = http.post(format!("{url}/v2/pools/local/workers/spawn")).bearer_auth(TOKEN).body(body);
    let spawned: Value = spawn.send().await.expect("an answer").json().await.expect("JSON");
    let worker = spawned["worker_id"].as_str().unwrap_or_else(|| panic!("no worker: {spawned}")).to_owned();
    until("the worker has registered", || async {
        (get(format!("/v2/workers/{worker}")).await.1["state"] == "ready").then_some(())
    })
    .await;
    let record = folder.path().join(format!("runtime/workers/{worker}.json"));
    let record: Value = serde_json::from_slice(&std::fs::read(record).expect("a record")).expect("JSON");
    assert!(!record.to_string().contains(TOKEN), "no record holds the token");
    let arguments = std::fs::read(format!("/proc/{}/cmdline", record["process"]["pid"])).expect("it runs");
    assert!(!String::from_utf8_lossy(&arguments).contains(TOKEN), "no argument holds the token");
    assert!(!daemon.log().contains(TOKEN), "no log holds the token");

    let drain = http.delete(format!("{url}/v2/workers/{worker}")).bearer_auth(TOKEN);
    assert_eq!(drain.send().await.expect("an answer").status().as_u16(), 202);
    until("the worker has left the registry", || async {
        (get(format!("/v2/workers/{worker}")).await.0 == 404).then_some(())
    })
    .await;
}
