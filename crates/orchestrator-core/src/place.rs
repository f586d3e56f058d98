//! Which worker runs which job: can it, how well, which one.

use api_types::task::Decision;
use api_types::{JobId, PoolId, SessionId, WorkerId};

use crate::affinity::Affinity;
use crate::event::RunKey;
use crate::feasible::is_feasible;
use crate::job::{FIRST_EVENT_ID, Job};
use crate::orchestrator::Orchestrator;
use crate::policy::{Hook, JobFacts, LeastLoaded, MAX_SCORED, Policy, PolicyLog, WorkerLoad};
use crate::queue::{Next, Passed};
use crate::rank::{Kept, Looked, Ranked};
use crate::row::JobRow;
use crate::settings::Settings;
use crate::shortlist::Further;
use crate::step::{Action, GoOn, OpenStream, Write};
use crate::time::Time;
use crate::turn::Turn;
use crate::worker::Worker;

impl Orchestrator {
    /// Hands out jobs of one model for as long as a worker has a free slot and a job fits.
    pub(crate) fn place_queued(&mut self, model: &str, turn: &mut Turn) {
        let mut passed = Passed::default();
        self.age_waiting(model, turn);
        loop {
            self.registry.refresh(&self.settings, turn.now);
            self.lift_unfit(model);
            if !self.registry.openings().has_open(model) {
                return;
            }
            let Some(next) = self.queue.next(model, &passed, &self.settings) else { return };
            match self.place_job(&next, turn) {
                Placed::Done => {}
                Placed::Unfit => self.queue.set_unfit(model, &next.group),
                Placed::KeptFree => {
                    let job = self.jobs.get(&next.job_id);
                    if !job.is_some_and(|job| passed.pass_over(&job.row)) {
                        return;
                    }
                }
            }
        }
    }

    /// Jobs that no open worker could take are looked at again when one has opened that might.
    fn lift_unfit(&mut self, model: &str) {
        for worker_id in self.registry.take_opened(model) {
            if let Some(worker) = self.registry.get(&worker_id) {
                self.queue.lift_unfit(model, |group| group.is_met_by(worker));
            }
        }
    }

    /// Whether a worker could take this job at once. The index must be up to date.
    pub(crate) fn has_opening_for(&self, row: &JobRow, now: Time) -> bool {
        self.shortlist(row, &self.affinity(row))
            .into_iter()
            .any(|worker| is_feasible(row, worker, &self.settings, now))
    }

    fn place_job(&mut self, next: &Next, turn: &mut Turn) -> Placed {
        let late = self.jobs.get(&next.job_id).and_then(|job| self.too_late(&job.row, turn.now));
        if let Some(error) = late {
            self.fail_job(next.job_id, error, turn);
            return Placed::Done;
        }
        let Some(job) = self.jobs.get(&next.job_id) else { return Placed::Unfit };
        match self.decide(&job.row, job.kept_free_after.as_ref(), turn) {
            Choice::Taken(decision, picked) => {
                self.begin_service(next);
                self.dispatch(next.job_id, &picked, *decision, turn);
                Placed::Done
            }
            Choice::KeptFree(last) => {
                if let Some(job) = self.jobs.get_mut(&next.job_id) {
                    job.kept_free_after = last;
                }
                Placed::KeptFree
            }
            Choice::Unfit => Placed::Unfit,
        }
    }

    /// Picks a worker among a few of those that run the model, and records why. Where the policy keeps
    /// all of them free, a few more are looked at, by id after `after`. A shadow policy decides beside the
    /// live one, without effect.
    pub(crate) fn decide(&self, row: &JobRow, after: Option<&WorkerId>, turn: &mut Turn) -> Choice {
        let now = turn.now;
        let affinity = self.affinity(row);
        let (feasible, ruled_out): (Vec<_>, Vec<_>) = self
            .looked_at(row, &affinity)
            .into_iter()
            .partition(|worker| is_feasible(row, worker, &self.settings, now));
        if feasible.is_empty() {
            return Choice::Unfit;
        }
        let feasible = self.most_promising(row, feasible, &affinity);
        let more = || self.further(row, &feasible, after, now);
        let mut looked = self.rank_workers(row, &feasible, ruled_out, &affinity, &mut turn.policy, now);
        let mut last = None;
        if looked.picked().is_none() {
            let more = more();
            last = more.last;
            let further =
                self.rank_workers(row, &more.feasible, Vec::new(), &affinity, &mut turn.policy, now);
            looked.add(further);
        }
        let picked = looked.picked().map(|worker| worker.row.facts.worker_id.clone());
        self.compare_shadow(row, &feasible, more, &affinity, picked.as_ref(), turn);
        match picked {
            Some(picked) => {
                Choice::Taken(Box::new(self.record(row, looked, &affinity, Kept::STORED, now)), picked)
            }
            None => Choice::KeptFree(last),
        }
    }

