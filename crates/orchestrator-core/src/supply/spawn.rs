//! Workers that were asked for, until they are registered and ready.

use api_types::pool::Fit;
use api_types::worker::{WorkerState, WorkerStatus};
use api_types::{ErrorCode, ErrorDetail, PoolId, WorkerId};
use serde::{Deserialize, Serialize};

use super::earlier;
use super::pools::Knowledge;
use crate::event::PoolRoom;
use crate::orchestrator::Orchestrator;
use crate::row::SpawnRow;
use crate::step::{Action, Notice, SpawnPhase, Write};
use crate::time::Time;
use crate::turn::Turn;

/// Milliseconds in which a worker that is ready for its pool has to register here.
const REGISTER_MS: u64 = 15_000;

/// Milliseconds that the answer of a spawn may come late: the shell gives up at the limit itself, and
/// what it then says is to be here first.
const LATE_MS: u64 = 10_000;

/// A worker that was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Spawn {
    /// What is on disk, until it registers.
    row: SpawnRow,
    /// Where it runs.
    device: String,
    /// Bytes it will need.
    bytes: u64,
    /// Whether it introduced itself.
    registered: bool,
    state: State,
    /// Why it was called off, and when the pool is to have answered that.
    called_off: Option<(ErrorDetail, Time)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// The pool has been at it since then.
    Asked(Time),
    /// The pool said that it is ready.
    Ready(Time),
    /// It was asked for before the last start, and nobody knows what became of it.
    Unknown,
}

impl Spawn {
    /// Whether it is this model's worker in this pool.
    pub fn is_for(&self, pool_id: &PoolId, model: &str) -> bool {
        self.row.pool_id == *pool_id && self.row.model == model
    }

    /// Why it was called off, and when the pool is to have answered that.
    pub const fn called_off(&self) -> Option<&(ErrorDetail, Time)> {
        self.called_off.as_ref()
    }
}

impl Orchestrator {
    /// Takes up what was asked for before a restart.
    pub(crate) fn take_spawns(&mut self, rows: Vec<SpawnRow>, turn: &mut Turn) {
        turn.supply = true;
        for row in rows {
            if self.registry.get(&row.worker_id).is_some() || !self.pools.contains_key(&row.pool_id) {
                turn.write(Write::DeleteSpawn(row.worker_id));
                continue;
            }
            let spawn = Spawn {
                device: "cpu".to_owned(),
                bytes: 0,
                registered: false,
                state: State::Unknown,
                called_off: None,
                row,
            };
            self.supply.spawns.insert(spawn.row.worker_id.clone(), spawn);
        }
    }

    /// Asks a pool for a worker, under an id that is written down first.
    pub(super) fn begin_spawn(
        &mut self,
        pool_id: &PoolId,
        model: &str,
        device: &str,
        bytes: u64,
        turn: &mut Turn,
    ) {
        let Some(worker_id) = self.draw_worker_id(device, turn.now) else { return };
        let row = SpawnRow {
            worker_id: worker_id.clone(),
            pool_id: pool_id.clone(),
            model: model.to_owned(),
            asked_at: turn.now,
        };
        turn.write(Write::PutSpawn(row.clone()));
        let device = device.to_owned();
        let state = State::Asked(turn.now);
        let spawn = Spawn { row, device, bytes, registered: false, state, called_off: None };
        self.supply.spawns.insert(worker_id.clone(), spawn);
        self.ask_for_worker(&worker_id, turn);
    }

    fn ask_for_worker(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        let Some(spawn) = self.supply.spawns.get_mut(worker_id) else { return };
        let Some(pool) = self.pools.get(&spawn.row.pool_id).cloned() else { return };
        spawn.state = State::Asked(turn.now);
        let (row, model) = (&spawn.row, spawn.row.model.clone());
        turn.act(Action::SpawnWorker { pool, worker_id: worker_id.clone(), model });
        turn.act(notice(row, SpawnPhase::Started, None));
    }

    /// `worker-BACKEND-` and twelve hex digits that follow from the time and a count.
    fn draw_worker_id(&mut self, device: &str, now: Time) -> Option<WorkerId> {
        self.supply.drawn += 1;
        let backend = device.split(':').next().unwrap_or(device);
        let number = mix(now.0 ^ mix(self.supply.drawn)) >> 16;
        format!("worker-{backend}-{number:012x}").parse().ok()
    }

