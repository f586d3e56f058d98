//! Read-only answers: what the daemon's status pages ask the brain.

use std::collections::BTreeMap;

use api_types::model::{ModelList, ModelView};
use api_types::task::{Decision, TaskStatus, WhyView};
use api_types::worker::WorkerView;
use api_types::{JobId, WorkerId};

use crate::estimate::estimate_view;
use crate::feasible::fits;
use crate::job::Job;
use crate::orchestrator::Orchestrator;
use crate::row::{JobRow, PoolRow, WorkerRow};
use crate::time::{Time, in_words};
use crate::worker::Worker;

/// A job as the brain holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobStanding {
    /// Its row.
    pub row: JobRow,
    /// Jobs that go before it, while it waits.
    pub queue_position: Option<u64>,
}

/// Counts for `/health` and the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HealthCounts {
    /// Registered pools.
    pub pools: u64,
    /// Workers that are not lost and have not failed.
    pub workers: u64,
    /// Workers that could take a job now or after their running ones.
    pub ready_workers: u64,
    /// Jobs that wait.
    pub queue_depth: u64,
    /// Jobs that a worker holds (`dispatched` and `running`).
    pub running: u64,
    /// Whether silence is not believed right now, because too many workers fell silent at one time.
    pub braking: bool,
}

impl Orchestrator {
    /// A job that has not ended, or ended a short while ago.
    pub fn job(&self, job_id: JobId) -> Option<JobStanding> {
        if let Some(job) = self.jobs.get(&job_id) {
            let queue_position = job.is_queued().then(|| self.queue.position(&job.row));
            return Some(JobStanding { row: job.row.clone(), queue_position });
        }
        self.memory.job(job_id).map(|row| JobStanding { row: row.clone(), queue_position: None })
    }

    /// A job that lives or ended a short while ago.
    pub fn job_row(&self, job_id: JobId) -> Option<&JobRow> {
        self.jobs.get(&job_id).map(|job| &job.row).or_else(|| self.memory.job(job_id))
    }

    /// Every worker of the registry, by id; lost ones for a while.
    pub fn workers(&self, now: Time) -> Vec<WorkerView> {
        self.registry.all().map(|worker| worker.view(&self.settings, now)).collect()
    }

    /// A worker's row: where it listens and what to authenticate with.
    pub fn worker_row(&self, worker_id: &WorkerId) -> Option<&WorkerRow> {
        self.registry.get(worker_id).map(|worker| &worker.row)
    }

    /// Every registered pool, by id.
    pub fn pools(&self) -> Vec<&PoolRow> {
        self.pools.values().collect()
    }

    /// Every model that a worker runs or a pool knows, by id, as of the last event or timeout.
    pub fn models(&self) -> ModelList {
        let mut models = BTreeMap::new();
        for worker in self.registry.all().filter(|worker| worker.gone.is_none()) {
            self.add_worker_to(&mut models, worker, self.seen);
        }
        for (pool_id, catalog) in &self.catalogs {
            for known in catalog {
                let model = models.entry(known.id.clone()).or_insert_with(|| unserved(&known.id));
                if known.downloaded {
                    model.pools.push(pool_id.clone());
                }
                if model.workers.is_empty() {
                    model.context_length = model.context_length.or(known.context_length);
                }
            }
        }
        ModelList { models: models.into_values().collect() }
    }

    fn add_worker_to(&self, models: &mut BTreeMap<String, ModelView>, worker: &Worker, now: Time) {
        let facts = &worker.row.facts;
        let model = models.entry(facts.model.clone()).or_insert_with(|| unserved(&facts.model));
        model.ready |= worker.is_serving(&self.settings, now);
        model.workers.push(facts.worker_id.clone());
        let smallest = model.context_length.map_or(facts.context_length, |c| c.min(facts.context_length));
        model.context_length = Some(smallest);
    }

    /// Counts for `/health`.
    pub fn health(&self, now: Time) -> HealthCounts {
        let (workers, ready_workers) = self.registry.living_and_serving(&self.settings, now);
        HealthCounts {
            pools: self.pools.len() as u64,
            workers,
            ready_workers,
            queue_depth: self.queue.len(),
            running: (self.jobs.len() as u64).saturating_sub(self.queue.len()),
            braking: self.registry.brake_until.is_some_and(|until| now < until),
        }
    }

    /// What a placement of a waiting job would look like now.
    pub fn waiting_decision(&self, job_id: JobId, now: Time) -> Option<Decision> {
        let job = self.jobs.get(&job_id).filter(|job| job.is_queued())?;
        Some(self.speculate(&job.row, now))
    }

    /// The placements of a job that has not ended, oldest first.
    pub fn decisions(&self, job_id: JobId) -> &[Decision] {
        self.jobs.get(&job_id).map_or(&[], |job| job.decisions.as_slice())
    }

    /// Why a job that has not ended stands where it stands. For ended jobs see [`explain_ended`].
    pub fn why(&self, job_id: JobId, now: Time) -> Option<WhyView> {
        let job = self.jobs.get(&job_id)?;
        let waiting = self.waiting_decision(job_id, now);
        let summary = match &waiting {
            Some(waiting) => self.why_waiting(job, now) + &unknown(waiting),
            None => why_placed(&job.row, &job.decisions),
        };
        let estimate = estimate_view(&job.row);
        let (status, decisions) = (job.row.status, job.decisions.clone());
        Some(WhyView { job_id, status, summary, decisions, waiting, estimate })
    }

