//! Which worker runs which job: can it, how well, which one.

use std::collections::BTreeSet;

use api_types::task::{Candidate, Decision, Placement};
use api_types::worker::WorkerState;
use api_types::{JobId, WorkerId};

use crate::event::RunKey;
use crate::job::Job;
use crate::orchestrator::Orchestrator;
use crate::policy::{JobFacts, Policy, WorkerLoad};
use crate::queue::Next;
use crate::row::JobRow;
use crate::settings::Settings;
use crate::step::{Action, OpenStream, Write};
use crate::time::Time;
use crate::turn::Turn;
use crate::worker::Worker;

/// Infeasible workers that the record of a placement names; `why` on a waiting job names all.
const RULED_OUT_KEPT: usize = 16;
/// On top of a policy's score (at most 1,000) for a worker or pool that the job prefers.
const PREFERRED: f64 = 10_000.0;
/// Below any policy's score for a worker that already failed this job.
const FAILED_BEFORE: f64 = -5_000.0;

impl Orchestrator {
    /// Hands out jobs of one model for as long as a worker has a free slot and a job fits.
    pub(crate) fn place_queued(&mut self, model: &str, turn: &mut Turn) {
        let mut without = BTreeSet::new();
        loop {
            self.registry.refresh(&self.settings, turn.now);
            if !self.registry.openings().has_open(model) {
                return;
            }
            let Some(next) = self.queue.next(model, &without, &self.settings, turn.now) else { return };
            if !self.place_job(&next, turn) {
                without.insert(next.group);
            }
        }
    }

    /// Whether a worker could take this job at once. The index must be up to date.
    pub(crate) fn has_opening_for(&self, row: &JobRow, now: Time) -> bool {
        self.shortlist(row).into_iter().any(|worker| fits(row, worker) && worker.is_open(&self.settings, now))
    }

    fn place_job(&mut self, next: &Next, turn: &mut Turn) -> bool {
        let late = self.jobs.get(&next.job_id).and_then(|job| self.too_late(&job.row, turn.now));
        if let Some(error) = late {
            self.fail_job(next.job_id, error, turn);
            return true;
        }
        let Some((decision, picked)) =
            self.jobs.get(&next.job_id).and_then(|job| self.decide(&job.row, turn.now))
        else {
            return false;
        };
        if let Some(job) = self.jobs.get(&next.job_id) {
            self.queue.take(&job.row, next.aged);
        }
        self.dispatch(next.job_id, &picked, decision, turn);
        true
    }

    /// Picks a worker among a few of those that run the model, and records why.
    pub(crate) fn decide(&self, row: &JobRow, now: Time) -> Option<(Decision, WorkerId)> {
        let (feasible, ruled_out) =
            feasible_workers(row, self.looked_at(row).into_iter(), RULED_OUT_KEPT, &self.settings, now);
        let scored = score_workers(row, feasible, &*self.policy, now);
        let picked = pick_worker(&scored)?;
        Some((self.record(row, scored, ruled_out, Some(picked.clone()), now), picked))
    }

    /// What a placement of this waiting job would look like now, with every worker of the registry.
    pub(crate) fn speculate(&self, row: &JobRow, now: Time) -> Decision {
        let (feasible, ruled_out) =
            feasible_workers(row, self.registry.all(), usize::MAX, &self.settings, now);
        let scored = score_workers(row, feasible, &*self.policy, now);
        let picked = pick_worker(&scored);
        self.record(row, scored, ruled_out, picked, now)
    }

    fn record(
        &self,
        row: &JobRow,
        mut scored: Vec<Candidate>,
        ruled_out: Vec<Candidate>,
        picked: Option<WorkerId>,
        now: Time,
    ) -> Decision {
        scored.extend(ruled_out);
        Decision {
            attempt: 0,
            at: now.rfc3339(),
            policy: self.policy.describe().to_owned(),
            queue_depth: self.queue.len(),
            waited_ms: now.since(row.submitted_at),
            candidates: scored,
            picked,
        }
    }

