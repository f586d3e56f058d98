//! What must hold of workers that are made and taken away, and of where jobs are placed.

use std::collections::{BTreeMap, BTreeSet};

use api_types::{PoolId, WorkerId};
use orchestrator_core::{Action, Notice, RunKey, SpawnRow, Step, UnloadCause, Write};

use super::Checks;
use crate::client::client_of;
use crate::world::World;

/// Workers that were asked for, kept apart from the brain.
#[derive(Debug, Default)]
pub struct Spawns {
    /// Every id that was ever written down.
    ids: BTreeSet<WorkerId>,
    /// What is written down or about to be.
    rows: BTreeMap<WorkerId, (PoolId, String)>,
    /// Asked for by the living orchestrator.
    asked: BTreeSet<WorkerId>,
}

impl Spawns {
    /// A new orchestrator finds these rows.
    pub fn restart<'a>(&mut self, rows: impl Iterator<Item = &'a SpawnRow>) {
        self.asked.clear();
        self.rows =
            rows.map(|row| (row.worker_id.clone(), (row.pool_id.clone(), row.model.clone()))).collect();
    }

    fn written(&mut self, write: &Write) -> Option<String> {
        match write {
            Write::PutSpawn(row) => {
                self.rows.insert(row.worker_id.clone(), (row.pool_id.clone(), row.model.clone()));
                let new = self.ids.insert(row.worker_id.clone());
                (!new).then(|| format!("{} is the id of two workers", row.worker_id))
            }
            Write::DeleteSpawn(worker_id) => {
                self.rows.remove(worker_id);
                None
            }
            _ => None,
        }
    }

    fn asked(&mut self, worker_id: &WorkerId) -> Option<String> {
        if !self.rows.contains_key(worker_id) {
            return Some(format!("{worker_id} is asked for and not written down"));
        }
        let new = self.asked.insert(worker_id.clone());
        (!new).then(|| format!("{worker_id} is asked for twice"))
    }
}

impl World {
    /// I15: workers are made once, within the memory of their pools, and taken away only when nobody
    /// needs them. A policy never places a job where it cannot run.
    pub fn check_supply(&mut self, step: &Step) {
        let mut checks = std::mem::take(&mut self.checks);
        for write in &step.writes {
            checks.note("I15", |checks| checks.spawns.written(write));
        }
        for action in &step.actions {
            match action {
                Action::SpawnWorker { pool, worker_id, .. } => {
                    checks.note("I15", |checks| checks.spawns.asked(worker_id));
                    checks.note("I15", |checks| self.overcommitted(&pool.pool_id, checks));
                }
                Action::StopWorker { worker_id, .. } => {
                    checks.note("I15", |_| self.busy(worker_id, "stopped"))
                }
                Action::Notify(Notice::Unload { worker_id, cause, .. }) => {
                    checks.note("I15", |checks| self.unloaded_early(worker_id, *cause, checks));
                    checks.is_to_leave(worker_id);
                }
                Action::OpenStream(open) => checks.note("I7", |_| self.misplaced(&open.run)),
                _ => {}
            }
        }
        self.checks = checks;
    }

    /// What the brain believes to run or asked for must fit into a pool together.
    fn overcommitted(&self, pool_id: &PoolId, checks: &Checks) -> Option<String> {
        let pool = self.pool_index(pool_id);
        let here = &self.pools[pool];
        let brain = &self.daemon.as_ref()?.brain;
        let asked = checks.spawns.rows.iter().filter(|(_, (at, _))| at == pool_id);
        let mut workers: BTreeMap<&WorkerId, u64> =
            asked.map(|(id, (_, model))| (id, here.need(model))).collect();
        let known = self.living_in(pool).filter(|(_, worker, _)| brain.worker_row(&worker.id).is_some());
        workers.extend(known.map(|(_, worker, home)| (&worker.id, home.bytes)));
        let bytes: u64 = workers.values().sum();
        let memory = here.plan.memory;
        (bytes > memory).then(|| format!("{pool_id} has {memory} bytes and is to hold {workers:?}"))
    }

    fn busy(&self, worker_id: &WorkerId, what: &str) -> Option<String> {
        let daemon = self.daemon.as_ref()?;
        let workers = daemon.brain.workers(self.time());
        let busy = workers.iter().find(|worker| worker.facts.worker_id == *worker_id)?.slots_busy;
        (busy > 0).then(|| format!("{worker_id} is {what} with {busy} busy slots"))
    }

