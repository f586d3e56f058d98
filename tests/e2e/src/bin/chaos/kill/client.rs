//! Clients that go on whatever happens to the orchestrator.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use api_types::task::TaskView;
use e2e::{Cluster, Received, Stream};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::history::{Followed, History, Request, Verdict};
use crate::rng::Rng;

/// Between two tries to reach the orchestrator.
const PAUSE: Duration = Duration::from_millis(20);
/// One request may take so long; a killed orchestrator breaks it much sooner.
const CALL: Duration = Duration::from_secs(30);
/// Prompts to choose from; the last is so long that it lies in a file of its own.
const PROMPTS: usize = 4;
const LARGE: usize = 20_000;
/// Tokens of a short job, and of one whose stream is followed.
const SHORT: u32 = 8;
const LONG: u32 = 90;

/// All clients of a campaign. A clone is the same.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    history: Arc<History>,
    stopped: Arc<AtomicBool>,
}

impl Client {
    /// Clients of a cluster.
    pub fn new(cluster: &Cluster, history: Arc<History>) -> anyhow::Result<Self> {
        Ok(Self { http: clients::http_client()?, url: cluster.url(""), history, stopped: Arc::default() })
    }

    /// Runs every request once while nothing is killed.
    pub async fn learn_texts(&self) -> anyhow::Result<()> {
        for prompt in 0..PROMPTS {
            for max_tokens in [SHORT, LONG] {
                let request = Request { prompt, max_tokens };
                let answer = self.http.post(format!("{}/v2/tasks?stream=true", self.url));
                let answer = answer.json(&body(request, None)).send().await?.error_for_status()?;
                let received = Stream::new(answer).read_to_end().await;
                received.assert_whole();
                self.history.learn(request, received.text());
            }
        }
        Ok(())
    }

    /// Starts so many of each kind.
    pub fn start(&self, seed: u64, submitters: u64, followers: u64) -> Vec<JoinHandle<anyhow::Result<()>>> {
        let submitters = (0..submitters).map(|number| {
            let (client, rng) = (self.clone(), Rng::new(seed ^ (number + 1) << 40));
            tokio::spawn(async move { client.keep_submitting(number, rng).await })
        });
        let followers = (0..followers).map(|number| {
            let (client, rng) = (self.clone(), Rng::new(seed ^ (number + 1) << 48));
            tokio::spawn(async move { client.keep_following(rng).await })
        });
        submitters.chain(followers).collect()
    }

