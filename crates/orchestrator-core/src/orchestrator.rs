//! The brain's front door: routes events to those who decide, and decides nothing itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use api_types::task::TaskStatus;
use api_types::{Incarnation, JobId, PoolId, WorkerId};
use serde::{Deserialize, Serialize};

use crate::alarms::{Alarms, Subject};
use crate::ended::Memory;
use crate::eta::Clockwork;
use crate::event::Event;
use crate::job::Job;
use crate::live::Live;
use crate::model::Catalogs;
use crate::policy::{Failed, NoScripts, PolicySlot, PolicyStanding, Scripts};
use crate::prefix::PrefixIndex;
use crate::queue::Queue;
use crate::quota::Tenants;
use crate::register::{Beat, Introduction};
use crate::registry::Registry;
use crate::retry::Budget;
use crate::row::{PoolRow, Rows};
use crate::session::Sessions;
use crate::settings::Settings;
use crate::step::{Action, Answer, Notice, Step, Write};
use crate::supply::Supply;
use crate::time::Time;
use crate::turn::{Submitted, Turn};

/// The whole state of the brain. One owner, no locks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orchestrator {
    pub(crate) settings: Settings,
    pub(crate) policy: PolicySlot,
    /// Boxed: a job is large, and a map moves what it holds.
    pub(crate) jobs: BTreeMap<JobId, Box<Job>>,
    pub(crate) queue: Queue,
    pub(crate) tenants: Tenants,
    pub(crate) sessions: Sessions,
    pub(crate) registry: Registry,
    pub(crate) prefixes: PrefixIndex,
    pub(crate) pools: BTreeMap<PoolId, PoolRow>,
    pub(crate) catalogs: Catalogs,
    pub(crate) supply: Supply,
    pub(crate) memory: Memory,
    pub(crate) budget: Budget,
    pub(crate) clockwork: Clockwork,
    pub(crate) last_number: u64,
    pub(crate) alarms: Alarms,
    pub(crate) live: Live,
    depth_told: u64,
    /// When the last event or timeout was handled.
    pub(crate) seen: Time,
}

impl Orchestrator {
    /// The brain as of the last commit, and what is to be done to go on from there.
    pub fn recover(settings: Settings, rows: Rows, now: Time) -> (Self, Step) {
        Self::recover_with(settings, rows, Arc::new(NoScripts), now)
    }

    /// As [`Self::recover`], with a language for policies that are scripts.
    pub fn recover_with(
        settings: Settings,
        rows: Rows,
        scripts: Arc<dyn Scripts>,
        now: Time,
    ) -> (Self, Step) {
        let mut brain = Self {
            budget: Budget::full(&settings.retry, now),
            settings,
            policy: PolicySlot::new(rows.policies.clone(), scripts),
            jobs: BTreeMap::new(),
            queue: Queue::default(),
            tenants: Tenants::default(),
            sessions: Sessions::default(),
            registry: Registry::new(Incarnation(1)),
            prefixes: PrefixIndex::default(),
            pools: BTreeMap::new(),
            catalogs: Catalogs::new(),
            supply: Supply::default(),
            memory: Memory::default(),
            clockwork: Clockwork::default(),
            last_number: 0,
            alarms: Alarms::default(),
            live: Live::default(),
            depth_told: 0,
            seen: now,
        };
        let mut turn = Turn::new(now);
        brain.take_rows(rows, &mut turn);
        let step = brain.settle(turn);
        (brain, step)
    }

    /// Takes in one event. The driver commits the step's writes, then performs its actions.
    pub fn handle_event(&mut self, event: Event, now: Time) -> Step {
        let mut turn = Turn::new(now);
        self.route(event, &mut turn);
        self.settle(turn)
    }

