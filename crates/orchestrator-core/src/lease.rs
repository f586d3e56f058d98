//! Workers that fall silent or fail: suspect, lost, forgotten; and the brake when the silence is
//! likely our own.

use api_types::worker::WorkerState;
use api_types::{ErrorCode, ErrorDetail, WorkerId};

use crate::event::RunKey;
use crate::orchestrator::Orchestrator;
use crate::retry::Failure;
use crate::step::{Action, Write};
use crate::time::Time;
use crate::turn::Turn;
use crate::worker::{Gone, SlotUse, Worker};

/// So many workers at least must fall silent at one time before it looks like our own fault.
const BRAKE_FROM: usize = 2;

/// What is due about a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Forget,
    Lost,
    Suspect,
    Pause,
}

impl Orchestrator {
    /// Does what is due about a worker.
    pub(crate) fn worker_due(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        turn.workers_touched.insert(worker_id.clone());
        let Some(worker) = self.registry.get(worker_id) else { return };
        for due in self.due_of(worker, turn.now) {
            match due {
                Due::Forget => self.forget_worker(worker_id, turn),
                Due::Lost => self.lease_ended(worker_id, turn),
                Due::Suspect => self.probe(worker_id, turn),
                Due::Pause => self.end_pause(worker_id, turn),
            }
        }
    }

    fn due_of(&self, worker: &Worker, now: Time) -> Vec<Due> {
        let lease = &self.settings.lease;
        let silent_ms = now.since(worker.last_heard);
        if let Some(gone) = worker.gone {
            let kept = now.since(gone.at) >= lease.gone_kept_ms;
            return if kept { vec![Due::Forget] } else { Vec::new() };
        }
        let mut due = Vec::new();
        let passed = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if passed(worker.paused_until) || passed(worker.quarantined_until) {
            due.push(Due::Pause);
        }
        if silent_ms >= lease.suspect_ms && !worker.probed {
            due.push(Due::Suspect);
        }
        if silent_ms >= lease.lost_ms {
            due.push(Due::Lost);
        }
        due
    }

    fn end_pause(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        if let Some(worker) = self.registry.get_mut(worker_id) {
            worker.paused_until = worker.paused_until.filter(|until| *until > turn.now);
            worker.quarantined_until = worker.quarantined_until.filter(|until| *until > turn.now);
            turn.to_place.insert(worker.row.facts.model.clone());
        }
    }

    /// Asks a silent worker for a sign of life, once per silence.
    pub(crate) fn probe(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        let Some(worker) = self.registry.get_mut(worker_id) else { return };
        worker.probed = true;
        turn.act(Action::ProbeWorker {
            worker_id: worker_id.clone(),
            incarnation: worker.row.incarnation,
            uri: worker.row.facts.uri.clone(),
            secret: worker.row.secret.clone(),
        });
    }

    fn lease_ended(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        if self.is_silence_ours(turn) {
            return;
        }
        self.registry.silenced.push(turn.now);
        self.give_up_worker(worker_id, WorkerState::Lost, true, turn);
    }

    /// Whether silence is not believed: more than half of the workers, and at least two, fell silent
    /// at one time. The same silence is excused once, for as long as the brake holds.
    fn is_silence_ours(&mut self, turn: &mut Turn) -> bool {
        let lease = &self.settings.lease;
        if self.registry.brake_until.is_some_and(|until| turn.now < until) {
            return true;
        }
        self.registry.brake_until = None;
        self.registry.silenced.retain(|at| turn.now.since(*at) < lease.lost_ms);
        let silent = |worker: &Worker| {
            worker.gone.is_none() && !worker.braked && turn.now.since(worker.last_heard) >= lease.suspect_ms
        };
        let earlier = self.registry.silenced.len();
        let fell = earlier + self.registry.all().filter(|worker| silent(worker)).count();
        let known = earlier + self.registry.all().filter(|worker| worker.gone.is_none()).count();
        if fell < BRAKE_FROM || fell * 2 <= known {
            return false;
        }
        for worker in self.registry.all_mut().filter(|worker| silent(worker)) {
            worker.braked = true;
            turn.workers_touched.insert(worker.row.facts.worker_id.clone());
        }
        self.registry.brake_until = Some(turn.now + lease.brake_ms);
        true
    }

