//! Workers that come because jobs wait, and go because they are idle or in the way.

use std::path::Path;
use std::process::Command;

use api_types::JobId;
use api_types::pool::PoolStatus;
use api_types::task::TaskStatus;
use e2e::binaries::binary;
use e2e::wait::until;
use e2e::{Cluster, Engine, Stream};
use serde_json::{Value, json};

/// Memory of the pool: room for one of the models below, not for two.
const BUDGET: &str = "ram_budget_bytes = 1_000_000_000\n";

fn register(folder: &Path, id: &str, settings: &str) {
    let mut register = Command::new(binary("rbees-pool"));
    register.arg("--home").arg(folder).args(["models", "register", "--id", id, "--name", id]);
    register.args(["--repo", &format!("fake:{id}?{settings}"), "--architecture", "fake"]);
    assert!(register.status().expect("the pool starts").success(), "{id} is registered");
}

/// Puts stand-ins with a stated size into the pool's catalog, and bounds its memory.
fn prepare(folder: &Path, models: &[(&str, &str)], config: &str) {
    for (id, settings) in models {
        register(folder, id, settings);
    }
    std::fs::write(folder.join("pool.toml"), BUDGET).expect("written");
    let place = folder.join("config/rbees");
    std::fs::create_dir_all(&place).expect("a folder");
    std::fs::write(place.join("orchestrator.toml"), config).expect("written");
}

async fn cluster(models: &[(&str, &str)], config: &str) -> Cluster {
    let cluster = Cluster::prepared(Engine::Fake, |folder| prepare(folder, models, config)).await;
    until("the models of the pool are known", || async {
        let known = cluster.get("/v2/models").await.ok()?;
        let known = known["models"].as_array()?;
        models.iter().all(|(id, _)| known.iter().any(|model| model["id"] == *id)).then_some(())
    })
    .await;
    cluster
}

async fn submit(cluster: &Cluster, model: &str) -> JobId {
    let task = json!({ "model": model, "prompt": "hello", "max_tokens": 4 });
    let accepted = cluster.post("/v2/tasks", &task).await.expect("the task is accepted");
    accepted["job_id"].as_str().expect("an id").parse().expect("a job id")
}

async fn workers(cluster: &Cluster) -> Vec<Value> {
    let list = cluster.get("/v2/workers").await.expect("the registry");
    list["workers"].as_array().expect("a list").clone()
}

/// What the pool itself says.
async fn pool(cluster: &Cluster) -> PoolStatus {
    let mut command = Command::new(binary("rbees-pool"));
    command.arg("--home").arg(cluster.folder()).args(["status", "--json"]);
    let output =
        tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("joined");
    serde_json::from_slice(&output.stdout).expect("a status")
}

/// Leaves no process behind.
async fn clear(cluster: Cluster) {
    let mut command = Command::new(binary("rbees-pool"));
    command.arg("--home").arg(cluster.folder()).args(["worker", "stop-all", "--grace", "1"]);
    let _ = tokio::task::spawn_blocking(move || command.output()).await;
}

#[tokio::test]
async fn a_model_that_has_just_come_to_a_pool_takes_jobs_at_once() {
    // Nothing but a job makes the orchestrator look.
    let cluster = cluster(&[("bee", "memory_mb=400")], "pool_interval_ms = 3600000\n").await;
    let refused = cluster.post("/v2/tasks", &json!({ "model": "late", "prompt": "hello" })).await;
    let (status, error) = refused.expect_err("nobody has it");
    assert_eq!((status, &error["error"]["code"]), (404, &json!("MODEL_NOT_FOUND")));
    register(cluster.folder(), "late", "memory_mb=400");
    let job = submit(&cluster, "late").await;
    cluster.wait_for_status(job, TaskStatus::Completed).await;
    clear(cluster).await;
}

