//! Who gives way when a model needs memory, and when.
//!
//! Idle evictable workers go at once, the least recently used first. Where that is not enough, a model
//! that waits has to let the busy ones serve: loading costs seconds, so jobs are taken model by model
//! and not in the order of arrival. A worker that was ready at `r` takes new jobs until
//! `max(r + R, t + P)`, where another model has waited for its memory since `t`; then it finishes what
//! it runs and goes. R is `min_residency_ms`, P is `swap_patience_ms`, and R ≤ P.
//!
//! **The longest wait.** Models that do not fit together are served in the order in which they began
//! to wait, where a model that had to go begins anew; nobody takes from a pool what an older one waits
//! for. Let M models be in demand, J be the longest run of a job (at most `job_time_limit_ms`), S the
//! time to stop a worker and L the time to load one, both with the pool's answers before them. When a
//! model begins to wait at `t`, the present resident closes at `t + P` at the latest, and each of the
//! at most M − 2 others that have waited longer stays open for at most R, because then the patience of
//! this one is over. Each of the M − 1 changes takes at most J + S + L. So the model is served within
//!
//! ```text
//! H = P + (M − 1)·(J + S + L) + (M − 2)·R
//! ```
//!
//! While it is, each of its `s` slots begins a job at least every J. A job before which `n` others of
//! its model go is therefore begun within `⌈(n + 1) / s⌉ · (H + J)`. Spawns that fail, and pools that
//! do not answer, come on top.

use std::collections::BTreeSet;

use api_types::{ErrorCode, ErrorDetail, PoolId, WorkerId};
use serde::{Deserialize, Serialize};

use super::look::Resident;
use super::{Supply, is_pinned};
use crate::event::PoolRoom;
use crate::orchestrator::Orchestrator;
use crate::policy::{LeastLoaded, PolicyLog};
use crate::step::{Action, Notice, UnloadCause};
use crate::time::Time;
use crate::turn::Turn;
use crate::worker::Worker;

/// A device of a pool, with what the pool said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub pool_id: &'a PoolId,
    pub device: &'a str,
    pub room: &'a PoolRoom,
}

/// A worker that is to end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stop {
    /// Its pool.
    pool_id: PoolId,
    /// When the pool was last asked to stop it.
    asked: Option<Time>,
}

impl Supply {
    /// A worker is to end once it holds no run.
    pub(super) fn stop(&mut self, worker_id: &WorkerId, pool_id: PoolId) {
        self.stops.insert(worker_id.clone(), Stop { pool_id, asked: None });
    }

    /// Sets the alarm for the first stop that is to be asked for again.
    fn arm_stops(&mut self, limit_ms: u64) {
        let asked = self.stops.values().filter_map(|stop| stop.asked).min();
        let at = asked.map(|asked| asked + limit_ms);
        if self.stops_due != at {
            self.stops_due = at;
            self.stops_alarm = Some(at);
        }
    }
}

impl Orchestrator {
    /// The workers on a device that may be asked to give way to who waits since `since`, in the order
    /// in which they are to go: first the idle ones, as the policy ranks them (the least recently used
    /// first where there is no `log` to note its answers in), then those that may be told soonest.
    pub(super) fn residents(
        &self,
        place: Place<'_>,
        since: Time,
        now: Time,
        mut log: Option<&mut PolicyLog>,
    ) -> Vec<Resident> {
        let mut ranked: Vec<(f64, Resident)> = Vec::new();
        for process in place.room.processes.iter().filter(|process| process.device == place.device) {
            let Some(worker) = self.registry.get(&process.worker_id) else { continue };
            let of_pool = worker.row.facts.pool_id.as_ref() == Some(place.pool_id);
            if !of_pool || is_pinned(&worker.row.facts, &self.settings.supply) {
                continue;
            }
            let from = self.gives_way_from(worker, since, now);
            let rank = self.eviction_rank(worker, from, now, log.as_deref_mut());
            let worker_id = process.worker_id.clone();
            ranked.push((rank, Resident { worker_id, bytes: process.bytes, from }));
        }
        ranked.sort_by(|(rank, one), (other_rank, other)| {
            let by_rank = other_rank.total_cmp(rank);
            one.from.cmp(&other.from).then(by_rank).then_with(|| one.worker_id.cmp(&other.worker_id))
        });
        ranked.into_iter().map(|(_, resident)| resident).collect()
    }

    /// How readily an idle worker is given up; all busy ones alike.
    fn eviction_rank(&self, worker: &Worker, from: Time, now: Time, log: Option<&mut PolicyLog>) -> f64 {
        if from > now {
            return 0.0;
        }
        let load = self.worker_load(worker, now);
        match log {
            Some(log) => self.policy.evict(&worker.row.facts.worker_id, &load, log),
            None => LeastLoaded::evict_key(&load),
        }
    }