    fn why_waiting(&self, job: &Job, now: Time) -> String {
        let row = &job.row;
        if let Some(at) = row.not_before.filter(|at| *at > now) {
            return match row.tries_failed {
                0 => format!(
                    "The policy that let it in holds it for another {}, until {}.",
                    in_words(at.since(now)),
                    at.rfc3339()
                ),
                tries => {
                    let left = in_words(at.since(now));
                    format!("It waits {left} before its next attempt, because {tries} failed.")
                }
            };
        }
        let workers: Vec<&Worker> = self.registry.of_model(&row.model).collect();
        if let Some(reason) = self.why_no_capacity(row) {
            return reason;
        }
        if workers.is_empty() {
            let model = &row.model;
            return format!(
                "No worker runs the model `{model}`, and no registered pool has it; start a worker with \
                 `rbees pool worker spawn --model {model}`, or add the pool with `rbees pool add`."
            );
        }
        let serving = |worker: &&&Worker| fits(row, worker) && worker.is_serving(&self.settings, now);
        match workers.iter().filter(serving).count() {
            0 => self.why_none_fits(row, now),
            serving => self.why_behind_others(row, serving, now),
        }
    }

    /// Names the first worker of the model that cannot take it, with its reason.
    fn why_none_fits(&self, row: &JobRow, now: Time) -> String {
        let decision = self.speculate(row, now);
        let of_model =
            |id: &WorkerId| self.registry.of_model(&row.model).any(|w| w.row.facts.worker_id == *id);
        let mut reasons = decision.candidates.iter().filter(|candidate| of_model(&candidate.worker_id));
        let first = reasons.next();
        let others = reasons.count();
        let reason =
            first.and_then(|candidate| candidate.ruled_out.as_deref()).unwrap_or("it just became free");
        let name = first.map_or("", |candidate| candidate.worker_id.as_str());
        let rest = match others {
            0 => String::new(),
            1 => "; 1 other worker that runs the model is ruled out too".to_owned(),
            n => format!("; {n} other workers that run the model are ruled out too"),
        };
        format!("The worker `{name}` runs the model `{}`, but {reason}{rest}.", row.model)
    }

    fn why_behind_others(&self, row: &JobRow, serving: usize, now: Time) -> String {
        let before = self.queue.position(row);
        let fitting = || self.registry.of_model(&row.model).filter(|worker| fits(row, worker));
        let slots: u32 = fitting().map(|worker| worker.row.facts.slots).sum();
        if fitting().any(|worker| worker.is_open(&self.settings, now)) {
            return format!("A worker has a free slot, and {before} jobs go before it.");
        }
        format!(
            "All {slots} slots of the {serving} workers that can run it are taken, and {before} jobs go before it."
        )
    }
}

/// Names in the job's placement that mean nothing known, as a sentence.
fn unknown(decision: &Decision) -> String {
    let quoted: Vec<String> = decision.unknown_names.iter().map(|name| format!("`{name}`")).collect();
    if quoted.is_empty() {
        return String::new();
    }
    format!(" Its placement names {}, which is no worker and no pool that is known.", quoted.join(", "))
}

fn unserved(id: &str) -> ModelView {
    ModelView {
        id: id.to_owned(),
        ready: false,
        context_length: None,
        workers: Vec::new(),
        pools: Vec::new(),
    }
}

/// Why an ended job went where it went, from what the store keeps of it.
pub fn explain_ended(row: &JobRow, decisions: Vec<Decision>) -> WhyView {
    WhyView {
        job_id: row.job_id,
        status: row.status,
        summary: why_placed(row, &decisions),
        decisions,
        waiting: None,
        estimate: estimate_view(row),
    }
}

/// The fact that decided the last placement, or that none was made.
fn why_placed(row: &JobRow, decisions: &[Decision]) -> String {
    let verb = match row.status {
        TaskStatus::Queued => "last ran",
        TaskStatus::Dispatched | TaskStatus::Running => "runs",
        TaskStatus::Completed | TaskStatus::Failed | TaskStatus::Cancelled => "ran",
    };
    let ending = row.error.as_ref().map_or(String::new(), |error| format!(" It failed: {}", error.message));
    let Some(attempt) = &row.attempt else { return format!("It ended before a worker was found.{ending}") };
    let decision = decisions.iter().rev().find(|decision| decision.attempt == attempt.attempt.0);
    let because = decision.map_or(String::new(), deciding_fact);
    format!("It {verb} on `{}` (attempt {}){because}.{ending}", attempt.worker_id, attempt.attempt)
}

fn deciding_fact(decision: &Decision) -> String {
    let feasible: Vec<_> = decision.candidates.iter().filter(|candidate| candidate.feasible).collect();
    let Some(best) = feasible.first() else { return String::new() };
    let held =
        best.prompt_bytes_held.map_or_else(String::new, |held| format!("{held} bytes of its prompt held, "));
    let free = format!("{held}{} of {} slots free", best.slots_free, best.slots);
    let other = decision.counterfactual.as_ref().map_or_else(String::new, |other| format!("; it {other}"));
    match feasible.get(1) {
        None => format!(", the only worker that could take it, with {free}{other}"),
        Some(second) => format!(
            ", the best of those that could take it: {free}, score {:.1} against {:.1} of `{}`{other}",
            best.score.unwrap_or_default(),
            second.score.unwrap_or_default(),
            second.worker_id
        ),
    }
}
