//! Clients that ask for more than there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use api_types::JobId;
use api_types::task::{TaskAccepted, TaskStatus, TaskView};
use e2e::{Cluster, Stream};
use serde_json::json;

use crate::rng::Rng;

/// Tokens of a job: at least, and below.
const TOKENS: (u64, u64) = (8, 65);

/// Clients of one orchestrator.
#[derive(Debug, Clone)]
pub struct Load {
    http: reqwest::Client,
    url: Arc<str>,
    model: &'static str,
    lasts: Duration,
}

/// One task that was handed in.
#[derive(Debug, Clone)]
pub struct Sample {
    /// From sending it to its answer, in milliseconds.
    pub answered_ms: f64,
    /// Its job, unless it was refused.
    pub job: Option<JobId>,
    /// Its deadline, in milliseconds from being taken in.
    pub deadline_ms: Option<u64>,
}

impl Load {
    /// Clients of a cluster, each of whose loads lasts for so long.
    pub fn new(cluster: &Cluster, lasts: Duration) -> anyhow::Result<Self> {
        let (http, url) = (clients::http_client()?, cluster.url("").into());
        Ok(Self { http, url, model: cluster.engine.model(), lasts })
    }

    /// The same, lasting a part as long.
    pub fn shortened(&self, parts: u32) -> Self {
        Self { lasts: self.lasts / parts, ..self.clone() }
    }

    /// So many clients, each with one job after another.
    pub async fn keep_busy(&self, clients: usize, seed: u64) -> anyhow::Result<()> {
        let ends_at = Instant::now() + self.lasts;
        let client = |number: usize| {
            let (load, mut rng) = (self.clone(), Rng::new(seed ^ (number as u64 + 1) << 32));
            async move {
                while Instant::now() < ends_at {
                    let request = load.http.post(format!("{}/v2/tasks?stream=true", load.url));
                    let answer = request.json(&load.task(&mut rng, None)).send().await?;
                    Stream::new(answer.error_for_status()?).read_to_end().await;
                }
                anyhow::Ok(())
            }
        };
        let clients: Vec<_> = (0..clients).map(|number| tokio::spawn(client(number))).collect();
        // The rate is that of busy slots: the last jobs of the clients are not waited for.
        tokio::time::sleep_until(ends_at.into()).await;
        for client in clients {
            if client.is_finished() {
                client.await??;
            }
        }
        Ok(())
    }

    /// Tasks at times that know nothing of each other, `per_s` of them a second on average; each with
    /// a deadline between these bounds in milliseconds, where there are some.
    pub async fn offer(
        &self,
        per_s: f64,
        deadlines: Option<(u64, u64)>,
        seed: u64,
    ) -> anyhow::Result<Vec<Sample>> {
        let mut rng = Rng::new(seed);
        let started = Instant::now();
        let mut at = Duration::ZERO;
        let mut open = Vec::new();
        loop {
            at += until_next(per_s, &mut rng);
            if at >= self.lasts {
                break;
            }
            let deadline_ms = deadlines.map(|(least, most)| least + rng.below(most - least));
            let task = self.task(&mut rng, deadline_ms);
            tokio::time::sleep_until((started + at).into()).await;
            let load = self.clone();
            open.push(tokio::spawn(async move { load.hand_in(task, deadline_ms).await }));
        }
        let mut samples = Vec::with_capacity(open.len());
        for handed_in in open {
            samples.push(handed_in.await??);
        }
        Ok(samples)
    }

    async fn hand_in(&self, task: serde_json::Value, deadline_ms: Option<u64>) -> anyhow::Result<Sample> {
        let sent = Instant::now();
        let answer = self.http.post(format!("{}/v2/tasks", self.url)).json(&task).send().await?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await?;
        let answered_ms = sent.elapsed().as_secs_f64() * 1_000.0;
        let job = match status {
            202 => Some(serde_json::from_slice::<TaskAccepted>(&body)?.job_id),
            // No room, or no hope to be in time.
            429 | 422 => None,
            _ => bail!("a task was answered with {status}: {}", String::from_utf8_lossy(&body)),
        };
        Ok(Sample { answered_ms, job, deadline_ms })
    }

    fn task(&self, rng: &mut Rng, deadline_ms: Option<u64>) -> serde_json::Value {
        let max_tokens = TOKENS.0 + rng.below(TOKENS.1 - TOKENS.0);
        let mut task = json!({
            "model": self.model, "prompt": format!("x {}", rng.below(1_000_000)), "max_tokens": max_tokens,
            "temperature": 0, "on_disconnect": "continue",
        });
        if let Some(deadline_ms) = deadline_ms {
            task["deadline_ms"] = json!(deadline_ms);
        }
        task
    }

    /// Whether a job that was taken in ended as it should, in time.
    pub async fn kept_deadline(&self, sample: &Sample) -> anyhow::Result<bool> {
        let (Some(job), Some(deadline_ms)) = (sample.job, sample.deadline_ms) else { return Ok(false) };
        let answer = self.http.get(format!("{}/v2/tasks/{job}", self.url)).send().await?;
        let view: TaskView = answer.error_for_status()?.json().await?;
        let ended_at: jiff::Timestamp = view.ended_at.context("it has ended")?.parse()?;
        let took = ended_at.duration_since(view.submitted_at.parse()?);
        let in_time = took <= jiff::SignedDuration::from_millis(i64::try_from(deadline_ms)?);
        Ok(view.status == TaskStatus::Completed && in_time)
    }

    /// Jobs that have completed since the orchestrator's start.
    pub async fn completed(&self) -> anyhow::Result<f64> {
        Ok(sum(&self.metrics().await?, "rbees_orcd_jobs_ended_total", "completed"))
    }

    /// Jobs with an estimate that have ended, and how many of them inside their p90.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters")]
    pub async fn estimates(&self) -> anyhow::Result<(u64, u64)> {
        let metrics = self.metrics().await?;
        let read = |name| sum(&metrics, name, "") as u64;
        Ok((read("rbees_orcd_eta_jobs_total"), read("rbees_orcd_eta_inside_p90_total")))
    }

    /// Waits until nothing waits or runs.
    pub async fn drain(&self, patience: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let metrics = self.metrics().await?;
            let left =
                sum(&metrics, "rbees_orcd_queue_depth", "") + sum(&metrics, "rbees_orcd_running_jobs", "");
            if left < 1.0 {
                return Ok(());
            }
            if started.elapsed() > patience {
                bail!("{left} jobs have not ended after {} s", patience.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn metrics(&self) -> anyhow::Result<String> {
        let answer = self.http.get(format!("{}/metrics", self.url)).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }
}

/// The sum of a metric over its labels, of which one is to have this value.
fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let of_name = metrics.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
    });
    of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// The time to the next of events that know nothing of each other.
#[allow(clippy::cast_precision_loss, reason = "53 bits are enough")]
fn until_next(per_s: f64, rng: &mut Rng) -> Duration {
    let uniform = ((rng.next() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
    Duration::from_secs_f64(-uniform.ln() / per_s)
}
