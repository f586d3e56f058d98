//! An orchestrator and its workers, each a real process.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use api_types::JobId;
use api_types::task::{TaskStatus, TaskView, WhyView};
use api_types::worker::{WorkerHealth, WorkerReport};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binaries::{binary, real_model};
use crate::daemon::Daemon;
use crate::stream::Stream;
use crate::wait::until;

/// What generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The seeded stand-in, paced so that there is time to interfere.
    Fake,
    /// The small real model on the CPU.
    Real,
}

impl Engine {
    /// The name under which jobs ask for it.
    pub const fn model(self) -> &'static str {
        match self {
            Self::Fake => "fake-bee",
            Self::Real => "smollm2-135m",
        }
    }

    /// What `--model` gets.
    pub fn model_argument(self) -> String {
        match self {
            Self::Fake => "fake:fake-bee?seed=7&pace_ms=15&context=2048".to_owned(),
            Self::Real => real_model().display().to_string(),
        }
    }

    const fn backend(self) -> &'static str {
        match self {
            Self::Fake => "fake",
            Self::Real => "cpu",
        }
    }
}

/// How a worker differs from the default.
#[derive(Debug, Clone, Default)]
pub struct WorkerOptions {
    /// Jobs at once; 4 when absent.
    pub slots: Option<u32>,
    /// Tokens of context; 2,048 when absent.
    pub context: Option<u32>,
    /// Another `--model` argument than the engine's own.
    pub model: Option<String>,
    /// Where it believes the orchestrator to be, when that is not where it is.
    pub orchestrator: Option<String>,
}

/// One worker process.
pub struct Worker {
    /// Its process.
    pub daemon: Daemon,
    /// Its id.
    pub id: String,
    /// Where it listens.
    pub uri: String,
}

/// An orchestrator and its workers in one folder.
pub struct Cluster {
    /// What its workers run.
    pub engine: Engine,
    /// The orchestrator.
    pub orchestrator: Daemon,
    /// The workers, in the order they were added.
    pub workers: Vec<Worker>,
    /// For calls to any of them.
    pub http: reqwest::Client,
    address: String,
    folder: TempDir,
}

impl Cluster {
    /// An orchestrator without workers.
    pub async fn without_workers(engine: Engine) -> Self {
        Self::prepared(engine, |_| {}).await
    }

    /// An orchestrator without workers, in a folder that `prepare` has seen first. What lies in its
    /// `config/rbees` is configuration.
    pub async fn prepared(engine: Engine, prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        prepare(folder.path());
        let (orchestrator, address) = start_orchestrator(folder.path(), "127.0.0.1:0", 0).await;
        let http = clients::http::http_client().expect("a client");
        Self { engine, orchestrator, workers: Vec::new(), http, address, folder }
    }

    /// An orchestrator with `count` ready workers.
    pub async fn start(engine: Engine, count: usize) -> Self {
        let mut cluster = Self::without_workers(engine).await;
        for _ in 0..count {
            cluster.add_worker(WorkerOptions::default()).await;
        }
        cluster
    }

    /// The folder everything lies in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The orchestrator's host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The orchestrator's URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Starts one more worker and waits until the orchestrator takes it as ready.
    pub async fn add_worker(&mut self, options: WorkerOptions) -> usize {
        let id = format!("worker-{}-{:012x}", self.engine.backend(), self.workers.len() + 1);
        let report = self.folder().join(format!("{id}.json"));
        let slots = options.slots.unwrap_or(4).to_string();
        let context = options.context.unwrap_or(2_048).to_string();
        let model = options.model.unwrap_or_else(|| self.engine.model_argument());
        let orchestrator = options.orchestrator.unwrap_or_else(|| self.url(""));
        let mut command = Command::new(binary("rbees-workerd"));
        command
            .args(["--worker-id", &id, "--model", &model, "--model-name", self.engine.model()])
            .args([
                "--backend",
                self.engine.backend(),
                "--port",
                "0",
                "--slots",
                &slots,
                "--context",
                &context,
            ])
            .args(["--orchestrator", &orchestrator])
            .arg("--report")
            .arg(&report);
        let daemon = Daemon::start(&id, self.folder(), &mut command);
        let uri = until("the worker reports its address", || async {
            let text = std::fs::read(&report).ok()?;
            let report: WorkerReport = serde_json::from_slice(&text).ok()?;
            Some(report.health.facts.uri)
        })
        .await;
        self.workers.push(Worker { daemon, id: id.clone(), uri });
        self.wait_for_worker_state(&id, "ready").await;
        self.workers.len() - 1
    }

    /// Waits until the registry shows the worker in a state.
    pub async fn wait_for_worker_state(&self, id: &str, state: &str) {
        until(&format!("{id} is {state}"), || async {
            let view = self.get(&format!("/v2/workers/{id}")).await.ok()?;
            (view["state"] == state).then_some(())
        })
        .await;
    }

