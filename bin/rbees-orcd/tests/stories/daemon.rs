//! A daemon in this process, in its own folder.

use std::path::Path;
use std::time::Duration;

use api_types::TaskEvent;
use api_types::sse::{Frame, FrameDecoder};
use rbees_orcd::config::Config;
use rbees_orcd::server::Server;
use serde_json::Value;
use tempfile::TempDir;

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Daemon {
    pub home: TempDir,
    pub server: Server,
    pub http: reqwest::Client,
}

impl Daemon {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let home = TempDir::new().expect("a folder");
        let mut config = Config::for_tests(home.path());
        change(&mut config);
        let server = Server::start(config).await.expect("the daemon starts");
        Self { home, server, http: clients::http_client().expect("a client") }
    }

    /// Ends without a goodbye and starts again in the same folder.
    pub async fn crash_and_restart(self) -> Self {
        self.crash_and_restart_with(|_| {}).await
    }

    /// As [`Self::crash_and_restart`], with another configuration.
    pub async fn crash_and_restart_with(self, change: impl FnOnce(&mut Config)) -> Self {
        let Self { home, server, http } = self;
        server.crash().await;
        let mut config = Config::for_tests(home.path());
        change(&mut config);
        let server = Server::start(config).await.expect("the daemon starts again");
        Self { home, server, http }
    }

    /// Starts in a folder that a daemon used before.
    pub async fn open(home: TempDir, http: reqwest::Client) -> Self {
        let server = Server::start(Config::for_tests(home.path())).await.expect("the daemon starts again");
        Self { home, server, http }
    }

    pub fn folder(&self) -> &Path {
        self.home.path()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address)
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
        answer(self.http.post(self.url(path)).body(body)).await
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.http.get(self.url(path))).await
    }

    /// What a metric without labels says, or one with them when they are given with its name.
    pub async fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics").await;
        let text = text.as_str().unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no metric {name} in {text}"))
    }

    /// Submits and gives the job's id.
    pub async fn submit(&self, body: Value) -> String {
        let (status, answer) = self.post("/v2/tasks", body.to_string()).await;
        assert_eq!(status, 202, "{answer}");
        answer["job_id"].as_str().expect("an id").to_owned()
    }

    /// Waits until the job stands there.
    pub async fn until_status(&self, job: &str, status: &str) -> Value {
        until(&format!("{job} is {status}"), || async {
            let (_, view) = self.get(&format!("/v2/tasks/{job}")).await;
            (view["status"] == status).then_some(view)
        })
        .await
    }

    /// The events of a job, from the start or after one of them, to the end.
    pub async fn events(&self, job: &str, after: Option<u64>) -> Vec<Frame> {
        self.follow(job, after).await.rest().await
    }

    pub async fn follow(&self, job: &str, after: Option<u64>) -> Follower {
        let mut request = self.http.get(self.url(&format!("/v2/tasks/{job}/events")));
        if let Some(id) = after {
            request = request.header("last-event-id", id.to_string());
        }
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        Follower::new(answer)
    }
}

/// Reads a stream event by event.
pub struct Follower {
    answer: reqwest::Response,
    decoder: FrameDecoder,
}

impl Follower {
    pub fn new(answer: reqwest::Response) -> Self {
        Self { answer, decoder: FrameDecoder::default() }
    }

    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("frames") {
                return Some(frame);
            }
            let chunk =
                tokio::time::timeout(PATIENCE, self.answer.chunk()).await.expect("the stream goes on");
            self.decoder.push(&chunk.ok().flatten()?);
        }
    }

    pub async fn rest(mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}

pub async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    let bytes = answer.bytes().await.expect("a body");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::String(text)))
}

/// The files of a folder, and of the folders in it, that hold this text.
pub fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
            continue;
        }
        // A file may be removed while we look.
        let bytes = std::fs::read(&path).unwrap_or_default();
        if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Asks again until there is an answer.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// The joined texts of the tokens.
pub fn text(frames: &[Frame]) -> String {
    frames
        .iter()
        .filter_map(|frame| match frame.task_event() {
            Ok(TaskEvent::Token { t, .. }) => Some(t),
            _ => None,
        })
        .collect()
}

pub fn names(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| &*frame.event).collect()
}

pub fn ids(frames: &[Frame]) -> Vec<u64> {
    frames.iter().filter_map(|frame| frame.id).collect()
}
