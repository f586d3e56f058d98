//! Estimates at work: when a job may end, and what its end teaches. The sums behind it are brought up to date once per turn, from what the turn touched.

use std::collections::BTreeMap;

use api_types::event::Eta;
use api_types::task::TaskStatus;
use api_types::worker::{WorkerFacts, WorkerState};
use api_types::{JobId, WorkerId};
use serde::{Deserialize, Serialize};

use crate::estimate::ledger::{Asked, Ledger, Reach, Running, Work};
use crate::estimate::{
    Basis, Engine, Estimates, Forecast, Service, Size, Took, Unsaved, cut_off_after, remaining,
};
use crate::job::Job;
use crate::orchestrator::Orchestrator;
use crate::queue::Group;
use crate::row::JobRow;
use crate::step::Write;
use crate::supply::{misplaced, suits};
use crate::time::Time;
use crate::turn::Turn;

/// A worker that takes longer than expected needs this part of what it took so far once more.
const LATE_SHARE: u64 = 4;
/// What is assumed of a worker's start that was never seen, in ms and in bytes per ms.
const PRIOR_START_MS: u64 = 3_000;
const PRIOR_BYTES_PER_MS: u64 = 300_000;
const PRIOR_UNKNOWN_MS: u64 = 30_000;

/// What the brain knows about time.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Clockwork {
    pub learnt: Estimates,
    pub ledger: Ledger,
    pub unsaved: Unsaved,
    /// Workers that read their model.
    pub loading: BTreeMap<WorkerId, Loading>,
}

/// A worker that will serve once it has read its model.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Loading {
    engine: Engine,
    /// Its pool's name; empty for none.
    pool: String,
    slots: u64,
    since: Time,
}

impl Clockwork {
    /// With what was learnt before a restart.
    pub fn new(learnt: Estimates, now: Time) -> Self {
        Self { learnt, unsaved: Unsaved::none(now), ..Self::default() }
    }

    /// Learns how long a worker of `model` on `pool` took to be ready.
    pub fn note_load(&mut self, model: &str, pool: &str, ms: u64, now: Time) {
        self.unsaved.note(now);
        self.learnt.rates.note_load(model, pool, ms);
    }

    /// Learns how long it took from asking `pool` for a worker of `model` to its readiness.
    pub fn note_spawn(&mut self, model: &str, pool: &str, ms: u64, now: Time) {
        self.unsaved.note(now);
        self.learnt.rates.note_spawn(model, pool, ms);
    }

    /// The wait, in microseconds, and the service of a job that is being admitted; with `reach`, of one
    /// that may not run everywhere. `opens`: whether a slot is free for it.
    fn warm(
        &mut self,
        row: &JobRow,
        demands: Option<&Group>,
        opens: bool,
        now: Time,
    ) -> Option<(Work, Service)> {
        let reach = demands.map(|demands| (demands, self.ledger.engines_for(row)));
        let slots = reach.as_ref().map(|(_, engines)| engines.values().sum::<u64>());
        if slots.is_none_or(|slots| slots == self.ledger.slots(&row.model)) {
            let busy = self.ledger.is_busy(&row.model, row.priority);
            let service = self.service(row, self.ledger.engines(&row.model), busy)?;
            let wait = self.ledger.wait_of_new(&row.model, &asked(row, service, now), None)?;
            return Some((wait, service));
        }
        let (demands, engines) = reach?;
        let service = self.service(row, engines.into_iter(), !opens)?;
        let reach = Reach { demands, slots: slots? };
        let wait = self.ledger.wait_of_new(&row.model, &asked(row, service, now), Some(&reach))?;
        Some((if opens { 0 } else { wait }, service))
    }

    /// What a job needs at least on whatever may take it; known as well as on the engine that least is
    /// known of, `None` where one of them is unknown.
    pub fn least(&self, row: &JobRow, is_restricted: bool) -> Option<Service> {
        let rates = &self.learnt.rates;
        let on = |engine: &Engine| rates.least(engine, size(row));
        let every: Vec<Option<Service>> = if is_restricted {
            self.ledger.engines_for(row).into_keys().map(on).collect()
        } else {
            self.ledger.engines(&row.model).map(|(engine, _)| on(engine)).collect()
        };
        let every: Option<Vec<Service>> = every.into_iter().collect();
        every?.into_iter().reduce(|one, other| Service {
            ms: one.ms.min(other.ms),
            basis: one.basis.max(other.basis),
            runs: one.runs.min(other.runs),
        })
    }