    /// Begins an attempt of a job, which is out of the queue, on a worker.
    fn dispatch(&mut self, job_id: JobId, worker_id: &WorkerId, mut decision: Decision, turn: &mut Turn) {
        let Some(worker) = self.registry.get(worker_id) else { return };
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        job.start_attempt(worker_id.clone(), worker.row.incarnation, turn.now);
        let Some(run) = job.run() else { return };
        decision.attempt = run.attempt.0;
        job.decisions.push(decision.clone());
        if job.is_durable() {
            turn.write(Write::PutDecision { job_id, attempt: run.attempt, decision });
        }
        turn.save_job(job);
        turn.act(Action::OpenStream(open_stream(job, &run, worker, &self.settings, turn.now)));
        turn.tell_job(job);
        turn.workers_touched.insert(worker_id.clone());
        self.registry.hold_slot(&run);
    }
}

/// What the driver needs to begin (or begin again) a run.
pub(crate) fn open_stream(
    job: &Job,
    run: &RunKey,
    worker: &Worker,
    settings: &Settings,
    now: Time,
) -> OpenStream {
    let limit = job.time_limit_at(settings).map_or(settings.job_time_limit_ms, |at| at.since(now));
    OpenStream {
        run: run.clone(),
        uri: worker.row.facts.uri.clone(),
        secret: worker.row.secret.clone(),
        first_event_id: crate::job::FIRST_EVENT_ID,
        time_limit_ms: job.row.deadline.map_or(limit, |deadline| limit.min(deadline.since(now))),
    }
}

/// Splits workers into those that can take the job now and those that cannot, with the reason. Of
/// the latter at most `keep` are kept.
fn feasible_workers<'a>(
    row: &JobRow,
    workers: impl Iterator<Item = &'a Worker>,
    keep: usize,
    settings: &Settings,
    now: Time,
) -> (Vec<&'a Worker>, Vec<Candidate>) {
    let (mut feasible, mut ruled_out) = (Vec::new(), Vec::new());
    for worker in workers {
        if fits(row, worker) && worker.is_open(settings, now) {
            feasible.push(worker);
        } else if ruled_out.len() < keep {
            ruled_out.push(Candidate {
                worker_id: worker.row.facts.worker_id.clone(),
                feasible: false,
                ruled_out: Some(why_not(row, worker, settings, now)),
                score: None,
                slots_free: worker.slots_free(),
                slots: worker.row.facts.slots,
            });
        }
    }
    (feasible, ruled_out)
}

/// Whether a worker is of the kind that the job asks for, whatever it is doing.
pub(crate) fn fits(row: &JobRow, worker: &Worker) -> bool {
    worker.row.facts.model == row.model && misplaced(&row.placement, worker).is_none()
}

/// What ruled a worker out, with the numbers.
fn why_not(row: &JobRow, worker: &Worker, settings: &Settings, now: Time) -> String {
    let facts = &worker.row.facts;
    if facts.model != row.model {
        return format!("it runs the model `{}`, not `{}`", facts.model, row.model);
    }
    misplaced(&row.placement, worker).unwrap_or_else(|| why_closed(worker, settings, now))
}

/// Which demand of the job a worker does not meet.
fn misplaced(placement: &Placement, worker: &Worker) -> Option<String> {
    let facts = &worker.row.facts;
    if let Some(wanted) = placement.worker.as_ref().filter(|wanted| **wanted != facts.worker_id) {
        return Some(format!("the job asks for the worker `{wanted}`"));
    }
    if let Some(wanted) = placement.pool.as_ref().filter(|wanted| Some(*wanted) != facts.pool_id.as_ref()) {
        let pool = facts.pool_id.as_ref().map_or("no pool".to_owned(), |pool| format!("the pool `{pool}`"));
        return Some(format!("the job asks for the pool `{wanted}`; it belongs to {pool}"));
    }
    if let Some(name) = placement.avoid.iter().find(|name| is_called(worker, name)) {
        return Some(format!("the job avoids `{name}`"));
    }
    let lacks = placement.require.iter().find(|name| !can(worker, name))?;
    Some(format!("the job requires `{lacks}`; it has {}", facts.capabilities.join(", ")))
}