    /// Ends the orchestrator as a power cut would.
    pub fn kill_orchestrator(&mut self) {
        self.orchestrator.kill();
    }

    /// Starts the orchestrator again, in the same folder, at the same address.
    pub async fn restart_orchestrator(&mut self) {
        let already = self.orchestrator.log().matches("listening on http://").count();
        let (daemon, address) = start_orchestrator(self.folder.path(), &self.address, already).await;
        self.orchestrator = daemon;
        assert_eq!(address, self.address);
    }

    /// A JSON answer, or the status and body of a refusal.
    pub async fn get(&self, path: &str) -> Result<Value, (u16, Value)> {
        self.send(self.http.get(self.url(path))).await
    }

    /// Sends a body as JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, (u16, Value)> {
        self.send(self.http.post(self.url(path)).json(body)).await
    }

    /// Sends a request; a connection that cannot be made counts as status 0.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value, (u16, Value)> {
        let response = request.send().await.map_err(|error| (0, json!(error.to_string())))?;
        let status = response.status();
        let text = response.text().await.map_err(|error| (0, json!(error.to_string())))?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        if status.is_success() { Ok(body) } else { Err((status.as_u16(), body)) }
    }

    /// Submits a task for the cluster's model and returns its id.
    pub async fn submit(&self, mut task: Value) -> JobId {
        task["model"] = json!(self.engine.model());
        let accepted = self.post("/v2/tasks", &task).await.expect("the task is accepted");
        accepted["job_id"].as_str().expect("an id").parse().expect("a job id")
    }

    /// Opens a job's events, after `last_event_id` where one is given.
    pub async fn events(&self, job: JobId, last_event_id: Option<u64>) -> Stream {
        let mut request = self.http.get(self.url(&format!("/v2/tasks/{job}/events")));
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id.to_string());
        }
        let response = request.send().await.expect("the orchestrator answers");
        assert_eq!(response.status().as_u16(), 200, "the events open");
        Stream::new(response)
    }

    /// Submits a task and reads its whole stream.
    pub async fn run(&self, task: Value) -> (JobId, crate::Received) {
        let job = self.submit(task).await;
        let received = self.events(job, None).await.read_to_end().await;
        received.assert_whole();
        (job, received)
    }

    /// A job as the orchestrator shows it.
    pub async fn task(&self, job: JobId) -> TaskView {
        let view = self.get(&format!("/v2/tasks/{job}")).await.expect("the job is known");
        serde_json::from_value(view).expect("a task view")
    }

    /// Why a job went where it went.
    pub async fn why(&self, job: JobId) -> WhyView {
        let view = self.get(&format!("/v2/tasks/{job}/why")).await.expect("the job is known");
        serde_json::from_value(view).expect("a why view")
    }

    /// Waits until a job has a status.
    pub async fn wait_for_status(&self, job: JobId, status: TaskStatus) -> TaskView {
        until(&format!("{job} is {}", status.as_str()), || async {
            let view = self.task(job).await;
            (view.status == status).then_some(view)
        })
        .await
    }

    /// A worker's own health.
    pub async fn worker_health(&self, worker: usize) -> WorkerHealth {
        let uri = &self.workers[worker].uri;
        let response = self.http.get(format!("{uri}/health")).send().await.expect("the worker answers");
        response.json().await.expect("a health body")
    }

    /// The value of a worker's metric, summed over its labels; 0 when it has not been set.
    pub async fn worker_metric(&self, worker: usize, name: &str) -> f64 {
        let uri = &self.workers[worker].uri;
        let response = self.http.get(format!("{uri}/metrics")).send().await.expect("the worker answers");
        metric(&response.text().await.expect("text"), name)
    }

    /// A command of the operator's CLI, aimed at this cluster.
    pub fn rbees(&self) -> Command {
        let mut command = Command::new(binary("rbees"));
        command.env("RBEES_ENDPOINT", self.url("")).env("RBEES_HOME", self.folder());
        command.env("XDG_CONFIG_HOME", self.folder().join("config"));
        command
    }
}

fn metric(text: &str, name: &str) -> f64 {
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Starts an orchestrator whose log already holds `already` start lines; returns its address.
async fn start_orchestrator(folder: &Path, bind: &str, already: usize) -> (Daemon, String) {
    let mut command = Command::new(binary("rbees-orcd"));
    command.args(["--bind", bind, "--home"]).arg(folder);
    command.env("XDG_CONFIG_HOME", folder.join("config"));
    let daemon = Daemon::start("orchestrator", folder, &mut command);
    let address = until("the orchestrator listens", || async {
        let log = daemon.log();
        let mut lines = log.lines().filter_map(|line| line.split_once("listening on http://"));
        let (_, address) = lines.nth(already)?;
        Some(address.trim_end_matches('/').trim().to_owned())
    })
    .await;
    tokio::time::timeout(Duration::from_secs(60), async {
        let url = format!("http://{address}/healthz");
        let http = clients::http::http_client().expect("a client");
        while !http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the orchestrator answers");
    (daemon, address)
}
