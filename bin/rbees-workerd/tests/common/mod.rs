//! A real worker process in a temporary folder, and a client for it.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use api_types::event::{RunEnd, TaskEvent};
use api_types::sse::{Frame, FrameDecoder};
use api_types::worker::{ExecuteRequest, WorkerHealth, WorkerReport, WorkerStatus};
use api_types::{Attempt, ErrorDetail};
use clients::{EventStream, WorkerClient, WorkerHttp};
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything; far beyond what a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again until there is an answer.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "gave up waiting until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A worker process.
pub struct Worker {
    pub child: Child,
    pub folder: TempDir,
    pub uri: String,
    pub client: WorkerClient,
    pub http: reqwest::Client,
}

impl Worker {
    /// Starts one and waits until it takes runs.
    pub async fn start(model: &str, flags: &[&str]) -> Self {
        let worker = Self::spawn(model, flags, None).await;
        worker.wait_for(WorkerStatus::Ready).await;
        worker
    }

    /// Starts one and waits until it listens.
    pub async fn spawn(model: &str, flags: &[&str], secret: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let report = folder.path().join("report.json");
        let mut child = command(model, flags, secret)
            .args(["--port", "0", "--report"])
            .arg(&report)
            .spawn()
            .expect("the binary starts");
        let read = || {
            std::fs::read(&report).ok().and_then(|bytes| serde_json::from_slice::<WorkerReport>(&bytes).ok())
        };
        let report = until("the worker reports", || async { read() }).await;
        assert!(report.pid == child.id() || child.try_wait().is_ok());
        let uri = report.health.facts.uri;
        let client = WorkerHttp::default().at(&uri, secret);
        Self { child, folder, uri, client, http: clients::http_client().expect("a client") }
    }

    pub async fn wait_for(&self, status: WorkerStatus) -> WorkerHealth {
        until("the worker has the status", || async {
            self.client.health().await.ok().filter(|health| health.status == status)
        })
        .await
    }

    /// The report file as it stands.
    pub fn report(&self) -> WorkerReport {
        let bytes = std::fs::read(self.folder.path().join("report.json")).expect("a report");
        serde_json::from_slice(&bytes).expect("always whole")
    }

    /// Runs to the end and gives the numbered events.
    pub async fn run(&self, request: &ExecuteRequest) -> Vec<(u64, TaskEvent)> {
        let mut stream = Stream::of(self.client.execute(request).await.expect("accepted"));
        stream.rest().await
    }

    /// The refusal of a run.
    pub async fn refusal(&self, request: &ExecuteRequest) -> ErrorDetail {
        let error = self.client.execute(request).await.expect_err("refused");
        error.answered().expect("an answer of ours").clone()
    }

    /// The text of the completion and its figures.
    pub async fn complete(&self, request: &ExecuteRequest) -> (String, RunEnd) {
        finished(&self.run(request).await)
    }

    /// Posts a body as it is; gives the status and the JSON.
    pub async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let answer = self
            .http
            .post(format!("{}{path}", self.uri))
            .body(body.to_owned())
            .send()
            .await
            .expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or(Value::Null))
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let answer = self.http.get(format!("{}/metrics", self.uri)).send().await.expect("an answer");
        let text = answer.text().await.expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name}")).parse().expect("a number")
    }

    pub async fn busy(&self) -> u32 {
        self.client.health().await.expect("healthy").slots_busy
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let sent = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(sent.is_ok_and(|status| status.success()));
    }

    pub async fn exit(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "the worker does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary with its fixed flags.
pub fn command(model: &str, flags: &[&str], secret: Option<&str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rbees-workerd"));
    command
        .args(["--model", model])
        .args(flags)
        .env_remove("RBEES_WORKER_SECRET")
        .env_remove("RBEES_ORCHESTRATOR_TOKEN")
        .stderr(Stdio::null());
    if let Some(secret) = secret {
        command.env("RBEES_WORKER_SECRET", secret);
    }
    command
}

/// An event stream being read.
pub struct Stream {
    body: EventStream,
    decoder: FrameDecoder,
}

impl Stream {
    pub fn of(body: EventStream) -> Self {
        Self { body, decoder: FrameDecoder::default() }
    }

    /// The next frame, numbered or not.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("short frames") {
                return Some(frame);
            }
            let bytes = tokio::time::timeout(PATIENCE, self.body.next()).await.expect("something comes")?;
            self.decoder.push(&bytes.expect("bytes"));
        }
    }

    /// The next numbered event.
    pub async fn event(&mut self) -> Option<(u64, TaskEvent)> {
        loop {
            let frame = self.frame().await?;
            if let Some(id) = frame.id {
                return Some((id, frame.task_event().expect("ours")));
            }
        }
    }

    /// Reads until the first token.
    pub async fn first_token(&mut self) {
        while let Some((_, event)) = self.event().await {
            if matches!(event, TaskEvent::Token { .. }) {
                return;
            }
        }
        panic!("the stream ended before a token");
    }

    /// The numbered events up to the end of the stream.
    pub async fn rest(&mut self) -> Vec<(u64, TaskEvent)> {
        let mut events = Vec::new();
        while let Some(event) = self.event().await {
            events.push(event);
        }
        events
    }
}

/// Text and figures of a run that ended well.
pub fn finished(events: &[(u64, TaskEvent)]) -> (String, RunEnd) {
    let mut text = String::new();
    let mut count = 0;
    for (_, event) in events {
        match event {
            TaskEvent::Token { t, i, .. } => {
                assert_eq!(*i, count, "no index is skipped or repeated");
                count += 1;
                text.push_str(t);
            }
            TaskEvent::End(end) => {
                assert_eq!(end.tokens_out, count);
                return (text, end.clone());
            }
            TaskEvent::Started { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    panic!("the stream has no end: {events:?}");
}

/// A run of attempt 1 with a fixed seed.
pub fn request(job_id: &str, prompt: &str, max_tokens: u32) -> ExecuteRequest {
    ExecuteRequest {
        job_id: job_id.to_owned(),
        attempt: Some(Attempt::FIRST),
        prompt: Some(prompt.to_owned()),
        max_tokens: Some(max_tokens),
        seed: Some(7),
        ..ExecuteRequest::default()
    }
}