/// Whether a name in `prefer` or `avoid` means this worker or its pool.
fn is_called(worker: &Worker, name: &str) -> bool {
    let facts = &worker.row.facts;
    facts.worker_id.as_str() == name || facts.pool_id.as_ref().is_some_and(|pool| pool.as_str() == name)
}

fn can(worker: &Worker, capability: &str) -> bool {
    let facts = &worker.row.facts;
    facts.backend == capability || facts.capabilities.iter().any(|has| has == capability)
}

/// Why a worker that fits takes no job at the moment.
fn why_closed(worker: &Worker, settings: &Settings, now: Time) -> String {
    let silent_ms = now.since(worker.last_heard);
    let slots = worker.row.facts.slots;
    match worker.state(settings, now) {
        WorkerState::Lost => "it is lost: its lease ended or its process is gone".to_owned(),
        WorkerState::Failed => match &worker.failure {
            Some(error) => format!("it said that it cannot go on: {error}"),
            None => "it said that it cannot go on".to_owned(),
        },
        WorkerState::Loading => "it is still loading its model".to_owned(),
        WorkerState::Draining => "it is draining and takes no new job".to_owned(),
        WorkerState::Suspect if worker.is_quarantined(now) => {
            let errors = worker.protocol_errors;
            let left_ms = worker.quarantined_until.map_or(0, |until| until.since(now));
            format!("it broke the protocol {errors} times and gets no job for another {left_ms} ms")
        }
        WorkerState::Suspect if silent_ms < settings.lease.suspect_ms => {
            "it has not been heard of since the orchestrator started".to_owned()
        }
        WorkerState::Suspect => {
            format!(
                "nothing was heard of it for {silent_ms} ms; the limit is {} ms",
                settings.lease.suspect_ms
            )
        }
        WorkerState::Ready if worker.slots_free() == 0 => format!("all of its {slots} slots are taken"),
        WorkerState::Ready => "it just refused a job because it was busy".to_owned(),
    }
}

/// Scores the feasible, best first and by id between equals.
fn score_workers(row: &JobRow, feasible: Vec<&Worker>, policy: &dyn Policy, now: Time) -> Vec<Candidate> {
    let job = JobFacts {
        model: &row.model,
        priority: row.priority,
        prompt_bytes: row.prompt_bytes,
        waited_ms: now.since(row.submitted_at),
    };
    let mut scored: Vec<Candidate> =
        feasible.into_iter().map(|worker| score_worker(row, &job, worker, policy)).collect();
    scored.sort_by(|a, b| {
        let by_score = b.score.unwrap_or(f64::MIN).total_cmp(&a.score.unwrap_or(f64::MIN));
        by_score.then_with(|| a.worker_id.cmp(&b.worker_id))
    });
    scored
}

fn score_worker(row: &JobRow, job: &JobFacts<'_>, worker: &Worker, policy: &dyn Policy) -> Candidate {
    let facts = &worker.row.facts;
    let load = WorkerLoad {
        backend: &facts.backend,
        slots: facts.slots,
        slots_free: worker.slots_free(),
        context_length: facts.context_length,
        free_memory_bytes: worker.free_memory_bytes,
        prefix_share: 0.0,
        session_here: false,
    };
    let mut score = policy.score(job, &load);
    if row.placement.prefer.iter().any(|name| is_called(worker, name)) {
        score += PREFERRED;
    }
    if row.attempt.as_ref().is_some_and(|attempt| attempt.worker_id == facts.worker_id) {
        score += FAILED_BEFORE;
    }
    Candidate {
        worker_id: facts.worker_id.clone(),
        feasible: true,
        ruled_out: None,
        score: Some(score),
        slots_free: worker.slots_free(),
        slots: facts.slots,
    }
}

/// The best of the scored.
fn pick_worker(scored: &[Candidate]) -> Option<WorkerId> {
    scored.first().map(|candidate| candidate.worker_id.clone())
}
