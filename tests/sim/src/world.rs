//! The clock, the agenda and the network of the simulated world.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};

use api_types::{CorrelationId, WorkerId};
use orchestrator_core::{Answer, BrokenCause, Event, Notice, RequestId, RunKey, SpawnPhase, Step, Time};

use crate::bugs::Bug;
use crate::checks::Checks;
use crate::checks::reasons::Reasons;
use crate::client::{Client, MOST_TRIES};
use crate::daemon::{Caller, Daemon};
use crate::disk::Disk;
use crate::faults::{CrashPoint, Fault};
use crate::operator::Order;
use crate::plan::{HEAL_AT, Plan, SETTLE_MS};
use crate::pools::{Ask, SimPool};
use crate::rng::Rng;
use crate::sim_worker::{RunId, SimWorker};
use crate::store::Store;

/// When the world begins, in milliseconds since the Unix epoch.
const EPOCH: u64 = 1_700_000_000_000;
/// Faults that each seed is to have with an effect.
pub const FAULTS_AT_LEAST: u64 = 20;
/// Milliseconds between two faults that are struck because too few had an effect.
const AGAIN_MS: u64 = 800;
/// How often the bounds are checked, in milliseconds.
const BOUNDS_EVERY_MS: u64 = 2_000;

/// Something on the agenda.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is named after what happens")]
pub enum Happening {
    Strike(Fault),
    Strobe { by_ms: i64, left: u32, every_ms: u64 },
    Heal,
    CheckBounds,
    Checkpoint,
    StartDaemon(u64),
    DriverTurn(u64),
    Commit(u64),
    ToDaemon { life: u64, event: Box<Event>, request: RequestId, caller: Caller },
    Report { life: u64, event: Box<Event> },
    RelayOpen { life: u64, conn: u64, run: RunKey, execute: bool },
    RelayTick { life: u64, conn: u64, run: RunKey },
    RelayWatch { life: u64, conn: u64, run: RunKey },
    RelayBreak { life: u64, conn: u64, run: RunKey, cause: BrokenCause },
    Order(Order),
    Handshake(usize),
    PoolAsked { life: u64, pool: usize, ask: Ask },
    DieLoading { worker: usize, start: u64 },
    StartWorker(usize),
    WorkerLoaded { worker: usize, start: u64 },
    Beat { worker: usize, start: u64 },
    Token { worker: usize, start: u64, run: RunId },
    StopArrives(usize, RunKey),
    AckArrives(usize, RunKey),
    Reply { caller: Caller, answer: Answer },
    Submit(usize),
    Connect(usize),
    Read(usize),
    Leave(usize),
    Return(usize),
    Cancel(usize),
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    /// Milliseconds since the epoch.
    pub now: u64,
    /// What the seed means.
    pub plan: Plan,
    /// The planted bug, if any.
    pub bug: Option<Bug>,
    /// The source of chance.
    pub rng: Rng,
    /// The disk.
    pub store: Store,
    /// The orchestrator's process, while there is one.
    pub daemon: Option<Daemon>,
    /// Grows with each crash of the orchestrator, so that what was meant for the dead is dropped.
    pub life: u64,
    /// A crash that waits for the next step.
    pub crash_next: Option<(CrashPoint, u64)>,
    /// Until when the orchestrator stands still.
    pub daemon_stopped_until: u64,
    /// How far the wall clock is ahead of the world's time (or behind it), in milliseconds.
    pub wall_offset: i64,
    /// How far the orchestrator's clock is: the wall clock at its start, carried on steadily.
    pub clock_offset: i64,
    /// How far the wall clock was ahead when an orchestrator last started by it.
    clock_read: i64,
    /// The largest time the orchestrator has committed.
    pub committed_at: Time,
    /// The machines; those that pools start come last.
    pub workers: Vec<SimWorker>,
    /// The machines that start workers.
    pub pools: Vec<SimPool>,
    /// Whether commits are taken.
    pub disk: Disk,
    /// When the faults stop.
    pub heal_at: u64,
    /// The clients.
    pub clients: Vec<Client>,
    /// The promises.
    pub checks: Checks,
    /// What happened how often.
    pub counts: Counts,
    /// Why jobs were placed where they were.
    pub reasons: Reasons,
    /// Every step of the brain, where somebody wants them.
    pub steps: Option<Vec<Step>>,
    /// A hash over every event and step.
    pub trace: Trace,
    /// Starts of workers so far.
    pub starts: u64,
    /// Connections to workers so far.
    pub conns: u64,
    /// The correlation id of every task.
    pub correlation_id: CorrelationId,
    agenda: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    requests: u64,
}