    fn unloaded_early(&self, worker_id: &WorkerId, cause: UnloadCause, checks: &Checks) -> Option<String> {
        let supply = &self.plan.settings.supply;
        let since = checks.known.get(worker_id).map(|known| (known.ready_since, known.used_at));
        let (ready_since, used_at) = since.unwrap_or_default();
        let place = self.worker_index(worker_id);
        if self.workers[place].home.is_none() {
            return Some(format!("{worker_id} is taken away, and is not to be"));
        }
        let passed = |at: Option<orchestrator_core::Time>| at.map(|at| self.time().since(at));
        let too_early = match cause {
            UnloadCause::Idle => match (supply.keep_alive_ms, passed(used_at.max(ready_since))) {
                (None, _) => true,
                (Some(keep_ms), Some(idle_ms)) => idle_ms < keep_ms,
                (Some(_), None) => false,
            },
            UnloadCause::Swapped => passed(ready_since).is_some_and(|ms| ms < supply.min_residency_ms),
            UnloadCause::Evicted => false,
        };
        let busy = (cause != UnloadCause::Swapped).then(|| self.busy(worker_id, "unloaded")).flatten();
        busy.or_else(|| too_early.then(|| format!("{worker_id} is taken away too early: {cause:?}")))
    }

    /// Why a run must not go where it goes.
    fn misplaced(&self, run: &RunKey) -> Option<String> {
        let plan = &self.clients[client_of(run.job_id)].plan;
        let worker = &self.workers[self.worker_index(&run.worker_id)];
        let pool = worker.home.map(|home| &self.pools[home.pool].id);
        if worker.id != run.worker_id || worker.plan.model != plan.model {
            return Some(format!("{run:?} wants {} and gets {}", plan.model, worker.plan.model));
        }
        let wanted = &plan.placement;
        let elsewhere = wanted.pool.as_ref().is_some_and(|wanted| Some(wanted) != pool);
        let avoided = pool.is_some_and(|pool| wanted.avoid.iter().any(|name| name == pool.as_str()));
        (elsewhere || avoided).then(|| format!("{run:?} is placed on {pool:?} and asked for {wanted:?}"))
    }

    /// A worker that its pool ends for the living orchestrator holds no run that a job waits for.
    pub fn check_nothing_runs(&mut self, life: u64, place: usize) {
        let worker = &self.workers[place];
        let waits = |stored: &&crate::store::Stored| {
            let attempt = stored.row.attempt.as_ref();
            let here = attempt.is_some_and(|attempt| {
                attempt.worker_id == worker.id && worker.is_running((stored.row.job_id, attempt.attempt))
            });
            here && !stored.row.status.is_terminal()
                && stored.row.status != api_types::task::TaskStatus::Queued
        };
        let waiting = self.store.jobs.values().find(waits).map(|stored| stored.row.job_id);
        if let Some(job_id) = waiting.filter(|_| life == self.life && self.daemon.is_some()) {
            let text = format!("{} is stopped while it runs {job_id}", worker.id);
            self.checks.fail("I15", text);
        }
    }

    /// At its start and at the end an orchestrator goes by the policies and sessions on disk.
    pub fn check_rows(&mut self) {
        let Some(daemon) = &self.daemon else { return };
        let in_force = daemon.brain.policies().rows;
        if in_force != self.store.policies {
            let text = format!("{in_force:?} are in force, {:?} are on disk", self.store.policies);
            self.checks.fail("I1", text);
        }
        let now = self.time();
        let forgotten = self.store.sessions.values().find(|row| {
            let lives = now.since(row.last_used_at) < self.plan.settings.sessions.ttl_ms;
            lives && daemon.brain.session(&row.tenant, &row.session_id, now).is_none()
        });
        if let Some(row) = forgotten {
            let text = format!("the session {} is on disk and not known", row.session_id);
            self.checks.fail("I1", text);
        }
    }

    /// Once the faults are over, what can be served is.
    pub fn check_late_clients(&self, checks: &mut Checks) {
        for (number, client) in self.clients.iter().enumerate().filter(|(_, client)| client.plan.at.is_none())
        {
            let stored = client.job.and_then(|job_id| self.store.jobs.get(&job_id));
            let status = stored.map(|stored| stored.row.status);
            let gave_up = stored.is_some_and(|stored| stored.row.workers_lost.len() > 1);
            let served = status == Some(api_types::task::TaskStatus::Completed);
            if !(served || gave_up || client.is_refused) {
                let error = stored.and_then(|stored| stored.row.error.clone());
                let text = format!("client {number} comes after all faults and gets {status:?}: {error:?}");
                checks.fail("I6", text);
            }
        }
    }
}