    /// Workers of a model that are being started and have not introduced themselves: the backend,
    /// the pool, and when it was asked.
    pub(crate) fn coming(&self, model: &str) -> impl Iterator<Item = (&str, &PoolId, Time)> {
        let coming = self.supply.spawns.values().filter(move |s| s.row.model == model && !s.registered);
        let known = |spawn: &&Spawn| spawn.state != State::Unknown && spawn.called_off.is_none();
        coming.filter(known).map(|spawn| {
            let backend = spawn.device.split(':').next().unwrap_or(&spawn.device);
            (backend, &spawn.row.pool_id, spawn.row.asked_at)
        })
    }

    /// Bytes that workers take which are being started on a device, and may not show there yet.
    pub(super) fn bytes_coming(&self, pool_id: &PoolId, device: &str) -> u64 {
        let here = self.supply.spawns.values().filter(|s| s.row.pool_id == *pool_id && s.device == device);
        here.map(|spawn| spawn.bytes).sum()
    }

    /// Whether workers of a pool are being started.
    pub(super) fn is_spawning(&self, pool_id: &PoolId) -> bool {
        self.supply.spawns.values().any(|spawn| spawn.row.pool_id == *pool_id)
    }

    /// A worker introduced itself; perhaps it was asked for.
    pub(crate) fn spawn_registered(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        let Some(spawn) = self.supply.spawns.get_mut(worker_id) else {
            return self.note_unforeseen(worker_id);
        };
        if !std::mem::replace(&mut spawn.registered, true) {
            turn.write(Write::DeleteSpawn(worker_id.clone()));
        }
        if spawn.called_off.is_some() {
            // Its pool is ending it: it gets no job.
            return self.drain_late(worker_id, turn);
        }
        match spawn.state {
            State::Asked(_) => {}
            State::Ready(_) | State::Unknown => self.end_spawn(worker_id, turn),
        }
    }

    /// A worker that is not being started here: where its pool did not speak of it yet, what the pool
    /// said is older than the worker, and tells nothing of the memory that is left.
    fn note_unforeseen(&mut self, worker_id: &WorkerId) {
        let pool_id = self.registry.get(worker_id).and_then(|worker| worker.row.facts.pool_id.as_ref());
        let Some(seen) = pool_id.and_then(|pool_id| self.supply.pools.get_mut(pool_id)) else { return };
        let knows = |room: &PoolRoom| room.processes.iter().any(|process| process.worker_id == *worker_id);
        if !seen.last().is_some_and(knows) {
            seen.change();
        }
    }

    fn drain_late(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        if let Some(worker) = self.registry.get_mut(worker_id) {
            worker.row.draining = true;
            turn.save_worker(&worker.row);
        }
    }

    /// A pool is done with starting a worker.
    pub(crate) fn spawn_ended(
        &mut self,
        pool_id: &PoolId,
        worker_id: &WorkerId,
        error: Option<ErrorDetail>,
        turn: &mut Turn,
    ) {
        self.supply.changed(pool_id);
        let Some(spawn) = self.supply.spawns.get_mut(worker_id).filter(|s| s.row.pool_id == *pool_id) else {
            return turn.drop_stale("spawn_ended");
        };
        turn.supply = true;
        match error {
            Some(error) => self.fail_spawn(worker_id, error, turn),
            None if spawn.called_off.is_some() => {}
            None if spawn.registered => self.end_spawn(worker_id, turn),
            None => spawn.state = State::Ready(turn.now),
        }
    }

    fn end_spawn(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        let Some(spawn) = self.supply.spawns.remove(worker_id) else { return };
        if spawn.state != State::Unknown {
            let took_ms = turn.now.since(spawn.row.asked_at);
            let (model, pool) = (&spawn.row.model, spawn.row.pool_id.as_str());
            self.clockwork.note_spawn(model, pool, took_ms, turn.now);
        }
        if let Some(seen) = self.supply.pools.get_mut(&spawn.row.pool_id) {
            seen.failures.remove(&spawn.row.model);
            seen.change();
        }
        turn.supply = true;
        turn.act(notice(&spawn.row, SpawnPhase::Ready, None));
    }

    fn fail_spawn(&mut self, worker_id: &WorkerId, error: ErrorDetail, turn: &mut Turn) {
        let Some(spawn) = self.supply.spawns.remove(worker_id) else { return };
        if spawn.registered {
            // The pool leaves nothing of a failed spawn behind.
            self.give_up_worker(worker_id, WorkerState::Failed, false, turn);
        } else {
            turn.write(Write::DeleteSpawn(worker_id.clone()));
        }
        self.note_failed_spawn(&spawn.row, error, turn);
    }

    /// A worker is given up. Where its pool has not said yet what became of starting it, this is it.
    pub(crate) fn spawn_lost(&mut self, worker_id: &WorkerId, error: &ErrorDetail, turn: &mut Turn) {
        if let Some(spawn) = self.supply.spawns.remove(worker_id) {
            self.note_failed_spawn(&spawn.row, error.clone(), turn);
        }
    }