/// What happened how often.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after what it counts")]
pub struct Counts {
    pub events: u64,
    pub timeouts: u64,
    pub commits: u64,
    pub crashes: u64,
    pub worker_deaths: u64,
    pub stale: u64,
    pub refused: u64,
    pub cancels: u64,
    pub faults: u64,
    pub spawns: u64,
    pub unloads: u64,
    pub policy_failures: u64,
    pub withdrawn: u64,
}

impl Counts {
    /// Counts a notice of the brain.
    pub const fn notice(&mut self, notice: &Notice) {
        match notice {
            Notice::StaleDropped { .. } => self.stale += 1,
            Notice::Spawn { phase: SpawnPhase::Ready, .. } => self.spawns += 1,
            Notice::Unload { .. } => self.unloads += 1,
            Notice::PolicyFailed { .. } => self.policy_failures += 1,
            _ => {}
        }
    }

    /// Adds another seed's counts.
    pub const fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.timeouts += other.timeouts;
        self.commits += other.commits;
        self.crashes += other.crashes;
        self.worker_deaths += other.worker_deaths;
        self.stale += other.stale;
        self.refused += other.refused;
        self.cancels += other.cancels;
        self.faults += other.faults;
        self.spawns += other.spawns;
        self.unloads += other.unloads;
        self.policy_failures += other.policy_failures;
        self.withdrawn += other.withdrawn;
    }
}

/// A running hash (FNV-1a) over what is printed into it.
#[derive(Debug)]
pub struct Trace {
    /// The hash so far.
    pub hash: u64,
    /// Whether everything is printed too.
    pub verbose: bool,
}

impl Trace {
    /// Takes in an event or a step.
    pub fn note(&mut self, what: &impl Debug) {
        if self.verbose {
            println!("{what:?}");
        }
        // Writing into a hash cannot fail.
        let _ = write!(self, "{what:?}");
    }
}

impl std::fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for chunk in text.as_bytes().chunks(8) {
            let word = chunk.iter().fold(0, |word: u64, byte| word << 8 | u64::from(*byte));
            self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        Ok(())
    }
}

impl World {
    /// The world of a plan and its chances, with everything on its agenda.
    pub fn of(plan: Plan, seed: u64, bug: Option<Bug>, verbose: bool) -> anyhow::Result<Self> {
        let mut workers = Vec::new();
        for (number, worker) in plan.workers.iter().enumerate() {
            let id: WorkerId = format!("worker-fake-{number}").parse()?;
            workers.push(SimWorker::new(id, worker.clone()));
        }
        let mut world = Self {
            now: EPOCH,
            bug,
            rng: Rng::new(seed ^ 0xabcd_ef01),
            store: Store::default(),
            daemon: None,
            life: 0,
            crash_next: None,
            daemon_stopped_until: 0,
            wall_offset: 0,
            clock_offset: 0,
            clock_read: 0,
            committed_at: Time(0),
            workers,
            pools: plan.pools.iter().cloned().map(SimPool::new).collect::<anyhow::Result<_>>()?,
            disk: Disk::default(),
            heal_at: EPOCH + HEAL_AT,
            clients: plan.clients.iter().cloned().map(Client::new).collect(),
            plan,
            checks: Checks::default(),
            counts: Counts::default(),
            reasons: Reasons::default(),
            steps: None,
            trace: Trace { hash: 0xcbf2_9ce4_8422_2325, verbose },
            starts: 0,
            conns: 0,
            correlation_id: "sim".parse()?,
            agenda: BTreeMap::new(),
            sequence: 0,
            requests: 0,
        };
        world.fill_agenda();
        Ok(world)
    }