    /// The worker is gone: its jobs go on elsewhere or fail. It stays visible for a while, unless it
    /// was to end anyway and said that it did.
    pub(crate) fn give_up_worker(
        &mut self,
        worker_id: &WorkerId,
        state: WorkerState,
        by_silence: bool,
        turn: &mut Turn,
    ) {
        let Some(worker) = self.registry.get_mut(worker_id) else { return };
        worker.gone = Some(Gone { at: turn.now, state, by_silence });
        turn.supply = true;
        let error = gone_error(worker, turn.now);
        self.prefixes.forget(worker.row.incarnation);
        turn.workers_touched.insert(worker_id.clone());
        let said_so = worker.failure.as_ref().is_some_and(|error| error.code == ErrorCode::ShuttingDown);
        let has_drained = state == WorkerState::Failed && (worker.row.draining || said_so);
        self.lose_runs(worker_id, &error, turn);
        self.spawn_lost(worker_id, &error, turn);
        if has_drained {
            self.forget_ended_worker(worker_id, turn);
        }
    }

    /// Every run that a job still waits for on this worker is lost.
    pub(crate) fn lose_runs(&mut self, worker_id: &WorkerId, error: &ErrorDetail, turn: &mut Turn) {
        let Some(worker) = self.registry.get_mut(worker_id) else { return };
        let incarnation = worker.row.incarnation;
        for ((job_id, attempt), slot) in std::mem::take(&mut worker.runs) {
            if slot == SlotUse::Wanted {
                let run = RunKey { job_id, attempt, worker_id: worker_id.clone(), incarnation };
                turn.act(Action::DropStream(run));
                let failure = Failure { error: error.clone(), lost: Some(worker_id.clone()) };
                self.fail_attempt(job_id, failure, turn);
            }
        }
    }

    /// Takes a worker out of everything that knows it. Its runs are dealt with before.
    pub(crate) fn forget_worker(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        if let Some(worker) = self.registry.remove(worker_id) {
            self.prefixes.forget(worker.row.incarnation);
            self.supply.worker_left(&worker, turn);
            turn.write(Write::DeleteWorker(worker_id.clone()));
        }
    }

    /// Takes a worker whose process has ended out of everything that knows it, for good: what it still
    /// had on the way is refused.
    pub(crate) fn forget_ended_worker(&mut self, worker_id: &WorkerId, turn: &mut Turn) {
        if let Some(instance) = self.registry.get(worker_id).map(|worker| worker.row.facts.instance) {
            self.registry.note_ended(instance);
        }
        self.forget_worker(worker_id, turn);
    }

    /// After the orchestrator itself stood still, silence proves nothing: every worker is suspect
    /// and asked, and none is lost before it could have spoken.
    pub(crate) fn excuse_silence(&mut self, turn: &mut Turn) {
        let grace = Time(turn.now.0.saturating_sub(self.settings.lease.suspect_ms));
        let living = |worker: &&mut Worker| worker.gone.is_none() && worker.last_heard < grace;
        for worker in self.registry.all_mut().filter(living) {
            worker.last_heard = grace;
            worker.probed = false;
            turn.workers_touched.insert(worker.row.facts.worker_id.clone());
        }
    }
}

fn gone_error(worker: &Worker, now: Time) -> ErrorDetail {
    let id = &worker.row.facts.worker_id;
    let message = match worker.gone {
        Some(Gone { state: WorkerState::Failed, .. }) => {
            format!("The worker `{id}` said that it cannot go on while it ran the job.")
        }
        Some(Gone { by_silence: true, .. }) => {
            let silent_ms = now.since(worker.last_heard);
            format!(
                "The worker `{id}` was lost while it ran the job: nothing was heard of it for {silent_ms} ms."
            )
        }
        Some(_) | None => format!("The worker `{id}` was lost while it ran the job: its process is gone."),
    };
    ErrorDetail::new(ErrorCode::WorkerLost, message)
        .with_hint("Submit the job again; `rbees pool worker logs ID` may tell why the worker ended.")
}
