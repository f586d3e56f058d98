//! Which worker runs which job: can it, how well, which one.

use std::collections::BTreeSet;

use api_types::task::{Candidate, Decision, Placement};
use api_types::worker::WorkerState;
use api_types::{JobId, PoolId, SessionId, WorkerId};

use crate::affinity::Affinity;
use crate::event::RunKey;
use crate::job::Job;
use crate::orchestrator::Orchestrator;
use crate::policy::{Hook, JobFacts, LeastLoaded, MAX_SCORED, PolicyLog, Score, WorkerLoad};
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
        self.age_waiting(model, turn);
        loop {
            self.registry.refresh(&self.settings, turn.now);
            if !self.registry.openings().has_open(model) {
                return;
            }
            let Some(next) = self.queue.next(model, &without, &self.settings) else { return };
            if !self.place_job(&next, turn) {
                without.insert(next.group);
            }
        }
    }

    /// Whether a worker could take this job at once. The index must be up to date.
    pub(crate) fn has_opening_for(&self, row: &JobRow, now: Time) -> bool {
        self.shortlist(row, &self.affinity(row))
            .into_iter()
            .any(|worker| fits(row, worker) && worker.is_open(&self.settings, now))
    }

    fn place_job(&mut self, next: &Next, turn: &mut Turn) -> bool {
        let late = self.jobs.get(&next.job_id).and_then(|job| self.too_late(&job.row, turn.now));
        if let Some(error) = late {
            self.fail_job(next.job_id, error, turn);
            return true;
        }
        let Some((decision, picked)) =
            self.jobs.get(&next.job_id).and_then(|job| self.decide(&job.row, turn))
        else {
            return false;
        };
        self.begin_service(next);
        self.dispatch(next.job_id, &picked, decision, turn);
        true
    }

    /// Picks a worker among a few of those that run the model, and records why. A shadow policy decides
    /// beside the live one, without effect.
    pub(crate) fn decide(&self, row: &JobRow, turn: &mut Turn) -> Option<(Decision, WorkerId)> {
        let now = turn.now;
        let affinity = self.affinity(row);
        let looked_at = self.looked_at(row, &affinity);
        let (feasible, ruled_out) =
            feasible_workers(row, looked_at.into_iter(), RULED_OUT_KEPT, &self.settings, now);
        let feasible = self.most_promising(row, feasible, &affinity, now);
        let facts = self.job_facts(row, now);
        let loads = self.loads(&feasible, &affinity, now);
        let (scores, policy) = self.policy.score(&facts, &loads, &mut turn.policy);
        let scored = rank_workers(row, &feasible, &scores, policy);
        let picked = pick_worker(&scored);
        if let Some(shadow) = self.policy.shadow_score(&facts, &loads, &mut turn.policy) {
            let by_shadow = pick_worker(&rank_workers(row, &feasible, &shadow, "shadow"));
            let about = row.job_id.to_string();
            turn.policy.compare(
                Hook::Score,
                &about,
                pick_name(picked.as_ref()),
                pick_name(by_shadow.as_ref()),
            );
        }
        let picked = picked?;
        Some((self.record(row, policy, scored, ruled_out, Some(picked.clone()), now), picked))
    }

    /// What a placement of this waiting job would look like now, with every worker of the registry.
    pub(crate) fn speculate(&self, row: &JobRow, now: Time) -> Decision {
        let affinity = self.affinity(row);
        let (feasible, ruled_out) =
            feasible_workers(row, self.registry.all(), usize::MAX, &self.settings, now);
        let facts = self.job_facts(row, now);
        let mut unkept = PolicyLog::default();
        let (mut scored, mut policy) = (Vec::new(), self.policy.live_name());
        for few in feasible.chunks(MAX_SCORED) {
            let scores;
            (scores, policy) = self.policy.score(&facts, &self.loads(few, &affinity, now), &mut unkept);
            scored
                .extend(few.iter().zip(scores).map(|(worker, score)| candidate(row, worker, score, policy)));
        }
        rank(&mut scored);
        let picked = pick_worker(&scored);
        self.record(row, policy, scored, ruled_out, picked, now)
    }

    /// As many as a policy may be shown: the best by the built-in policy.
    fn most_promising<'a>(
        &'a self,
        row: &JobRow,
        mut feasible: Vec<&'a Worker>,
        affinity: &Affinity<'_>,
        now: Time,
    ) -> Vec<&'a Worker> {
        if feasible.len() > MAX_SCORED {
            let points = |worker| LeastLoaded::points(&self.load(worker, affinity, now)) + wish(row, worker);
            feasible.sort_by(|a, b| points(b).total_cmp(&points(a)));
            feasible.truncate(MAX_SCORED);
        }
        feasible
    }

    fn loads<'a>(
        &'a self,
        workers: &[&'a Worker],
        affinity: &Affinity<'_>,
        now: Time,
    ) -> Vec<WorkerLoad<'a>> {
        workers.iter().map(|worker| self.load(worker, affinity, now)).collect()
    }

    fn load<'a>(&'a self, worker: &'a Worker, affinity: &Affinity<'_>, now: Time) -> WorkerLoad<'a> {
        let worker_id = &worker.row.facts.worker_id;
        WorkerLoad {
            prefix_share: affinity.prefix_share(worker_id),
            session_here: affinity.session_here(worker_id),
            ..self.worker_load(worker, now)
        }
    }

    /// What a policy may know of a worker.
    pub(crate) fn worker_load<'a>(&'a self, worker: &'a Worker, now: Time) -> WorkerLoad<'a> {
        let facts = &worker.row.facts;
        WorkerLoad {
            model: &facts.model,
            quantization: facts.quantization.as_deref(),
            backend: &facts.backend,
            devices: &facts.devices,
            pool: facts.pool_id.as_ref().map(PoolId::as_str),
            slots: facts.slots,
            slots_free: worker.slots_free(),
            context_length: facts.context_length,
            free_memory_bytes: worker.free_memory_bytes,
            memory_bytes: facts.vram_bytes.max(facts.ram_bytes),
            labels: self.settings.labels.of(&facts.worker_id, facts.pool_id.as_ref()),
            hour: self.settings.hour(now),
            idle_ms: worker.idle_since.map_or(0, |since| now.since(since)),
            ..WorkerLoad::default()
        }
    }

    /// What a policy may know of a job.
    pub(crate) fn job_facts<'a>(&self, row: &'a JobRow, now: Time) -> JobFacts<'a> {
        JobFacts {
            tenant: row.tenant.as_str(),
            session: row.session_id.as_ref().map(SessionId::as_str),
            model: &row.model,
            priority: row.priority,
            prompt_bytes: row.prompt_bytes,
            max_tokens: row.max_tokens,
            waited_ms: now.since(row.submitted_at),
            deadline_in_ms: row.deadline.map(|deadline| deadline.since(now)),
            tries_failed: row.tries_failed,
            hour: self.settings.hour(now),
        }
    }

    fn record(
        &self,
        row: &JobRow,
        policy: &str,
        mut scored: Vec<Candidate>,
        ruled_out: Vec<Candidate>,
        picked: Option<WorkerId>,
        now: Time,
    ) -> Decision {
        scored.extend(ruled_out);
        Decision {
            attempt: 0,
            at: now.rfc3339(),
            policy: policy.to_owned(),
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
        self.prompt_given(&run, turn.now);
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
        prefix: worker.keeper().is_some_and(|_| !job.row.prefix.is_empty()).then(|| job.row.prefix.clone()),
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

/// Feasible workers with their scores, best first.
fn rank_workers(row: &JobRow, feasible: &[&Worker], scores: &[Score], policy: &str) -> Vec<Candidate> {
    let scored = feasible.iter().zip(scores);
    let mut ranked: Vec<_> = scored.map(|(worker, score)| candidate(row, worker, *score, policy)).collect();
    rank(&mut ranked);
    ranked
}

/// Best first and by id between equals; last those that the policy keeps free of the job.
fn rank(candidates: &mut [Candidate]) {
    candidates.sort_by(|a, b| {
        let by_score = b.score.unwrap_or(f64::MIN).total_cmp(&a.score.unwrap_or(f64::MIN));
        by_score.then_with(|| a.worker_id.cmp(&b.worker_id))
    });
}

fn candidate(row: &JobRow, worker: &Worker, score: Score, policy: &str) -> Candidate {
    let facts = &worker.row.facts;
    let (score, ruled_out) = match score {
        Score::Points(points) => (Some(points + wish(row, worker)), None),
        Score::KeepFree => (None, Some(format!("the policy `{policy}` keeps it free of this job for now"))),
    };
    Candidate {
        worker_id: facts.worker_id.clone(),
        feasible: score.is_some(),
        ruled_out,
        score,
        slots_free: worker.slots_free(),
        slots: facts.slots,
    }
}

/// What the job's own wishes and past add to any score.
fn wish(row: &JobRow, worker: &Worker) -> f64 {
    let mut wish = 0.0;
    if row.placement.prefer.iter().any(|name| is_called(worker, name)) {
        wish += PREFERRED;
    }
    if row.attempt.as_ref().is_some_and(|attempt| attempt.worker_id == worker.row.facts.worker_id) {
        wish += FAILED_BEFORE;
    }
    wish
}

/// The best of the ranked.
fn pick_worker(ranked: &[Candidate]) -> Option<WorkerId> {
    ranked.first().filter(|candidate| candidate.feasible).map(|candidate| candidate.worker_id.clone())
}

/// A pick in a report.
fn pick_name(picked: Option<&WorkerId>) -> String {
    picked.map_or_else(|| "none: the job waits".to_owned(), ToString::to_string)
}