    /// An attempt on whatever may take it, weighted by slots; known as well as on the engine that least
    /// is known of.
    fn service<'a>(
        &self,
        row: &JobRow,
        engines: impl Iterator<Item = (&'a Engine, u64)>,
        waits: bool,
    ) -> Option<Service> {
        let load = self.ledger.load_of_next(&row.model, waits);
        let (mut weight, mut sum) = (0.0, 0.0);
        let mut known = Service { ms: 0.0, basis: Basis::Exact, runs: u32::MAX };
        for (engine, slots) in engines {
            if let Some(on_this) = self.learnt.rates.service(engine, size(row), load) {
                weight += slots as f64;
                sum += on_this.ms * slots as f64;
                known.basis = known.basis.max(on_this.basis);
                known.runs = known.runs.min(on_this.runs);
            }
        }
        (weight > 0.0).then(|| Service { ms: sum / weight, ..known })
    }
}

/// A worker that is to come.
struct Coming {
    /// Milliseconds until it is ready.
    left_ms: u64,
    engine: Engine,
    slots: u64,
    /// What that is known from.
    took: Took,
}

impl Coming {
    fn of(engine: Engine, slots: u64, took: Took, lasted_ms: u64) -> Self {
        // Who is late is not expected this very instant.
        let left_ms = (took.ms as u64).saturating_sub(lasted_ms).max(lasted_ms / LATE_SHARE);
        Self { left_ms, engine, slots: slots.max(1), took }
    }
}

impl Orchestrator {
    /// When a job that is being admitted may end, counted over the workers that may take it. `None` when
    /// nothing like it was seen, or no worker that may take it serves or is in sight.
    pub(crate) fn forecast(&mut self, row: &JobRow, now: Time) -> Option<Forecast> {
        let demands = self.demands(row);
        let opens = demands.is_some() && self.has_opening_for(row, now);
        let warm = self.clockwork.warm(row, demands.as_ref(), opens, now);
        let (wait, service) = warm.or_else(|| self.cold(row, None, now))?;
        let held_ms = row.not_before.map_or(0, |at| at.since(now));
        let mut forecast = Forecast {
            held_ms,
            // What lies ahead now is worked on while the job is held.
            wait_ms: (wait / 1_000).saturating_sub(held_ms),
            service_ms: service.ms.round() as u64,
            basis: service.basis,
            binding: service.is_believed(),
            eta: Eta { p50: 0, p90: 0 },
        };
        forecast.eta = self.clockwork.learnt.calibration.range(row.priority, &forecast).0;
        Some(forecast)
    }

    /// What keeps a job from some worker of its model.
    pub(crate) fn demands(&self, row: &JobRow) -> Option<Group> {
        Group::restricting(row, self.registry.openings().is_too_long_for_some(row))
    }

    /// The wait and the service of a job that no worker serves yet: on the one that will be ready first
    /// of those that may take it. `work`: of one that waits already.
    fn cold(&self, row: &JobRow, work: Option<Work>, now: Time) -> Option<(Work, Service)> {
        let coming = self.coming_for(row, now)?;
        let full = u32::try_from(coming.slots).unwrap_or(u32::MAX);
        let service = self.clockwork.learnt.rates.service(&coming.engine, size(row), full)?;
        let ledger = &self.clockwork.ledger;
        let ahead = match work {
            Some(work) => ledger.ahead_of(row.job_id, work, at(now))?,
            None => ledger.ahead_of_new(&row.model, &asked(row, service, now)),
        };
        Some((coming.left_ms * 1_000 + ahead / coming.slots, service.after(coming.took)))
    }