    fn note_failed_spawn(&mut self, row: &SpawnRow, error: ErrorDetail, turn: &mut Turn) {
        let seen = self.supply.pools.entry(row.pool_id.clone()).or_default();
        seen.fail(&row.model, error.clone(), &self.settings.supply, turn.now);
        seen.change();
        turn.act(notice(row, SpawnPhase::Failed, Some(error)));
    }

    /// Finds out what became of spawns that nobody speaks of any more. Gives when to look again.
    pub(super) fn look_after_spawns(&mut self, turn: &mut Turn) -> Option<Time> {
        let mut wake = None;
        let standing = |spawn: &Spawn| {
            let off = spawn.called_off.is_some();
            (spawn.row.worker_id.clone(), spawn.row.pool_id.clone(), spawn.state, off)
        };
        let all: Vec<_> = self.supply.spawns.values().map(standing).collect();
        for (worker_id, pool_id, state, called_off) in all {
            match state {
                _ if called_off => {}
                State::Asked(since) if turn.now < self.spawn_limit(since) => {
                    wake = earlier(wake, Some(self.spawn_limit(since)));
                }
                State::Asked(_) => wake = earlier(wake, self.unanswered(&worker_id, turn)),
                State::Ready(_) if self.is_known_gone(&worker_id, &pool_id, turn.now) => {
                    self.fail_spawn(&worker_id, ended_unregistered(&worker_id), turn);
                }
                State::Ready(at) if turn.now < at + REGISTER_MS => {
                    wake = earlier(wake, Some(at + REGISTER_MS));
                }
                State::Ready(_) => self.fail_spawn(&worker_id, unregistered(&worker_id), turn),
                State::Unknown => wake = earlier(wake, self.look_for_spawn(&worker_id, &pool_id, turn)),
            }
        }
        wake
    }

    /// Whether a pool has said of late that it does not have a worker that was ready there.
    fn is_known_gone(&self, worker_id: &WorkerId, pool_id: &PoolId, now: Time) -> bool {
        match self.knowledge(pool_id, now) {
            Knowledge::Fresh(room) => !room.processes.iter().any(|process| process.worker_id == *worker_id),
            Knowledge::Asked(_) | Knowledge::Stale | Knowledge::Silent(..) => false,
        }
    }

    const fn spawn_limit(&self, since: Time) -> Time {
        Time(since.0.saturating_add(self.settings.supply.spawn_timeout_ms).saturating_add(LATE_MS))
    }

    /// When the first answer to a spawn is overdue.
    pub(super) fn first_spawn_limit(&self) -> Option<Time> {
        let spawns = self.supply.spawns.values().filter(|spawn| spawn.called_off.is_none());
        let asked = spawns.filter_map(|spawn| match spawn.state {
            State::Asked(since) => Some(self.spawn_limit(since)),
            State::Ready(_) | State::Unknown => None,
        });
        asked.min()
    }

    /// A pool has not answered a spawn in time. A worker that came by itself is taken for what it is;
    /// any other is called off: its pool is asked to end whatever there is of it, and before that is
    /// answered no further one is asked for there, so that there are never two. Gives when to look again.
    fn unanswered(&mut self, worker_id: &WorkerId, turn: &mut Turn) -> Option<Time> {
        let living = self.registry.get(worker_id).filter(|worker| worker.gone.is_none());
        match living.map(|worker| worker.status) {
            Some(Some(WorkerStatus::Ready)) => {
                self.end_spawn(worker_id, turn);
                None
            }
            Some(Some(WorkerStatus::Loading)) => {
                // It says itself that it is at it.
                if let Some(spawn) = self.supply.spawns.get_mut(worker_id) {
                    spawn.state = State::Asked(turn.now);
                }
                Some(self.spawn_limit(turn.now))
            }
            Some(Some(WorkerStatus::Draining | WorkerStatus::Failed) | None) | None => {
                self.call_off(worker_id, turn);
                None
            }
        }
    }

    fn call_off(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        let settings = &self.settings.supply;
        let Some(spawn) = self.supply.spawns.get_mut(worker_id) else { return };
        if !self.pools.contains_key(&spawn.row.pool_id) {
            self.supply.spawns.remove(worker_id);
            return turn.write(Write::DeleteSpawn(worker_id.clone()));
        }
        let error = no_answer(worker_id, &spawn.row.pool_id, settings.spawn_timeout_ms);
        spawn.called_off = Some((error, turn.now + settings.stop_timeout_ms));
        let pool_id = spawn.row.pool_id.clone();
        self.supply.stop(worker_id, pool_id);
        self.stop_released(turn);
    }