    fn route(&mut self, event: Event, turn: &mut Turn) {
        match event {
            Event::Submit(submission) => self.submit(submission, turn),
            Event::Cancel { request, job_id } => self.cancel(request, job_id, turn),
            Event::Abandon { job_id } => self.abandon(job_id, turn),
            Event::Withdraw { job_id } => self.withdraw(job_id, turn),
            Event::ReadersChanged { job_id, readers } => self.readers_changed(job_id, readers, turn),
            Event::WorkerReady { request, facts, status, runs, secret } => {
                self.worker_ready(request, Introduction { facts: *facts, status, runs, secret }, turn);
            }
            Event::WorkerHeartbeat {
                request,
                worker_id,
                incarnation,
                instance,
                status,
                runs,
                free_memory_bytes,
                prefixes,
            } => {
                let beat =
                    Beat { worker_id, incarnation, instance, status, runs, free_memory_bytes, prefixes };
                self.worker_heartbeat(request, beat, turn);
            }
            Event::WorkerFailed { request, worker_id, instance, error } => {
                self.worker_failed(request, &worker_id, instance, error, turn);
            }
            Event::DrainWorker { request, worker_id } => self.drain_worker(request, &worker_id, turn),
            Event::FirstToken(run) => self.first_token(&run, turn),
            Event::StreamEnded { run, end } => self.stream_ended(&run, end, turn),
            Event::StreamFailed { run, error } => self.stream_failed(&run, error, turn),
            Event::StreamBroken { run, cause } => self.stream_broken(&run, cause, turn),
            Event::Salvaged { run, kept } => self.salvaged(&run, &kept, turn),
            Event::PutPool { request, pool } => self.put_pool(request, pool, turn),
            Event::RemovePool { request, pool_id } => self.remove_pool(request, pool_id, turn),
            Event::SetPolicy { request, change } => self.set_policy(request, change, turn),
            Event::PoolModels { pool_id, models } => self.pool_models(pool_id, models, turn),
            Event::PoolSeen { pool_id, ask, room } => self.pool_seen(pool_id, ask, room, turn),
            Event::PoolSilent { pool_id, ask, error } => self.pool_silent(pool_id, ask, error, turn),
            Event::SpawnEnded { pool_id, worker_id, error } => {
                self.spawn_ended(&pool_id, &worker_id, error, turn);
            }
            Event::StopEnded { pool_id, worker_id, error } => {
                self.stop_ended(&pool_id, &worker_id, error, turn);
            }
            Event::DeleteSession { request, tenant, session_id } => {
                self.delete_session(request, tenant, session_id, turn);
            }
        }
    }

    /// Does what is due. Call when `poll_timeout` has passed, after the events that have arrived.
    pub fn handle_timeout(&mut self, now: Time) -> Step {
        let mut turn = Turn::new(now);
        let stood_still = self.poll_timeout().is_some_and(|at| now.since(at) > self.settings.lease.stall_ms);
        if stood_still {
            self.excuse_silence(&mut turn);
        }
        for subject in self.alarms.take_due(now) {
            match subject {
                Subject::Job(job_id) => self.job_due(job_id, &mut turn),
                Subject::Worker(worker_id) => self.worker_due(&worker_id, &mut turn),
                Subject::LiveReaders => turn.live_due = true,
                Subject::Supply | Subject::Stops => turn.supply = true,
                // Every turn looks whether it is time to write.
                Subject::Learnt => {}
            }
        }
        self.settle(turn)
    }

    /// Whether every index says what a look at everything finds, as of the last event or timeout.
    /// For tests and the simulation.
    pub fn indexes_are_exact(&self) -> bool {
        let is_current = |incarnation| self.registry.is_living(incarnation);
        self.registry.openings_are_exact(&self.settings, self.seen)
            && self.prefixes.incarnations().all(is_current)
    }

    /// Makes the next event or timeout take the branches that it took when its step was recorded
    /// with these [`Step::interrupted`].
    pub fn cut_next(&mut self, interrupted: Vec<u32>) {
        self.policy.cut_next(interrupted);
    }

    /// Makes policies of their texts after the brain was read from a journal.
    pub fn use_scripts(&mut self, scripts: Arc<dyn Scripts>) {
        self.policy.use_scripts(scripts);
    }

    /// The policies in force and how they do.
    pub fn policies(&self) -> PolicyStanding {
        self.policy.standing()
    }