    fn fill_agenda(&mut self) {
        self.after(0, Happening::StartDaemon(0));
        for worker in 0..self.workers.len() {
            let at = self.rng.between(0, 3_000);
            self.after(at, Happening::StartWorker(worker));
        }
        for client in 0..self.clients.len() {
            if let Some(at) = self.clients[client].plan.at {
                self.after(at, Happening::Submit(client));
            }
        }
        for pool in 0..self.pools.len() {
            let at = self.rng.between(0, 2_000);
            self.after(at, Happening::Handshake(pool));
        }
        for (at, order) in self.plan.orders.clone() {
            self.after(at, Happening::Order(order));
        }
        for (at, fault) in self.plan.faults.clone() {
            self.after(at, Happening::Strike(fault));
        }
        self.after(HEAL_AT, Happening::Heal);
        self.after(BOUNDS_EVERY_MS, Happening::CheckBounds);
        self.after(BOUNDS_EVERY_MS, Happening::Checkpoint);
    }

    /// Puts something on the agenda.
    pub fn after(&mut self, delay_ms: u64, happening: Happening) {
        self.sequence += 1;
        self.agenda.insert((self.now + delay_ms, self.sequence), happening);
    }

    /// The time as the brain takes it.
    pub fn time(&self) -> Time {
        let offset = if self.bug == Some(Bug::ClockRunsBack) { self.wall_offset } else { self.clock_offset };
        Time(self.now.saturating_add_signed(offset))
    }

    /// Sets the clock of an orchestrator that starts: the wall clock, but never before what is on
    /// disk.
    pub fn set_clock(&mut self) {
        let wall = self.now.saturating_add_signed(self.wall_offset);
        let start = wall.max(self.committed_at.0);
        if std::mem::replace(&mut self.clock_read, self.wall_offset) != self.wall_offset {
            self.counts.faults += 1;
        }
        self.clock_offset = start.cast_signed() - self.now.cast_signed();
    }

    /// Runs until everything had time to end, or a promise is broken.
    pub fn run(&mut self) {
        while let Some(((at, _), happening)) = self.agenda.pop_first() {
            if at > self.heal_at + SETTLE_MS || !self.checks.failures.is_empty() {
                break;
            }
            self.now = at;
            if self.trace.verbose {
                println!("-- {} ms: {happening:?}", at - EPOCH);
            }
            self.happen(happening);
            if self.is_over() {
                break;
            }
        }
        if self.checks.failures.is_empty() {
            self.check_journal();
            self.check_at_end();
        }
    }

