//! Estimates at work: when a job may end, whether its deadline can be kept, and what its end
//! teaches. The sums behind it are brought up to date once per turn, from what the turn touched.

use std::collections::BTreeMap;

use api_types::event::Eta;
use api_types::task::TaskStatus;
use api_types::worker::{WorkerFacts, WorkerState};
use api_types::{ErrorCode, ErrorDetail, JobId, WorkerId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::estimate::ledger::{Asked, Ledger, Running, Work};
use crate::estimate::{
    Basis, Engine, Estimates, Forecast, Service, Size, Unsaved, cut_off_after, remaining,
};
use crate::job::Job;
use crate::orchestrator::Orchestrator;
use crate::row::JobRow;
use crate::step::Write;
use crate::time::Time;
use crate::turn::Turn;

/// The longest time after which a job that was refused is asked to try again, in ms.
const LONGEST_RETRY_MS: u64 = 60_000;

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

    /// When a worker that reads its model will have done so, where such loads were seen before.
    fn ready_at(&self, loading: &Loading) -> Option<Time> {
        let load_ms = self.learnt.rates.load_ms(&loading.engine.model, &loading.pool)? as u64;
        Some(loading.since + load_ms)
    }

    /// The wait, in microseconds, and the service of a job that has to wait for a worker of so many slots until `ready_at`.
    fn after(
        &self,
        ready_at: Time,
        engine: &Engine,
        slots: u64,
        row: &JobRow,
        now: Time,
    ) -> Option<(Work, Service)> {
        let full = u32::try_from(slots).unwrap_or(u32::MAX);
        let service = self.learnt.rates.service(engine, size(row), full)?;
        let work = micros(service.ms);
        let asked = Asked { class: row.priority, tenant: &row.tenant, work, now: at(now) };
        let ahead = self.ledger.ahead_of_new(&row.model, &asked) / slots.max(1);
        Some((ready_at.since(now) * 1_000 + ahead, service))
    }

    /// The wait, in microseconds, and the service of a job that is being admitted.
    fn warm(&mut self, row: &JobRow, now: Time) -> Option<(Work, Service)> {
        let busy = self.ledger.is_busy(&row.model, row.priority);
        let load = self.ledger.load_of_next(&row.model, busy);
        let service = self.service(row, load)?;
        let asked =
            Asked { class: row.priority, tenant: &row.tenant, work: micros(service.ms), now: at(now) };
        let wait = self.ledger.wait_of_new(&row.model, &asked)?;
        Some((wait, service))
    }

    /// An attempt on whatever serves the model, weighted by slots; known as well as on the engine that
    /// least is known of.
    fn service(&self, row: &JobRow, load: u32) -> Option<Service> {
        let (mut weight, mut sum) = (0.0, 0.0);
        let mut known = Service { ms: 0.0, basis: Basis::Exact, runs: u32::MAX };
        for (engine, slots) in self.ledger.engines(&row.model) {
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

impl Orchestrator {
    /// When a job that is being admitted may end. `None` when nothing like it was seen, when no
    /// worker serves its model or is about to, or when it may not run on all that do.
    pub(crate) fn forecast(&mut self, row: &JobRow, now: Time) -> Option<Forecast> {
        if is_restricted(row) || self.registry.openings().is_too_long_for_some(row) {
            return None;
        }
        let warm = self.clockwork.warm(row, now);
        let (wait, service) = warm.or_else(|| self.cold(row, now))?;
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

    /// The wait and the service of a job whose model no worker serves yet: on the one that reads it
    /// and will be ready first, else on the one that a pool was asked for. Before either is known to
    /// come, nothing is known.
    fn cold(&self, row: &JobRow, now: Time) -> Option<(Work, Service)> {
        let clockwork = &self.clockwork;
        let of_model = clockwork.loading.values().filter(|loading| loading.engine.model == row.model);
        let loading = of_model.filter_map(|loading| Some((clockwork.ready_at(loading)?, loading)));
        if let Some((ready_at, first)) = loading.min_by_key(|(ready_at, _)| *ready_at) {
            return clockwork.after(ready_at, &first.engine, first.slots, row, now);
        }
        let coming = self.coming(&row.model).filter_map(|(backend, pool, asked_at)| {
            let spawn_ms = clockwork.learnt.rates.spawn_ms(&row.model, pool.as_str())? as u64;
            Some((asked_at + spawn_ms, backend))
        });
        let (ready_at, backend) = coming.min()?;
        let engine = Engine { backend: backend.to_owned(), model: row.model.clone(), ..Engine::unknown() };
        clockwork.after(ready_at, &engine, 1, row, now)
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
            let wait = self.clockwork.ledger.wait_of(job_id, told.service_ms * 1_000, at(now))?;
            Forecast { held_ms, wait_ms: (wait / 1_000).saturating_sub(held_ms), ..*told }
        } else {
            let service_ms = self.clockwork.ledger.running(job_id)?.service_ms? as u64;
            Forecast { held_ms: 0, wait_ms: 0, service_ms, ..*told }
        };
        let range = calibration.range(row.priority, &forecast).0;
        let attempt = row.attempt.as_ref().filter(|_| row.status != TaskStatus::Queued);
        Some(attempt.map_or(range, |attempt| remaining(range, now.since(attempt.dispatched_at))))
    }

    /// Refuses a job whose estimated end misses its deadline. An unknown estimate admits, and so
    /// does one that is not binding. What the rates alone speak against is let through from time to
    /// time as a probe, whose estimate binds nobody: see [`Probes`](crate::estimate::Probes).
    ///
    /// # Errors
    /// `DEADLINE_UNMET` with the estimate.
    pub(crate) fn check_deadline(&mut self, row: &mut JobRow, now: Time) -> Result<(), ErrorDetail> {
        let Some(deadline) = row.deadline else { return Ok(()) };
        let given_ms = deadline.since(row.submitted_at);
        if let Some(until) = row.not_before.filter(|until| *until >= deadline) {
            return Err(held_too_long(given_ms, until.since(row.submitted_at)));
        }
        let Some(forecast) = row.eta.as_mut().filter(|forecast| forecast.binding) else { return Ok(()) };
        let (eta, calibrated) = self.clockwork.learnt.calibration.range(row.priority, forecast);
        let (needed_ms, by) = if calibrated { (eta.p90, "p90") } else { (eta.p50, "p50") };
        if needed_ms <= given_ms {
            return Ok(());
        }
        let error = deadline_unmet(given_ms, eta, by, self.queue.len());
        let working_ms = needed_ms.saturating_sub(forecast.held_ms);
        let alone_ms =
            forecast.held_ms + working_ms.saturating_mul(forecast.service_ms) / forecast.expected_ms();
        if alone_ms <= given_ms {
            // It is the queue that is too long: once that much of it is done, the same request fits.
            let error = error.with_retry_after_ms((needed_ms - given_ms).min(LONGEST_RETRY_MS));
            return Err(ErrorDetail { retriable: true, ..error });
        }
        if forecast.held_ms.saturating_add(forecast.wait_ms) >= given_ms {
            // It would not even begin, and teach nothing.
            return Err(error);
        }
        self.clockwork.unsaved.note(now);
        let is_probe = self.clockwork.learnt.probes.ask(&row.model, given_ms, now);
        forecast.binding &= !is_probe;
        if is_probe { Ok(()) } else { Err(error) }
    }

    /// Whether a waiting job could not end before its deadline even if it were handed out now and
    /// were faster than nineteen in twenty.
    pub(crate) fn too_late(&self, row: &JobRow, now: Time) -> Option<ErrorDetail> {
        let (deadline, forecast) = (row.deadline?, row.eta.as_ref().filter(|forecast| forecast.binding)?);
        let fastest = self.clockwork.learnt.calibration.fastest(row.priority);
        let needed_ms = (forecast.service_ms as f64 * fastest) as u64;
        (deadline.since(now) < needed_ms).then(|| cannot_be_kept(row, deadline, needed_ms, now))
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
                self.clockwork.ledger.put_waiting(job_id, &row.model, row.priority, &row.tenant, work);
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

/// Whether a job may not run on every worker of its model.
fn is_restricted(row: &JobRow) -> bool {
    let placement = &row.placement;
    placement.pool.is_some()
        || placement.worker.is_some()
        || !placement.require.is_empty()
        || !placement.avoid.is_empty()
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

fn deadline_unmet(given_ms: u64, eta: Eta, by: &str, queue_depth: u64) -> ErrorDetail {
    let message = format!(
        "The job would likely end after {} ms (half of such jobs) to {} ms (nine in ten); its deadline is {given_ms} ms.",
        eta.p50, eta.p90
    );
    ErrorDetail::new(ErrorCode::DeadlineUnmet, message)
        .with_field("deadline_ms")
        .with_details(json!({
            "deadline_ms": given_ms, "eta_ms": eta, "judged_by": by, "queue_depth": queue_depth
        }))
        .with_hint("Give a later `deadline_ms`, ask for fewer tokens, or try again when less is queued.")
}

fn held_too_long(given_ms: u64, held_ms: u64) -> ErrorDetail {
    let message =
        format!("The policy holds the job for {held_ms} ms, which is past its deadline of {given_ms} ms.");
    ErrorDetail::new(ErrorCode::DeadlineUnmet, message)
        .with_field("deadline_ms")
        .with_details(json!({ "deadline_ms": given_ms, "held_ms": held_ms }))
        .with_hint("Give a later `deadline_ms`, or leave it out; `rbees policy show` shows the policy.")
}

fn cannot_be_kept(row: &JobRow, deadline: Time, needed_ms: u64, now: Time) -> ErrorDetail {
    let given_ms = deadline.since(row.submitted_at);
    let message = format!(
        "The job waited too long: {} ms are left of its deadline of {given_ms} ms, and it needs at least {needed_ms} ms.",
        deadline.since(now)
    );
    ErrorDetail::new(ErrorCode::DeadlineExceeded, message)
        .with_details(json!({
            "deadline_ms": given_ms, "elapsed_ms": now.since(row.submitted_at), "needed_ms": needed_ms
        }))
        .with_hint("Give a later `deadline_ms`, or ask for fewer tokens.")
}