    fn compare_shadow<'a>(
        &'a self,
        row: &JobRow,
        feasible: &[&'a Worker],
        more: impl FnOnce() -> Further<'a>,
        affinity: &Affinity<'_>,
        picked: Option<&WorkerId>,
        turn: &mut Turn,
    ) {
        if !self.policy.asks(Hook::Score) {
            return;
        }
        let facts = self.job_facts(row, turn.now);
        let mut best = |workers: &[&'a Worker]| {
            let loads = self.loads(workers, affinity, turn.now);
            let scores = self.policy.shadow_score(&facts, &loads, &mut turn.policy)?;
            let ranking =
                workers.iter().zip(scores).map(|(worker, score)| Ranked::scripted(row, worker, score));
            let best = ranking.min_by(Ranked::order).filter(|best| best.terms.is_some());
            Some(best.map(|best| &best.worker.row.facts.worker_id))
        };
        let Some(mut by_shadow) = best(feasible) else { return };
        let more = if by_shadow.is_none() { more().feasible } else { Vec::new() };
        if !more.is_empty() {
            let Some(further) = best(&more) else { return };
            by_shadow = further;
        }
        let about = row.job_id.to_string();
        turn.policy.compare(Hook::Score, &about, pick_name(picked), pick_name(by_shadow));
    }

    /// What a placement of this waiting job would look like now, with a look at every worker of the
    /// registry.
    pub(crate) fn speculate(&self, row: &JobRow, now: Time) -> Decision {
        let affinity = self.affinity(row);
        let (feasible, ruled_out): (Vec<_>, Vec<_>) =
            self.registry.all().partition(|worker| is_feasible(row, worker, &self.settings, now));
        let looked = self.rank_workers(row, &feasible, ruled_out, &affinity, &mut PolicyLog::default(), now);
        self.record(row, looked, &affinity, Kept::SHOWN, now)
    }

    /// Ranks feasible workers by the live policy, or by the one that answers in its place.
    fn rank_workers<'a>(
        &'a self,
        row: &JobRow,
        feasible: &[&'a Worker],
        ruled_out: Vec<&'a Worker>,
        affinity: &Affinity<'_>,
        log: &mut PolicyLog,
        now: Time,
    ) -> Looked<'a> {
        let built_in = LeastLoaded.describe();
        let mut looked = Looked { ranking: Vec::new(), ruled_out, policy: built_in, is_built_in: true };
        for few in feasible.chunks(MAX_SCORED).filter(|_| self.policy.asks(Hook::Score)) {
            let (facts, loads) = (self.job_facts(row, now), self.loads(few, affinity, now));
            let (scores, policy) = self.policy.score(&facts, &loads, log);
            looked.policy = policy;
            let scored = few.iter().zip(scores);
            looked.ranking.extend(scored.map(|(worker, score)| Ranked::scripted(row, worker, score)));
        }
        looked.is_built_in = looked.policy == built_in;
        if looked.is_built_in {
            looked.ranking = feasible.iter().map(|w| Ranked::built_in(row, w, affinity)).collect();
        }
        looked.ranking.sort_by(Ranked::order);
        looked
    }

    /// As many as a policy may be shown: the best by the built-in policy.
    fn most_promising<'a>(
        &self,
        row: &JobRow,
        mut feasible: Vec<&'a Worker>,
        affinity: &Affinity<'_>,
    ) -> Vec<&'a Worker> {
        if feasible.len() > MAX_SCORED {
            let ranked = |worker| Ranked::built_in(row, worker, affinity);
            feasible.sort_by(|a, b| ranked(a).order(&ranked(b)));
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

    /// Begins an attempt of a job, which is out of the queue, on a worker.
    fn dispatch(&mut self, job_id: JobId, worker_id: &WorkerId, mut decision: Decision, turn: &mut Turn) {
        let Some(worker) = self.registry.get(worker_id) else { return };
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        job.start_attempt(&worker.row, turn.now);
        job.begin_seam(&worker.row.facts);
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
        prefix: worker.keeper().is_some_and(|_| !job.row.prefix.is_empty()).then(|| job.row.prefix.clone()),
        first_event_id: job.row.attempt.as_ref().map_or(FIRST_EVENT_ID, |attempt| attempt.first_event_id),
        time_limit_ms: job.row.deadline.map_or(limit, |deadline| limit.min(deadline.since(now))),
        goes_on: job
            .row
            .carried
            .as_ref()
            .map(|carried| GoOn { tokens: carried.tokens, seams: carried.seams.clone() }),
    }
}

/// What became of the next job in the queue.
enum Placed {
    /// It was handed out, or has ended.
    Done,
    /// No open worker could take it.
    Unfit,
    /// The policy keeps those free of it that could.
    KeptFree,
}

/// What a placement led to.
#[derive(Debug)]
pub(crate) enum Choice {
    /// This worker, for these reasons.
    Taken(Box<Decision>, WorkerId),
    /// Whoever could take it is kept free of it; the last that was looked at besides the shortlist.
    KeptFree(Option<WorkerId>),
    /// No open worker could take it.
    Unfit,
}

/// A pick in a report.
fn pick_name(picked: Option<&WorkerId>) -> String {
    picked.map_or_else(|| "none: the job waits".to_owned(), ToString::to_string)
}