    /// Whether the faults are over, every job has ended and nobody waits for anything.
    fn is_over(&self) -> bool {
        let quiet = self.now > self.heal_at + 30_000 && self.sequence.is_multiple_of(64);
        let came = |client: &Client| {
            client.plan.at.is_some() || client.job.is_some() || client.is_refused || client.tries > MOST_TRIES
        };
        quiet
            && self.clients.iter().all(came)
            && self.store.jobs.values().all(|stored| stored.row.status.is_terminal())
            && self.clients.iter().all(|client| client.job.is_none() || client.done || !client.plan.reads)
            && self.daemon.as_ref().is_some_and(|daemon| {
                let health = daemon.brain.health(self.time());
                let busy = daemon.brain.workers(self.time()).iter().any(|worker| worker.slots_busy > 0);
                health.queue_depth + health.running == 0 && !busy && daemon.relays.is_empty()
            })
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Strike(fault) => self.strike(fault),
            Happening::Strobe { by_ms, left, every_ms } => self.strobe(by_ms, left, every_ms),
            Happening::Heal if self.needs_faults() => {
                self.strike_again();
                self.after(AGAIN_MS, Happening::Heal);
            }
            Happening::Heal => self.heal(),
            Happening::CheckBounds => {
                self.check_bounds();
                self.check_waiting_reasons();
                self.forgive_silence();
                self.after(BOUNDS_EVERY_MS, Happening::CheckBounds);
            }
            Happening::Checkpoint => self.checkpoint(),
            Happening::StartDaemon(life) if life == self.life => self.start_daemon(),
            Happening::DriverTurn(life) if life == self.life => self.driver_turn(),
            Happening::Commit(life) if life == self.life => self.commit(),
            Happening::ToDaemon { life, event, request, caller } if life == self.life => {
                if let Some(daemon) = &mut self.daemon {
                    daemon.waiting.insert(request, caller);
                }
                self.deliver(*event);
            }
            Happening::Report { life, event } if life == self.life => self.deliver(*event),
            Happening::RelayOpen { life, conn, run, execute } if life == self.life => {
                self.relay_open(conn, &run, execute);
            }
            Happening::RelayTick { life, conn, run } if life == self.life => self.relay_tick(conn, &run),
            Happening::RelayWatch { life, conn, run } if life == self.life => self.relay_watch(conn, &run),
            Happening::RelayBreak { life, conn, run, cause } if life == self.life => {
                self.break_relay(conn, &run, cause);
            }
            Happening::Order(order) => self.order(order),
            Happening::Handshake(pool) => self.handshake(pool),
            Happening::PoolAsked { life, pool, ask } => self.pool_asked(life, pool, ask),
            Happening::DieLoading { worker, start } => self.die_loading(worker, start),
            Happening::StartWorker(worker) => self.start_worker(worker),
            Happening::WorkerLoaded { worker, start } => self.worker_loaded(worker, start),
            Happening::Beat { worker, start } => self.beat_regularly(worker, start),
            Happening::Token { worker, start, run } => self.token(worker, start, run),
            Happening::StopArrives(worker, run) if self.is_reachable(worker) => {
                self.stop_run(worker, (run.job_id, run.attempt));
            }
            Happening::AckArrives(worker, run) if self.is_reachable(worker) => self.ack_run(worker, &run),
            Happening::Reply { caller, answer } => self.reply(caller, answer),
            Happening::Submit(client) => self.submit(client),
            Happening::Connect(client) => self.connect(client),
            Happening::Read(client) => self.read(client),
            Happening::Leave(client) => self.leave(client),
            Happening::Return(client) => self.come_back(client),
            Happening::Cancel(client) => self.cancel(client),
            // Meant for an orchestrator that has died since, or for a worker that cannot be reached.
            _ => {}
        }
        if self.daemon.is_none() {
            self.drop_readers();
        }
    }

    /// The faults are over: everything that stands still or is cut off comes back.
    fn heal(&mut self) {
        self.heal_at = self.now;
        self.crash_next = None;
        self.daemon_stopped_until = 0;
        self.disk = Disk::default();
        for pool in &mut self.pools {
            (pool.down_until, pool.removed_until, pool.drained_until, pool.taken) = (0, 0, 0, (0, 0));
        }
        for client in 0..self.clients.len() {
            if self.clients[client].plan.at.is_none() {
                let delay = self.rng.between(30_000, 45_000);
                self.after(delay, Happening::Submit(client));
            }
        }
        for worker in 0..self.workers.len() {
            self.workers[worker].stopped_until = 0;
            self.workers[worker].cut_until = 0;
            self.workers[worker].deaf_until = 0;
            self.workers[worker].mute_until = 0;
            self.after(100, Happening::StartWorker(worker));
        }
    }

    /// Whether faults may still happen.
    pub const fn is_faulty(&self) -> bool {
        self.now < self.heal_at
    }

    /// Milliseconds a message takes.
    pub fn latency(&mut self) -> u64 {
        if self.is_faulty() && self.rng.chance(3) {
            self.rng.between(50, 900)
        } else {
            self.rng.between(1, 12)
        }
    }

    /// Whether a message is lost.
    pub const fn loses_message(&mut self) -> bool {
        self.is_faulty() && self.rng.chance(5)
    }

    /// Whether a message arrives twice.
    pub const fn doubles_message(&mut self) -> bool {
        self.is_faulty() && self.rng.chance(5)
    }

    /// A number for a request, never used again.
    pub const fn draw_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// Sends a request to the orchestrator.
    pub fn send_to_daemon(&mut self, delay: u64, event: Event, request: RequestId, caller: Caller) {
        let life = self.life;
        self.after(delay, Happening::ToDaemon { life, event: Box::new(event), request, caller });
    }

    /// Sends an answer back to whoever waits for it.
    pub fn answer(&mut self, request: RequestId, answer: Answer) {
        let Some(caller) = self.daemon.as_mut().and_then(|daemon| daemon.waiting.remove(&request)) else {
            return;
        };
        if !self.loses_message() {
            let delay = self.latency();
            self.after(delay, Happening::Reply { caller, answer });
        }
    }

    fn reply(&mut self, caller: Caller, answer: Answer) {
        match caller {
            Caller::Submitter(client) => self.submit_reply(client, answer),
            Caller::Canceller(job_id) => self.cancel_reply(job_id, answer),
            Caller::Worker(worker, start) => {
                if self.is_reachable(worker) {
                    self.worker_reply(worker, start, answer);
                }
            }
            Caller::Nobody => {}
        }
    }
}
