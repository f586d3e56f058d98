//! The relay in small: bytes from a worker's log into a job's log, held back until they may pass.

use api_types::{ErrorCode, ErrorDetail};
use orchestrator_core::{BrokenCause, Event, RunKey};

use crate::bugs::Bug;
use crate::daemon::Logged;
use crate::sim_worker::{Reach, WorkerEvent};
use crate::world::{Happening, World};

/// Milliseconds after which a connection attempt or a silent link is given up.
const CONNECT_TIMEOUT_MS: u64 = 3_000;
/// Milliseconds without an event after which a stream has stalled.
const STALL_MS: u64 = 12_000;

/// One open stream from a worker.
#[derive(Debug)]
pub struct Relay {
    /// Tells this connection from an earlier one for the same run.
    pub conn: u64,
    /// Which start of the worker it is connected to, once it is.
    pub start: Option<u64>,
    /// What has arrived and may not pass yet.
    pub held: Vec<Logged>,
    /// Whether what arrives may pass.
    pub passing: bool,
    /// Whether the job's end is decided.
    pub frozen: bool,
    /// The id of the run's first event.
    first_event: usize,
    cursor: usize,
    told_first: bool,
    over: bool,
    /// Whether it ended without a last event, so that another may take its place.
    pub broken: bool,
    heard_at: u64,
}

impl World {
    /// Begins a connection, in place of a broken one for the same run. A run whose stream is open or
    /// has delivered its last event is left alone.
    pub fn open_relay(&mut self, run: RunKey, delay_ms: u64, passing: bool, execute: bool) {
        let earlier = self.daemon.as_ref().and_then(|daemon| daemon.relays.get(&run));
        if earlier.is_some_and(|relay| !relay.broken) {
            return;
        }
        let standing = self.daemon.as_ref().and_then(|daemon| daemon.brain.job(run.job_id));
        let attempt = standing.and_then(|standing| standing.row.attempt);
        let first_event = attempt.map_or(1, |attempt| attempt.first_event_id as usize);
        self.conns += 1;
        let conn = self.conns;
        let relay = Relay {
            conn,
            start: None,
            held: Vec::new(),
            passing,
            frozen: false,
            first_event,
            cursor: usize::from(!execute && self.bug == Some(Bug::RelaySkips)),
            told_first: passing,
            over: false,
            broken: false,
            heard_at: self.now,
        };
        if let Some(daemon) = &mut self.daemon {
            daemon.relays.insert(run.clone(), relay);
            let delay = delay_ms + self.latency();
            if execute && self.doubles_message() {
                let again = Happening::RelayOpen { life: self.life, conn, run: run.clone(), execute };
                self.after(delay + 20, again);
            }
            self.after(delay, Happening::RelayOpen { life: self.life, conn, run, execute });
        }
    }

    fn relay(&mut self, conn: u64, run: &RunKey) -> Option<&mut Relay> {
        let relay = self.daemon.as_mut()?.relays.get_mut(run)?;
        (relay.conn == conn && !relay.over).then_some(relay)
    }

    /// The request reaches the worker, or does not.
    pub fn relay_open(&mut self, conn: u64, run: &RunKey, execute: bool) {
        if self.relay(conn, run).is_none() {
            return;
        }
        let worker = self.worker_index(&run.worker_id);
        match self.workers[worker].reach(self.now) {
            Reach::Gone => self.break_relay(conn, run, BrokenCause::Refused),
            Reach::Silent => self.break_later(conn, run, CONNECT_TIMEOUT_MS),
            Reach::Open => self.attach(conn, run, worker, execute),
        }
    }

    fn break_later(&mut self, conn: u64, run: &RunKey, delay: u64) {
        let cause = BrokenCause::Unreachable;
        self.after(delay, Happening::RelayBreak { life: self.life, conn, run: run.clone(), cause });
    }

    fn attach(&mut self, conn: u64, run: &RunKey, worker: usize, execute: bool) {
        let asked = if execute { self.execute(worker, run) } else { self.find_run(worker, run) };
        match asked {
            Ok(start) => {
                if let Some(relay) = self.relay(conn, run) {
                    relay.start = Some(start);
                }
                let (life, run) = (self.life, run.clone());
                self.after(STALL_MS, Happening::RelayWatch { life, conn, run: run.clone() });
                self.after(1, Happening::RelayTick { life, conn, run });
            }
            Err(Some(code)) => self.report_failed(conn, run, ErrorDetail::new(code, "refused")),
            Err(None) => self.break_relay(conn, run, BrokenCause::RunUnknown),
        }
    }

    /// The worker's log grew: whoever reads it gets the rest.
    pub fn wake_relay(&mut self, worker: usize, key: (api_types::JobId, api_types::Attempt), start: u64) {
        let worker_id = self.workers[worker].id.clone();
        let Some(daemon) = &self.daemon else { return };
        let found = daemon.relays.iter().find(|(run, relay)| {
            (run.job_id, run.attempt) == key && run.worker_id == worker_id && relay.start == Some(start)
        });
        if let Some((run, relay)) = found {
            let tick = Happening::RelayTick { life: self.life, conn: relay.conn, run: run.clone() };
            let delay = self.latency();
            self.after(delay, tick);
        }
    }