    /// When something is due next.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.alarms.next()
    }

    /// What every turn ends with: free slots find jobs, the submitter hears where its job stands,
    /// alarms are set, watchers are told.
    fn settle(&mut self, mut turn: Turn) -> Step {
        self.seen = turn.now;
        let before_placement = turn.step.actions.len();
        let models = std::mem::take(&mut turn.to_place);
        for model in &models {
            self.place_queued(model, &mut turn);
        }
        self.make_capacity(&models, &mut turn);
        self.keep_time(&mut turn);
        if turn.live_due {
            self.tell_live(&mut turn);
        }
        if let Some(submitted) = turn.submitted.take() {
            let answer = self.accepted(submitted);
            turn.step.actions.insert(before_placement, Action::Answer { request: submitted.request, answer });
        }
        self.registry.refresh(&self.settings, turn.now);
        self.set_alarms(&turn);
        self.arm_live(&turn);
        self.tell_watchers(&mut turn);
        self.note_policies(&mut turn);
        turn.step
    }

    /// Adds up what policies did, and tells watchers of failures. What decides from now on is on disk
    /// with this step.
    fn note_policies(&mut self, turn: &mut Turn) {
        let mut log = std::mem::take(&mut turn.policy);
        turn.step.interrupted = std::mem::take(&mut log.interrupted);
        for Failed { name, failure, .. } in &log.failures {
            turn.act(Action::Notify(Notice::PolicyFailed { name: name.clone(), failure: failure.clone() }));
        }
        if let Some(demotion) = self.policy.take_log(log) {
            turn.write(Write::PutPolicies(self.policy.rows()));
            turn.act(Action::Notify(Notice::PolicyDemoted(demotion)));
        }
    }

    fn set_alarms(&mut self, turn: &Turn) {
        for job_id in &turn.jobs_touched {
            let at = self.jobs.get(job_id).and_then(|job| job.next_alarm(&self.settings));
            self.alarms.set(Subject::Job(*job_id), at);
        }
        let brake_until = self.registry.brake_until;
        for worker_id in &turn.workers_touched {
            let worker = self.registry.get(worker_id);
            let at = worker.and_then(|worker| worker.next_alarm(&self.settings, brake_until));
            self.alarms.set(Subject::Worker(worker_id.clone()), at);
        }
        if let Some(at) = self.supply.take_alarm() {
            self.alarms.set(Subject::Supply, at);
        }
        if let Some(at) = self.supply.take_stops_alarm() {
            self.alarms.set(Subject::Stops, at);
        }
        if let Some(at) = self.clockwork.unsaved.take_alarm() {
            self.alarms.set(Subject::Learnt, at);
        }
    }

    fn tell_watchers(&mut self, turn: &mut Turn) {
        for worker_id in std::mem::take(&mut turn.workers_touched) {
            self.tell_worker(worker_id, turn);
        }
        let depth = self.queue.len();
        if std::mem::replace(&mut self.depth_told, depth) != depth {
            turn.act(Action::Notify(Notice::Queue { depth }));
        }
    }

    fn tell_worker(&mut self, worker_id: WorkerId, turn: &mut Turn) {
        let Some(worker) = self.registry.get_mut(&worker_id) else { return };
        let (state, slots_busy) = (worker.state(&self.settings, turn.now), worker.slots_busy());
        if worker.told.replace((state, slots_busy)) != Some((state, slots_busy)) {
            let slots = worker.row.facts.slots;
            turn.act(Action::Notify(Notice::Worker { worker_id, state, slots_busy, slots }));
        }
    }

    fn accepted(&self, submitted: Submitted) -> Answer {
        let job = self.jobs.get(&submitted.job_id);
        Answer::Accepted {
            job_id: submitted.job_id,
            status: job.map_or(TaskStatus::Queued, |job| job.row.status),
            queue_position: job.filter(|job| job.is_queued()).map_or(0, |_| submitted.queue_position),
            eta: job.and_then(|job| job.row.eta).map(|forecast| forecast.eta),
            replayed: false,
            model: job.map(|job| job.row.model.clone()).unwrap_or_default(),
        }
    }
}
