//! What is measured: llama-server, our worker, and our worker behind our orchestrator.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;

use super::Programs;
use crate::load::{Connection, Target};
use crate::subjects::{Running, free_address};

const START_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(2);

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// llama.cpp's own.
    LlamaServer,
    /// Ours.
    Worker,
    /// Ours, behind our orchestrator.
    Orchestrated,
}

impl Kind {
    /// Its name in folders.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LlamaServer => "llama-server",
            Self::Worker => "rbees-workerd",
            Self::Orchestrated => "rbees",
        }
    }
}

/// How a server is started.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Streams at once.
    pub slots: usize,
    /// Tokens of context for each.
    pub context: usize,
    /// Threads that compute.
    pub threads: u32,
}

/// A server that answers.
pub struct Server {
    kind: Kind,
    address: SocketAddr,
    running: Running,
    _worker: Option<Running>,
}

impl Server {
    /// Starts it and waits until it can take a job.
    ///
    /// # Errors
    /// When it ends, or is not ready in two minutes; with what it said.
    pub async fn start(
        kind: Kind,
        programs: &Programs,
        model: &Path,
        setup: Setup,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let address = free_address()?;
        let (running, worker) = match kind {
            Kind::LlamaServer => (llama_server(programs, model, setup, folder, address)?, None),
            Kind::Worker => (worker(programs, model, setup, folder, address, None)?, None),
            Kind::Orchestrated => {
                let orchestrator = orchestrator(programs, folder, address)?;
                let worker = worker(programs, model, setup, folder, free_address()?, Some(address))?;
                (orchestrator, Some(worker))
            }
        };
        let server = Self { kind, address, running, _worker: worker };
        server.until_ready().await?;
        Ok(server)
    }

    async fn until_ready(&self) -> anyhow::Result<()> {
        let ready: &[u8] = match self.kind {
            Kind::LlamaServer => b"\"ok\"",
            Kind::Worker => b"\"ready\"",
            Kind::Orchestrated => b"\"state\":\"ready\"",
        };
        let started = Instant::now();
        while started.elapsed() < START_TIMEOUT {
            if let Ok(health) = self.health().await
                && health.windows(ready.len()).any(|window| window == ready)
            {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("{} did not become ready:\n{}", self.kind.name(), self.running.last_words())
    }

    async fn health(&self) -> anyhow::Result<Bytes> {
        use http_body_util::BodyExt;
        let mut connection = Connection::open(self.address).await?;
        let path = if self.kind == Kind::Orchestrated { "/v2/workers" } else { "/health" };
        Ok(connection.get(path).await?.into_body().collect().await?.to_bytes())
    }

    /// The process whose memory counts.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// What a token's event has in it.
    pub const fn mark(&self) -> &'static str {
        match self.kind {
            Kind::LlamaServer => "\"stop\":false",
            Kind::Worker | Kind::Orchestrated => "\"type\":\"token\"",
        }
    }

    /// Prompt tokens that a stream did not take from its cache, by the figures of its last event.
    pub fn recomputed(&self, seen: &super::client::Seen) -> Option<f64> {
        match self.kind {
            Kind::LlamaServer => seen.figure("prompt_n"),
            Kind::Worker | Kind::Orchestrated => {
                Some(seen.figure("tokens_in")? - seen.figure("tokens_cached").unwrap_or(0.0))
            }
        }
    }

    /// A greedy completion of `prompt`.
    pub fn completion(&self, prompt: &str, tokens: usize) -> Target {
        let (path, body) = match self.kind {
            Kind::LlamaServer => (
                "/completion",
                serde_json::json!({ "prompt": prompt, "n_predict": tokens, "stream": true, "temperature": 0 }),
            ),
            Kind::Worker => (
                "/execute",
                serde_json::json!({
                    "job_id": uuid::Uuid::new_v4(), "prompt": prompt, "max_tokens": tokens, "temperature": 0.0
                }),
            ),
            Kind::Orchestrated => (
                "/v2/tasks?stream=true",
                serde_json::json!({ "prompt": prompt, "max_tokens": tokens, "temperature": 0.0 }),
            ),
        };
        Target { address: self.address, path: path.into(), body: Bytes::from(body.to_string()) }
    }
}

fn llama_server(
    programs: &Programs,
    model: &Path,
    setup: Setup,
    folder: &Path,
    address: SocketAddr,
) -> anyhow::Result<Running> {
    let mut command = Command::new(&programs.llama_server);
    command.arg("--model").arg(model);
    command.args(["--host", &address.ip().to_string(), "--port", &address.port().to_string()]);
    command.args(["--parallel", &setup.slots.to_string()]);
    command.args(["--ctx-size", &(setup.context * setup.slots).to_string()]);
    command.args(["--threads", &setup.threads.to_string(), "--threads-batch", &setup.threads.to_string()]);
    Running::start_unbound(command, folder)
}

fn worker(
    programs: &Programs,
    model: &Path,
    setup: Setup,
    folder: &Path,
    address: SocketAddr,
    orchestrator: Option<SocketAddr>,
) -> anyhow::Result<Running> {
    let mut command = Command::new(&programs.rbees_workerd);
    command.arg("--model").arg(model).args(["--port", &address.port().to_string()]);
    command.args(["--slots", &setup.slots.to_string(), "--context", &setup.context.to_string()]);
    command.args(["--threads", &setup.threads.to_string()]);
    if let Some(orchestrator) = orchestrator {
        command.args(["--orchestrator", &format!("http://{orchestrator}")]);
    }
    clean(&mut command, folder);
    Running::start_unbound(command, folder)
}

fn orchestrator(programs: &Programs, folder: &Path, address: SocketAddr) -> anyhow::Result<Running> {
    let mut command = Command::new(programs.rbees_orcd.as_ref().context("--rbees-orcd is not given")?);
    command.arg("--bind").arg(address.to_string()).arg("--home").arg(folder.join("home"));
    clean(&mut command, folder);
    Running::start_unbound(command, folder)
}

/// What the user configured must not change a figure.
fn clean(command: &mut Command, folder: &Path) {
    command.env("XDG_CONFIG_HOME", folder);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RBEES_") {
            command.env_remove(name);
        }
    }
}