    /// The first worker that will serve such a job: one that reads its model, else one that a pool was
    /// asked for, else the one that the job itself brings about.
    fn coming_for(&self, row: &JobRow, now: Time) -> Option<Coming> {
        let first =
            |coming: Coming, other: Coming| if other.left_ms < coming.left_ms { other } else { coming };
        let loading = self.loading_for(row, now).reduce(first);
        let loading = loading.or_else(|| self.spawning_for(row, now).reduce(first));
        loading.or_else(|| {
            let wished = self.wished_for(row, now)?;
            let took = self.spawn_takes(&row.model, wished.pool_id.as_str(), wished.weights);
            let engine = Engine { backend: wished.backend, model: row.model.clone(), ..Engine::unknown() };
            let coming = Coming::of(engine, wished.slots, took, 0);
            Some(Coming { left_ms: coming.left_ms + wished.from.since(now), ..coming })
        })
    }

    fn loading_for(&self, row: &JobRow, now: Time) -> impl Iterator<Item = Coming> {
        let loading = self.clockwork.loading.iter().filter(|(_, loading)| loading.engine.model == row.model);
        loading.filter_map(move |(worker_id, loading)| {
            let worker = self.registry.get(worker_id).filter(|worker| suits(row, worker).is_none())?;
            let known = self.clockwork.learnt.rates.load(&loading.engine.model, &loading.pool);
            let facts = &worker.row.facts;
            let took = known.unwrap_or_else(|| prior(Some(facts.ram_bytes.max(facts.vram_bytes))));
            Some(Coming::of(loading.engine.clone(), loading.slots, took, now.since(loading.since)))
        })
    }

    fn spawning_for(&self, row: &JobRow, now: Time) -> impl Iterator<Item = Coming> {
        let named = row.placement.worker.is_some();
        let coming = self.coming(&row.model).filter(move |(backend, pool, _)| {
            !named && misplaced(&row.placement, Some(pool), Some(backend)).is_none()
        });
        coming.map(move |(backend, pool, asked_at)| {
            let took = self.spawn_takes(&row.model, pool.as_str(), None);
            let engine =
                Engine { backend: backend.to_owned(), model: row.model.clone(), ..Engine::unknown() };
            Coming::of(engine, 1, took, now.since(asked_at))
        })
    }

    /// How long it takes from the wish for a worker until it is ready.
    fn spawn_takes(&self, model: &str, pool: &str, weights: Option<u64>) -> Took {
        let rates = &self.clockwork.learnt.rates;
        rates.spawn(model, pool).or_else(|| rates.load(model, pool)).unwrap_or_else(|| prior(weights))
    }

    /// Counts an admitted job as work that came in. One that is held comes when its hold ends.
    pub(crate) fn note_arrival(&mut self, row: &JobRow, now: Time) {
        if row.not_before.is_some_and(|at| at > now) {
            return;
        }
        if let Some(forecast) = &row.eta {
            let work = forecast.service_ms * 1_000;
            self.clockwork.ledger.note_arrival(&row.model, row.priority, work, at(now));
        }
    }

    /// When a living job may end, in milliseconds from now. Waiting: from what still lies ahead of
    /// it. Handed out: what is left of the service, given how long it has lasted.
    pub fn eta(&self, job_id: JobId, now: Time) -> Option<Eta> {
        let row = &self.jobs.get(&job_id)?.row;
        let told = row.eta.as_ref()?;
        let calibration = &self.clockwork.learnt.calibration;
        let held_ms = row.not_before.map_or(0, |at| at.since(now));
        let forecast = if self.jobs.get(&job_id)?.is_held() {
            Forecast { held_ms, ..*told }
        } else if row.status == TaskStatus::Queued {
            let ledger = &self.clockwork.ledger;
            let work = told.service_ms * 1_000;
            let reach = self.demands(row).map(|_| ledger.engines_for(row).values().sum());
            let wait = ledger.wait_of(job_id, work, reach, at(now));
            let wait = wait.or_else(|| Some(self.cold(row, Some(work), now)?.0))?;
            Forecast { held_ms, wait_ms: (wait / 1_000).saturating_sub(held_ms), ..*told }
        } else {
            let service_ms = self.clockwork.ledger.running(job_id)?.service_ms? as u64;
            Forecast { held_ms: 0, wait_ms: 0, service_ms, ..*told }
        };
        let range = calibration.range(row.priority, &forecast).0;
        let attempt = row.attempt.as_ref().filter(|_| row.status != TaskStatus::Queued);
        Some(attempt.map_or(range, |attempt| remaining(range, now.since(attempt.dispatched_at))))
    }