    /// Whether a worker that its pool was asked to end is one that was called off.
    pub(super) fn was_called_off(&self, worker_id: &WorkerId) -> bool {
        self.supply.spawns.get(worker_id).is_some_and(|spawn| spawn.called_off.is_some())
    }

    /// Nothing is left of a worker that was called off.
    pub(super) fn called_off_ended(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        let Some(spawn) = self.supply.spawns.get_mut(worker_id) else { return };
        if let Some((error, _)) = spawn.called_off.take() {
            self.fail_spawn(worker_id, error, turn);
        }
    }

    /// A spawn from before a restart: the pool has it, or is asked for it once more under its old id.
    fn look_for_spawn(&mut self, worker_id: &WorkerId, pool_id: &PoolId, turn: &mut Turn) -> Option<Time> {
        self.ask_if_stale(pool_id, turn);
        let process = match self.knowledge(pool_id, turn.now) {
            Knowledge::Stale => return None,
            Knowledge::Asked(until) | Knowledge::Silent(_, until) => return Some(until),
            Knowledge::Fresh(room) => room.processes.iter().find(|process| process.worker_id == *worker_id),
        };
        match process.map(|process| process.starting) {
            Some(true) => Some(turn.now + super::pools::FRESH_MS),
            Some(false) => {
                let spawn = self.supply.spawns.get_mut(worker_id)?;
                spawn.state = State::Ready(turn.now);
                Some(turn.now + REGISTER_MS)
            }
            None => {
                self.ask_again(worker_id, turn);
                None
            }
        }
    }

    /// Asks once more for a worker of which nothing is there, where somebody still waits for its model
    /// and it still fits beside what else is being started.
    fn ask_again(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        let Some(row) = self.supply.spawns.get(worker_id).map(|spawn| spawn.row.clone()) else { return };
        let is_wanted = self.supply.blocked.keys().any(|want| want.model == row.model);
        match self.place_for(&row, turn.now).filter(|_| is_wanted) {
            Some((device, bytes)) => {
                if let Some(spawn) = self.supply.spawns.get_mut(worker_id) {
                    (spawn.device, spawn.bytes) = (device, bytes);
                }
                self.ask_for_worker(worker_id, turn);
            }
            None => {
                self.supply.spawns.remove(worker_id);
                turn.write(Write::DeleteSpawn(worker_id.clone()));
            }
        }
    }

    /// The device of its pool where a worker fits, and the bytes that it takes there.
    fn place_for(&self, row: &SpawnRow, now: Time) -> Option<(String, u64)> {
        let Knowledge::Fresh(room) = self.knowledge(&row.pool_id, now) else { return None };
        let of_model = room.fits.iter().filter(|fit| fit.model == row.model && fit.fits);
        let beside = |fit: &&Fit| {
            let coming = self.bytes_coming(&row.pool_id, &fit.device);
            fit.needed_bytes.saturating_add(coming).saturating_add(fit.margin_bytes) <= fit.free_bytes
        };
        of_model.filter(beside).map(|fit| (fit.device.clone(), fit.needed_bytes)).next()
    }
}

fn notice(row: &SpawnRow, phase: SpawnPhase, error: Option<ErrorDetail>) -> Action {
    Action::Notify(Notice::Spawn {
        pool_id: row.pool_id.clone(),
        worker_id: row.worker_id.clone(),
        model: row.model.clone(),
        phase,
        error,
    })
}

fn no_answer(worker_id: &WorkerId, pool_id: &PoolId, limit_ms: u64) -> ErrorDetail {
    let message = format!(
        "The pool `{pool_id}` did not say within {} s what became of the worker `{worker_id}`.",
        limit_ms / 1_000
    );
    ErrorDetail::new(ErrorCode::SpawnTimeout, message).with_hint(
        "Look at the pool with `rbees pool status`; raise `spawn_timeout_ms` where models take longer to load.",
    )
}

fn unregistered(worker_id: &WorkerId) -> ErrorDetail {
    let message = format!(
        "The worker `{worker_id}` was ready for its pool, but did not register within {} s.",
        REGISTER_MS / 1_000
    );
    ErrorDetail::new(ErrorCode::SpawnFailed, message)
        .with_hint("See that the pool's machine reaches the orchestrator at its `url`.")
}

fn ended_unregistered(worker_id: &WorkerId) -> ErrorDetail {
    let message = format!("The worker `{worker_id}` was ready for its pool, and ended before it registered.");
    ErrorDetail::new(ErrorCode::SpawnFailed, message)
        .with_hint("`rbees pool worker logs ID` may tell why the worker ended.")
}

/// A number that looks random and follows from its input (the finalizer of SplitMix64).
const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