    /// From when a worker takes no new job for the sake of who waits since `since`.
    fn gives_way_from(&self, worker: &Worker, since: Time, now: Time) -> Time {
        let settings = &self.settings.supply;
        let idle = worker.runs.is_empty() && worker.idle_since.is_some();
        if worker.gone.is_some() || idle {
            return Time::default();
        }
        let ready_at = worker.ready_at.unwrap_or(now);
        (ready_at + settings.min_residency_ms).max(since + settings.swap_patience_ms)
    }

    /// Whether workers of a pool are being started or ended, so that its memory is about to change.
    pub(super) fn is_changing(&self, pool_id: &PoolId) -> bool {
        let draining = |worker: &Worker| {
            worker.gone.is_none() && worker.row.draining && worker.row.facts.pool_id.as_ref() == Some(pool_id)
        };
        self.is_spawning(pool_id)
            || self.supply.stops.values().any(|stop| stop.pool_id == *pool_id)
            || self.registry.all().any(draining)
    }

    /// Lets workers give way to a model: they take no new job and end with their last one.
    pub(super) fn release(&mut self, victims: &[WorkerId], for_model: &str, turn: &mut Turn) {
        let mut models = BTreeSet::new();
        for worker_id in victims {
            let Some(worker) = self.registry.get(worker_id) else { continue };
            let idle = worker.runs.is_empty();
            models.insert(worker.row.facts.model.clone());
            let cause = if idle { UnloadCause::Evicted } else { UnloadCause::Swapped };
            self.end_worker(worker_id, cause, Some(for_model.to_owned()), turn);
        }
        self.stop_released(turn);
        // What they served begins to wait now.
        self.note_wants(&models, turn.now);
    }

    /// Takes a worker out of service, to be stopped by its pool once it holds no run. One whose pool
    /// is not known here ends by itself: it hears with its next heartbeat that it is to drain.
    pub(super) fn end_worker(
        &mut self,
        worker_id: &WorkerId,
        cause: UnloadCause,
        for_model: Option<String>,
        turn: &mut Turn,
    ) {
        let Some(worker) = self.registry.get_mut(worker_id) else { return };
        worker.row.draining = true;
        worker.unload_at = None;
        turn.save_worker(&worker.row);
        let model = worker.row.facts.model.clone();
        let pool_id = worker.row.facts.pool_id.clone();
        turn.act(Action::Notify(Notice::Unload { worker_id: worker_id.clone(), model, cause, for_model }));
        if let Some(pool_id) = pool_id.filter(|pool_id| self.pools.contains_key(pool_id)) {
            self.supply.stop(worker_id, pool_id);
        }
    }

    /// Has workers stopped that are to end and hold no run any more. A pool that does not answer is asked
    /// again: a stop names its worker, so that twice does what once does.
    pub(super) fn stop_released(&mut self, turn: &mut Turn) {
        let limit_ms = self.settings.supply.stop_timeout_ms;
        for (worker_id, stop) in &mut self.supply.stops {
            let holds_runs = self.registry.get(worker_id).is_some_and(|worker| !worker.runs.is_empty());
            let waits = stop.asked.is_some_and(|asked| turn.now < asked + limit_ms);
            if waits || holds_runs {
                continue;
            }
            stop.asked = Some(turn.now);
            if let Some(pool) = self.pools.get(&stop.pool_id).cloned() {
                turn.act(Action::StopWorker { pool, worker_id: worker_id.clone() });
            }
        }
        self.supply.stops.retain(|_, stop| self.pools.contains_key(&stop.pool_id));
        self.supply.arm_stops(limit_ms);
    }

    /// A pool is done with stopping a worker. One that could not be stopped goes on draining: it hears
    /// of that with its next heartbeat.
    pub(crate) fn stop_ended(
        &mut self,
        pool_id: &PoolId,
        worker_id: &WorkerId,
        error: Option<ErrorDetail>,
        turn: &mut Turn,
    ) {
        turn.supply = true;
        self.supply.changed(pool_id);
        if self.supply.stops.remove(worker_id).is_none() {
            return turn.drop_stale("stop_ended");
        }
        let is_gone = error.as_ref().is_none_or(|error| error.code == ErrorCode::WorkerNotFound);
        if self.was_called_off(worker_id) {
            if is_gone {
                return self.called_off_ended(worker_id, turn);
            }
            // Whether anything is left of it is not known: the pool is asked again after a while.
            let stop = Stop { pool_id: pool_id.clone(), asked: Some(turn.now) };
            self.supply.stops.insert(worker_id.clone(), stop);
            return;
        }
        let draining = self.registry.get(worker_id).is_some_and(|worker| worker.row.draining);
        if is_gone && draining {
            self.lose_runs(worker_id, &stopped(worker_id), turn);
            self.forget_ended_worker(worker_id, turn);
        }
    }
}

fn stopped(worker_id: &WorkerId) -> ErrorDetail {
    let message = format!("The worker `{worker_id}` was stopped by its pool while it ran the job.");
    ErrorDetail::new(ErrorCode::WorkerLost, message)
}