    /// Notes what time has made of the runs that a waiting job waits for.
    pub(crate) fn pass_time(&mut self, job_id: JobId, now: Time) {
        self.clockwork.ledger.pass_time(job_id, at(now));
    }

    /// Brings the sums up to date with what the turn touched, and learns from what ended.
    pub(crate) fn keep_time(&mut self, turn: &mut Turn) {
        for worker_id in &turn.workers_touched {
            self.account_worker(worker_id, turn.now);
        }
        for job_id in &turn.jobs_touched {
            self.account_job(*job_id, turn.now);
            self.follow_live(*job_id);
        }
        if self.clockwork.unsaved.is_due(!turn.step.writes.is_empty(), turn.now) {
            turn.write(Write::PutEstimates(Box::new(self.clockwork.learnt.clone())));
        }
    }

    /// What was learnt since it was last written, to be written at an orderly stop.
    pub fn unsaved_estimates(&self) -> Option<Write> {
        let learnt = &self.clockwork.learnt;
        self.clockwork.unsaved.any().then(|| Write::PutEstimates(Box::new(learnt.clone())))
    }

    fn account_worker(&mut self, worker_id: &WorkerId, now: Time) {
        let Some(worker) = self.registry.get(worker_id) else {
            self.clockwork.loading.remove(worker_id);
            return self.clockwork.ledger.remove_worker(worker_id);
        };
        let facts = &worker.row.facts;
        let state = worker.state(&self.settings, now);
        let slots = if state == WorkerState::Ready { u64::from(facts.slots) } else { 0 };
        self.clockwork.ledger.put_worker(facts, slots);
        if state == WorkerState::Loading {
            self.clockwork.loading.entry(worker_id.clone()).or_insert_with(|| Loading {
                engine: Engine::of(facts),
                pool: facts.pool_id.as_ref().map(ToString::to_string).unwrap_or_default(),
                slots: u64::from(facts.slots),
                since: now,
            });
        } else if let Some(loading) = self.clockwork.loading.remove(worker_id)
            && state == WorkerState::Ready
        {
            let took_ms = now.since(loading.since);
            self.clockwork.note_load(&loading.engine.model, &loading.pool, took_ms, now);
        }
    }

    fn account_job(&mut self, job_id: JobId, now: Time) {
        let Some(job) = self.jobs.get(&job_id) else { return self.account_ended(job_id, now) };
        match job.row.status {
            // Until its hold ends it is in nobody's way.
            TaskStatus::Queued if job.is_held() => {}
            TaskStatus::Queued if self.clockwork.ledger.is_waiting(job_id) => {}
            TaskStatus::Queued => {
                let row = &job.row;
                let work = row.eta.as_ref().map(|forecast| forecast.service_ms * 1_000);
                let demands = self.demands(row);
                let ledger = &mut self.clockwork.ledger;
                ledger.put_waiting(job_id, &row.model, row.priority, &row.tenant, demands, work);
            }
            TaskStatus::Dispatched | TaskStatus::Running => {
                if self.clockwork.ledger.running(job_id).is_none() {
                    let run = self.running(job, now);
                    self.clockwork.ledger.put_running(job_id, &job.row.model, run);
                }
            }
            TaskStatus::Completed | TaskStatus::Failed | TaskStatus::Cancelled => {}
        }
    }

    /// What is expected of a run that has just begun (or is taken up after a restart).
    fn running(&self, job: &Job, now: Time) -> Running {
        let attempt = job.row.attempt.as_ref();
        let worker = attempt.and_then(|attempt| self.registry.get(&attempt.worker_id));
        let load = worker.map_or(1, |worker| worker.slots_busy().max(1));
        let rates = &self.clockwork.learnt.rates;
        let serving = attempt.and_then(|attempt| self.clockwork.ledger.engine(&attempt.worker_id));
        let service = match (serving, worker) {
            (Some(engine), _) => rates.service(engine, size(&job.row), load),
            // After a restart it has not been heard of, and runs all the same.
            (None, Some(worker)) => rates.service(&Engine::of(&worker.row.facts), size(&job.row), load),
            (None, None) => None,
        };
        let service = service.map(|service| service.ms);
        let began = attempt.map_or(now, |attempt| attempt.dispatched_at);
        let began = at(began);
        Running { began, end: service.map(|ms| began + micros(ms)), service_ms: service, load }
    }