    /// Lets every client finish what it is at.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn goes_on(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    async fn keep_submitting(&self, number: u64, mut rng: Rng) -> anyhow::Result<()> {
        let mut count = 0_u64;
        while self.goes_on() {
            count += 1;
            let request = Request { prompt: usize::try_from(rng.below(PROMPTS as u64))?, max_tokens: SHORT };
            let key = rng.percent(40).then(|| format!("client-{number}-{count}"));
            let Some(job) = self.submit(request, key.as_deref()).await? else { continue };
            if key.is_some() && rng.percent(50) {
                // The same key again, perhaps to the next life of the orchestrator.
                self.submit(request, key.as_deref()).await?;
            }
            if rng.percent(10) {
                self.history.cancel(&job);
                let _ =
                    self.http.post(format!("{}/v2/tasks/{job}/cancel", self.url)).timeout(CALL).send().await;
            }
            tokio::time::sleep(Duration::from_millis(rng.below(150))).await;
        }
        Ok(())
    }

    /// Hands a job in. Without a key, a lost answer is a job that nobody was promised; with one, it is
    /// asked again until there is an answer.
    async fn submit(&self, request: Request, key: Option<&str>) -> anyhow::Result<Option<String>> {
        loop {
            match self.try_submit(request, key).await? {
                Some(job) => {
                    self.history.acknowledge(&job, request, key);
                    return Ok(Some(job));
                }
                None if key.is_none() => {
                    tokio::time::sleep(PAUSE).await;
                    return Ok(None);
                }
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn try_submit(&self, request: Request, key: Option<&str>) -> anyhow::Result<Option<String>> {
        let call = self.http.post(format!("{}/v2/tasks", self.url)).json(&body(request, key)).timeout(CALL);
        let Ok(answer) = call.send().await else { return Ok(None) };
        let status = answer.status();
        let Ok(text) = answer.text().await else { return Ok(None) };
        if status.is_server_error() || status.as_u16() == 429 {
            return Ok(None);
        }
        let accepted: Value = serde_json::from_str(&text).context("reading the answer to a submission")?;
        match accepted["job_id"].as_str() {
            Some(job) if status.is_success() => Ok(Some(job.to_owned())),
            _ => bail!("a submission was refused with {status}: {text}"),
        }
    }

    async fn keep_following(&self, mut rng: Rng) -> anyhow::Result<()> {
        while self.goes_on() {
            let request = Request { prompt: usize::try_from(rng.below(PROMPTS as u64))?, max_tokens: LONG };
            let Some(job) = self.submit(request, None).await? else { continue };
            self.follow(job, request).await?;
        }
        Ok(())
    }

    /// Reads a job's events to their end, going on after the last one whenever the stream breaks.
    async fn follow(&self, job: String, request: Request) -> anyhow::Result<()> {
        let (mut received, mut gaps_ms) = (Received::default(), Vec::new());
        let mut broken_at: Option<Instant> = None;
        loop {
            if let Some(mut stream) = self.open(&job, received.last_id()).await? {
                let (before, ran) = (received.events.len(), !received.tokens().is_empty());
                stream.read_until(&mut received, |received| received.events.len() > before).await;
                // A job that waits in the queue has no stream that could pause.
                if received.events.len() > before
                    && let Some(at) = broken_at.take().filter(|_| ran)
                {
                    gaps_ms.push(u64::try_from(at.elapsed().as_millis())?);
                }
                stream.read_until(&mut received, |_| false).await;
                if received.last().is_some_and(api_types::TaskEvent::is_last) {
                    self.history.follow(Followed { job, request, received, gaps_ms });
                    return Ok(());
                }
            }
            broken_at.get_or_insert_with(Instant::now);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn open(&self, job: &str, after: Option<u64>) -> anyhow::Result<Option<Stream>> {
        let mut call = self.http.get(format!("{}/v2/tasks/{job}/events", self.url));
        if let Some(id) = after {
            call = call.header("Last-Event-ID", id.to_string());
        }
        let Ok(answer) = call.send().await else { return Ok(None) };
        match answer.status().as_u16() {
            200 => Ok(Some(Stream::new(answer))),
            500.. => Ok(None),
            status => bail!("the events of the acknowledged job {job} were refused with {status}"),
        }
    }

    /// Waits until every acknowledged job has ended or is not known.
    pub async fn wait_for_ends(&self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        for job in self.history.ids() {
            while self.view(&job).await?.is_some_and(|view| !view.status.is_terminal()) {
                if Instant::now() > deadline {
                    bail!("{job} did not end within {} s after the last kill", patience.as_secs());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Looks at every acknowledged job and compares.
    pub async fn judge(&self, worker_logs: &[String]) -> anyhow::Result<Verdict> {
        let mut shown = BTreeMap::new();
        for job in self.history.ids() {
            let view = self.view(&job).await?;
            shown.insert(job, view);
        }
        Ok(self.history.judge(&shown, &runs_to_an_end(worker_logs)?))
    }

    async fn view(&self, job: &str) -> anyhow::Result<Option<TaskView>> {
        let answer = self.http.get(format!("{}/v2/tasks/{job}", self.url)).timeout(CALL).send().await?;
        if answer.status().as_u16() == 404 {
            return Ok(None);
        }
        Ok(Some(answer.error_for_status()?.json().await?))
    }
}

/// How often each job ran until it had all its tokens, by the words of the workers.
fn runs_to_an_end(logs: &[String]) -> anyhow::Result<HashMap<String, u32>> {
    let mut ends: HashMap<String, u32> = HashMap::new();
    let mut seen = 0;
    for line in logs.iter().flat_map(|log| log.lines()).filter(|line| line.contains("run_ended")) {
        let line: Value =
            serde_json::from_str(line).with_context(|| format!("reading the log line {line}"))?;
        seen += 1;
        if line["outcome"] == "MaxTokens" {
            *ends.entry(line["job_id"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
    }
    if ends.is_empty() {
        bail!("the workers tell of no run that had all its tokens ({seen} ended): their log has changed");
    }
    Ok(ends)
}

fn body(request: Request, key: Option<&str>) -> Value {
    let prompt = if request.prompt + 1 == PROMPTS {
        "bees ".repeat(LARGE / 5)
    } else {
        format!("Tale number {}", request.prompt)
    };
    let mut body = json!({
        "model": "fake-bee", "prompt": prompt, "max_tokens": request.max_tokens, "temperature": 0,
        "on_disconnect": "continue",
        // Streams are to run while jobs that nobody watches wait.
        "priority": if request.max_tokens == LONG { "interactive" } else { "batch" },
    });
    if let Some(key) = key {
        body["idempotency_key"] = json!(key);
    }
    body
}