    /// Takes what has arrived.
    pub fn relay_tick(&mut self, conn: u64, run: &RunKey) {
        let Some(relay) = self.relay(conn, run) else { return };
        let (Some(start), cursor) = (relay.start, relay.cursor) else { return };
        let worker = self.worker_index(&run.worker_id);
        if self.workers[worker].reach(self.now) == Reach::Silent {
            let tick = Happening::RelayTick { life: self.life, conn, run: run.clone() };
            return self.after(500, tick);
        }
        let Some(events) = self.workers[worker].events_from(start, (run.job_id, run.attempt), cursor) else {
            return self.break_relay(conn, run, BrokenCause::Unreachable);
        };
        for event in events {
            self.take_event(conn, run, event);
        }
    }

    fn take_event(&mut self, conn: u64, run: &RunKey, event: WorkerEvent) {
        let now = self.now;
        let Some(relay) = self.relay(conn, run) else { return };
        relay.cursor += 1;
        relay.heard_at = now;
        match event {
            WorkerEvent::Log(logged) => self.take_logged(conn, run, logged),
            WorkerEvent::End(end) => {
                relay.over = true;
                self.report(Event::StreamEnded { run: run.clone(), end });
            }
            WorkerEvent::Error(error) => self.report_failed(conn, run, error),
            WorkerEvent::Garbage => self.break_relay(conn, run, BrokenCause::Protocol),
        }
    }

    fn take_logged(&mut self, conn: u64, run: &RunKey, logged: Logged) {
        let Some(relay) = self.relay(conn, run) else { return };
        let is_first = matches!(logged, Logged::Token { .. }) && !relay.told_first;
        relay.told_first |= is_first;
        if relay.frozen {
            return;
        }
        if relay.passing {
            let id = relay.first_event + relay.cursor - 1;
            self.append(run, id, logged);
        } else {
            relay.held.push(logged);
        }
        if is_first {
            self.report(Event::FirstToken(run.clone()));
        }
    }

    /// Puts a worker's event into the job's log under its id; what is there already must be equal.
    fn append(&mut self, run: &RunKey, id: usize, logged: Logged) {
        let Some(log) = self.daemon.as_mut().and_then(|daemon| daemon.logs.get_mut(&run.job_id)) else {
            return;
        };
        match log.get(id) {
            Some(there) if *there == logged => {}
            Some(there) => {
                let text = format!("{run:?}: event {id} is {there:?} and then {logged:?}");
                self.checks.fail("I5", text);
            }
            None if log.len() == id => log.push(logged),
            None => {
                let text = format!("{run:?}: event {id} follows event {}", log.len() - 1);
                self.checks.fail("I5", text);
            }
        }
        self.wake_readers(run.job_id);
    }

    /// `running` is on disk: what was held passes, and what follows.
    pub fn pass_stream(&mut self, run: &RunKey) {
        let Some(relay) = self.daemon.as_mut().and_then(|daemon| daemon.relays.get_mut(run)) else { return };
        if relay.passing {
            return;
        }
        relay.passing = true;
        let first_event = relay.first_event;
        let held = std::mem::take(&mut relay.held);
        for (index, logged) in held.into_iter().enumerate() {
            self.append(run, first_event + index, logged);
        }
    }

    /// Stops listening.
    pub fn drop_stream(&mut self, run: &RunKey) {
        let Some(dropped) = self.daemon.as_mut().and_then(|daemon| daemon.relays.remove(run)) else { return };
        if self.bug == Some(Bug::HeldPasses) {
            for (index, logged) in dropped.held.into_iter().enumerate() {
                self.append(run, dropped.first_event + index, logged);
            }
        }
    }

    /// The connection ended without a last event.
    pub fn break_relay(&mut self, conn: u64, run: &RunKey, cause: BrokenCause) {
        if let Some(relay) = self.relay(conn, run) {
            relay.over = true;
            relay.broken = true;
            self.deliver(Event::StreamBroken { run: run.clone(), cause });
        }
    }

    /// A stream in which nothing moves is reported once.
    pub fn relay_watch(&mut self, conn: u64, run: &RunKey) {
        let now = self.now;
        let Some(relay) = self.relay(conn, run) else { return };
        let silent = now - relay.heard_at;
        if silent >= STALL_MS {
            return self.break_relay(conn, run, BrokenCause::Stalled);
        }
        let watch = Happening::RelayWatch { life: self.life, conn, run: run.clone() };
        self.after(STALL_MS - silent, watch);
    }

    fn report_failed(&mut self, conn: u64, run: &RunKey, error: ErrorDetail) {
        if let Some(relay) = self.relay(conn, run) {
            relay.over = true;
            self.report(Event::StreamFailed { run: run.clone(), error });
        }
    }

    /// Hands a report to the brain; now and then late, now and then twice.
    fn report(&mut self, event: Event) {
        if self.is_faulty() && self.rng.chance(6) {
            let delay = self.rng.between(10, 9_000);
            let late = Happening::Report { life: self.life, event: Box::new(event.clone()) };
            self.after(delay, late);
            if self.rng.chance(50) {
                return;
            }
        }
        self.deliver(event);
    }
}

/// What the fake engine refuses as too long.
pub fn overflow() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::ContextOverflow, "The prompt has 9000 tokens, the context holds 4096.")
}
