//! What is counted, with the names that dashboards and alerts use.

mod decisions;

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use api_types::TaskEvent;
use api_types::task::{Priority, TaskStatus};
use orchestrator_core::JobRow;
use orchestrator_core::estimate::outcome;
use orchestrator_core::policy::Hook;
use orchestrator_core::view::HealthCounts;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use self::decisions::Decisions;

/// One word that tells members of a family apart; its values are bounded by the code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Label {
    /// The word.
    pub kind: &'static str,
}

/// A route and how it was answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answered {
    /// The route's pattern, never the path itself.
    pub route: Cow<'static, str>,
    /// The HTTP status.
    pub status: u16,
}

/// All metrics of one daemon; a clone counts the same.
#[derive(Clone)]
pub struct Metrics(Arc<Figures>);

impl Deref for Metrics {
    type Target = Figures;

    fn deref(&self) -> &Figures {
        &self.0
    }
}

/// What [`Metrics`] counts.
pub struct Figures {
    registry: Registry,
    /// Requests by route and status.
    pub requests: Family<Answered, Counter>,
    /// Jobs taken in, by `accepted`, `replayed`, `refused`.
    pub submissions: Family<Label, Counter>,
    /// Jobs that ended, by status.
    pub jobs_ended: Family<Label, Counter>,
    /// Jobs with an estimate that ended, by class; and those inside its p50 and its p90.
    pub eta_jobs: Family<Label, Counter>,
    /// See [`Self::eta_jobs`].
    pub eta_inside_p50: Family<Label, Counter>,
    /// See [`Self::eta_jobs`].
    pub eta_inside_p90: Family<Label, Counter>,
    /// Token events that went from a worker into a log.
    pub tokens_relayed: Counter,
    /// Messages with an old attempt or incarnation, by kind.
    pub stale_dropped: Family<Label, Counter>,
    /// Questions that a policy gave no answer to, by hook.
    pub policy_failures: Family<Label, Counter>,
    /// Events the driver handled.
    pub events: Counter,
    /// Transactions.
    pub commits: Counter,
    /// How long a transaction took.
    pub commit_seconds: Histogram,
    /// From submission to dispatch, for jobs that completed.
    pub queue_seconds: Histogram,
    /// From `/execute` to the first token, for jobs that completed.
    pub prefill_seconds: Histogram,
    /// Open connections.
    pub connections: Gauge,
    /// Connections of clients that took nothing of their answer for too long.
    pub clients_cut: Counter,
    /// Connections that were turned away because there were too many.
    pub connections_refused: Counter,
    /// Requests whose handler panicked.
    pub panics: Counter,
    /// Jobs that wait.
    pub queue_depth: Gauge,
    /// Jobs that a worker holds.
    pub running: Gauge,
    /// Workers that are not lost.
    pub workers: Gauge,
    /// Job logs in memory.
    pub open_logs: Gauge,
    /// What the brain decided.
    pub decisions: Decisions,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 18));
        let mut figures = Figures {
            registry: Registry::default(),
            requests: Family::default(),
            submissions: Family::default(),
            jobs_ended: Family::default(),
            eta_jobs: Family::default(),
            eta_inside_p50: Family::default(),
            eta_inside_p90: Family::default(),
            tokens_relayed: Counter::default(),
            stale_dropped: Family::default(),
            policy_failures: Family::default(),
            events: Counter::default(),
            commits: Counter::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            queue_seconds: seconds(),
            prefill_seconds: seconds(),
            connections: Gauge::default(),
            clients_cut: Counter::default(),
            connections_refused: Counter::default(),
            panics: Counter::default(),
            queue_depth: Gauge::default(),
            running: Gauge::default(),
            workers: Gauge::default(),
            open_logs: Gauge::default(),
            decisions: Decisions::default(),
        };
        figures.registry = figures.register();
        Self(Arc::new(figures))
    }
}

impl Figures {
    /// Everything in the text format of OpenMetrics.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// A late message was dropped.
    pub fn stale(&self, kind: &'static str) {
        self.stale_dropped.get_or_create(&Label { kind }).inc();
    }