    fn account_ended(&mut self, job_id: JobId, now: Time) {
        let run = self.clockwork.ledger.remove(job_id);
        if let Some(row) = self.memory.job(job_id) {
            let learnt = learn(&mut self.clockwork, row, run, |id| {
                self.registry.get(id).map(|worker| (&worker.row.facts, worker.slots_busy() + 1))
            });
            if learnt {
                self.clockwork.unsaved.note(now);
            }
        }
    }
}

/// What the end of a job teaches: rates by what its worker reported, ranges by how long it took.
/// Returns whether it teaches anything.
fn learn<'a>(
    clockwork: &mut Clockwork,
    row: &JobRow,
    run: Option<Running>,
    worker: impl Fn(&WorkerId) -> Option<(&'a WorkerFacts, u32)>,
) -> bool {
    let Clockwork { learnt, ledger, .. } = clockwork;
    let trusted = row.eta.as_ref().filter(|forecast| forecast.basis < Basis::Backend);
    if row.status != TaskStatus::Completed {
        let Some(bound) = cut_off_after(row) else { return false };
        if let Some(forecast) = trusted {
            learnt.calibration.note_at_least(row.priority, forecast, bound);
        }
        if let (Some(run), Some(attempt)) = (run, &row.attempt)
            && let Some(engine) = ledger.engine(&attempt.worker_id)
        {
            learnt.rates.note_cut(engine, size(row), run.load);
        }
        return true;
    }
    let (Some(end), Some(attempt), Some(ended_at)) = (&row.end, &row.attempt, row.ended_at) else {
        return false;
    };
    let attempt_ms = ended_at.since(attempt.dispatched_at);
    // The tokens of a run that was carried on are those of several workers, its times of the last.
    let alone = row.carried.is_none();
    if let Some((facts, load_now)) = worker(&attempt.worker_id).filter(|_| alone) {
        let load = run.map_or(load_now, |run| (run.load + load_now).div_ceil(2));
        match ledger.engine(&attempt.worker_id) {
            Some(engine) => learnt.rates.note_run(engine, size(row), end, attempt_ms, load),
            None => learnt.rates.note_run(&Engine::of(facts), size(row), end, attempt_ms, load),
        }
    }
    if was_belied(row, ended_at) {
        learnt.probes.open(&row.model);
    }
    if let Some(forecast) = trusted {
        learnt.calibration.note_end(row.priority, forecast, ended_at.since(row.submitted_at));
        learnt.calibration.note_service(row.priority, forecast.service_ms as f64, attempt_ms);
    }
    true
}

/// Whether a job was let in although it was expected to miss its deadline, and kept it.
fn was_belied(row: &JobRow, ended_at: Time) -> bool {
    let let_in = |deadline: Time| {
        let given_ms = deadline.since(row.submitted_at);
        row.eta.is_some_and(|forecast| !forecast.binding && forecast.eta.p50 > given_ms)
    };
    row.deadline.is_some_and(|deadline| ended_at <= deadline && let_in(deadline))
}

/// How long a worker is taken to need that was never seen to start: a few seconds, and its weights at
/// the pace of a plain disk; half a minute where not even these are known.
fn prior(weights: Option<u64>) -> Took {
    let ms = match weights.filter(|bytes| *bytes > 0) {
        Some(bytes) => PRIOR_START_MS + bytes / PRIOR_BYTES_PER_MS,
        None => PRIOR_UNKNOWN_MS,
    };
    Took { ms: ms as f64, runs: 0 }
}

fn asked(row: &JobRow, service: Service, now: Time) -> Asked<'_> {
    Asked { class: row.priority, tenant: &row.tenant, work: micros(service.ms), now: at(now) }
}

const fn size(row: &JobRow) -> Size {
    Size { prompt_bytes: row.prompt_bytes, max_tokens: row.max_tokens }
}

fn micros(ms: f64) -> Work {
    (ms.max(0.0) * 1_000.0).round() as Work
}

const fn at(now: Time) -> Work {
    now.0.saturating_mul(1_000)
}