#[tokio::test]
async fn a_job_for_a_model_that_nobody_runs_just_works_and_its_worker_goes_when_idle() {
    let cluster = cluster(&[("bee", "memory_mb=400")], "keep_alive_ms = 1500\n").await;
    assert!(workers(&cluster).await.is_empty());
    let news = cluster.http.get(cluster.url("/v2/events")).send().await.expect("the news open");
    let job = submit(&cluster, "bee").await;
    cluster.wait_for_status(job, TaskStatus::Completed).await;
    let there = workers(&cluster).await;
    assert_eq!(there.len(), 1);
    assert_eq!((&there[0]["model"], &there[0]["pinned"]), (&json!("bee"), &json!(false)));
    assert!(there[0]["unload_in_ms"].is_u64(), "{}", there[0]);
    until("the idle worker is gone", || async { workers(&cluster).await.is_empty().then_some(()) }).await;
    until("its process too", || async { pool(&cluster).await.workers.is_empty().then_some(()) }).await;
    assert_eq!(told(news).await, ["spawn started", "spawn ready", "unload idle"]);
    let again = submit(&cluster, "bee").await;
    cluster.wait_for_status(again, TaskStatus::Completed).await;
    clear(cluster).await;
}

/// What operators heard of workers that came and went, up to the first that went.
async fn told(news: reqwest::Response) -> Vec<String> {
    let (mut news, mut told) = (Stream::new(news), Vec::new());
    while let Some(frame) = news.next_frame().await {
        let Ok(event) = serde_json::from_slice::<Value>(&frame.data) else { continue };
        let how = event["phase"].as_str().or(event["cause"].as_str());
        told.extend(how.map(|how| format!("{} {how}", frame.event)));
        if frame.event == "unload" {
            break;
        }
    }
    told
}

#[tokio::test]
async fn two_models_that_do_not_fit_together_take_turns() {
    let models = [("ant", "memory_mb=500"), ("bee", "memory_mb=500")];
    let cluster = cluster(&models, "").await;
    for model in ["ant", "bee", "ant"] {
        let job = submit(&cluster, model).await;
        cluster.wait_for_status(job, TaskStatus::Completed).await;
        let held: Vec<String> = pool(&cluster).await.workers.into_iter().map(|w| w.model).collect();
        assert_eq!(held, [model], "the other one has left its memory");
    }
    clear(cluster).await;
}

#[tokio::test]
async fn a_pinned_model_stays_and_the_reason_is_told() {
    let models = [("ant", "memory_mb=500"), ("bee", "memory_mb=500")];
    let cluster = cluster(&models, "pinned_models = [\"ant\"]\n").await;
    let job = submit(&cluster, "ant").await;
    cluster.wait_for_status(job, TaskStatus::Completed).await;
    let waiting = submit(&cluster, "bee").await;
    until("the reason is told", || async {
        cluster.why(waiting).await.summary.contains("held by pinned workers").then_some(())
    })
    .await;
    assert_eq!(workers(&cluster).await[0]["model"], "ant");
    clear(cluster).await;
}

#[tokio::test]
async fn a_spawn_outlives_the_orchestrator_and_is_not_doubled() {
    let mut cluster = cluster(&[("bee", "memory_mb=400&load_ms=2000")], "").await;
    let job = submit(&cluster, "bee").await;
    until("the worker is being started", || async {
        (pool(&cluster).await.workers.len() == 1).then_some(())
    })
    .await;
    cluster.kill_orchestrator();
    cluster.restart_orchestrator().await;
    cluster.wait_for_status(job, TaskStatus::Completed).await;
    let living = pool(&cluster).await.workers;
    assert_eq!(living.len(), 1, "{living:?}");
    clear(cluster).await;
}

#[tokio::test]
async fn what_never_fits_and_what_never_starts_is_told_with_numbers_and_reason() {
    let models = [("whale", "memory_mb=4000"), ("dud", "memory_mb=100&refuse=broken")];
    let cluster = cluster(&models, "").await;
    let job = submit(&cluster, "whale").await;
    let error = cluster.wait_for_status(job, TaskStatus::Failed).await.error.expect("an error");
    assert_eq!(error.code.as_str(), "INSUFFICIENT_MEMORY");
    assert_eq!(error.details.expect("details")["pools"][0]["total_bytes"], 1_000_000_000_u64);
    let job = submit(&cluster, "dud").await;
    let error = cluster.wait_for_status(job, TaskStatus::Failed).await.error.expect("an error");
    assert_eq!(error.code.as_str(), "NO_CAPACITY");
    assert!(error.message.contains("broken"), "{}", error.message);
    assert!(pool(&cluster).await.workers.is_empty(), "nothing is left of it");
    clear(cluster).await;
}