    /// A policy gave no answer.
    pub fn policy_failed(&self, hook: Option<Hook>) {
        let kind = hook.map_or("compile", Hook::name);
        self.policy_failures.get_or_create(&Label { kind }).inc();
    }

    /// A task was handed in.
    pub fn submitted(&self, kind: &'static str) {
        self.submissions.get_or_create(&Label { kind }).inc();
    }

    /// A job ended.
    pub fn ended(&self, status: TaskStatus) {
        self.jobs_ended.get_or_create(&Label { kind: status.as_str() }).inc();
    }

    /// A job ended: how its estimate held, if it had one that its end says something of.
    pub fn estimated(&self, row: &JobRow) {
        let Some(outcome) = outcome(row) else { return };
        let label = Label { kind: if row.priority == Priority::Batch { "batch" } else { "interactive" } };
        self.eta_jobs.get_or_create(&label).inc();
        self.eta_inside_p50.get_or_create(&label).inc_by(u64::from(outcome.inside_p50));
        self.eta_inside_p90.get_or_create(&label).inc_by(u64::from(outcome.inside_p90));
    }

    /// A job's stream ended with this event.
    pub fn ended_with(&self, last_event: &TaskEvent) {
        if let TaskEvent::End(end) = last_event {
            self.queue_seconds.observe(seconds(end.queue_time_ms));
            self.prefill_seconds.observe(seconds(end.prefill_time_ms));
        }
        if let TaskEvent::Error { code, .. } = last_event {
            self.decisions.failed(*code);
        }
    }

    /// How things stand.
    pub fn standing(&self, health: &HealthCounts, logs: usize) {
        self.queue_depth.set(signed(health.queue_depth));
        self.running.set(signed(health.running));
        self.workers.set(signed(health.workers));
        self.open_logs.set(signed(logs as u64));
    }

    fn register(&self) -> Registry {
        let mut all = Registry::with_prefix("rbees_orcd");
        all.register("http_requests", "Requests by route and status", self.requests.clone());
        all.register("submissions", "Tasks handed in, by outcome", self.submissions.clone());
        all.register("jobs_ended", "Jobs that ended, by status", self.jobs_ended.clone());
        all.register("eta_jobs", "Jobs with an estimate that ended, by class", self.eta_jobs.clone());
        for (name, help, inside) in [
            ("eta_inside_p50", "Those that ended inside their p50", &self.eta_inside_p50),
            ("eta_inside_p90", "Those that ended inside their p90", &self.eta_inside_p90),
        ] {
            all.register(name, help, inside.clone());
        }
        all.register("tokens_relayed", "Tokens passed from workers to jobs", self.tokens_relayed.clone());
        all.register("stale_dropped", "Late messages dropped, by kind", self.stale_dropped.clone());
        all.register("policy_failures", "Questions no answer came to, by hook", self.policy_failures.clone());
        all.register("events", "Events handled by the brain", self.events.clone());
        all.register("commits", "Transactions written", self.commits.clone());
        all.register("open_connections", "Connections of clients", self.connections.clone());
        all.register("clients_cut", "Clients cut that took nothing for too long", self.clients_cut.clone());
        let refused = self.connections_refused.clone();
        all.register("connections_refused", "Connections turned away, there being too many", refused);
        all.register("panics", "Requests that met a fault of rbees itself", self.panics.clone());
        all.register("queue_depth", "Jobs that wait", self.queue_depth.clone());
        all.register("running_jobs", "Jobs that a worker holds", self.running.clone());
        all.register("workers", "Workers that are not lost", self.workers.clone());
        self.decisions.register(&mut all);
        all.register("open_job_logs", "Jobs whose events are in memory", self.open_logs.clone());
        for (name, help, histogram) in [
            ("commit", "Duration of a transaction", &self.commit_seconds),
            ("queue_wait", "From submission to dispatch", &self.queue_seconds),
            ("prefill", "From execution to the first token", &self.prefill_seconds),
        ] {
            all.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        all
    }
}

#[allow(clippy::cast_precision_loss, reason = "durations stay far below 2^52 ms")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
