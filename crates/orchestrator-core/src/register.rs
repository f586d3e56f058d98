//! Workers that introduce themselves, show that they live, drain, or fail; and what they still hold.

use api_types::prefix::RetainedPrefix;
use api_types::worker::{WorkerFacts, WorkerState, WorkerStatus};
use api_types::{ErrorCode, ErrorDetail, Incarnation, InstanceId, PROTOCOL, WorkerId};
use serde_json::json;

use crate::event::{RequestId, Run, RunKey};
use crate::orchestrator::Orchestrator;
use crate::row::WorkerRow;
use crate::step::Answer;
use crate::turn::Turn;
use crate::worker::{SlotUse, Worker};

/// What a worker says of itself in a registration.
#[derive(Debug)]
pub(crate) struct Introduction {
    /// What it is.
    pub facts: WorkerFacts,
    /// What it is doing.
    pub status: WorkerStatus,
    /// Our jobs among the runs whose logs it holds.
    pub runs: Vec<Run>,
    /// What to authenticate with when calling it.
    pub secret: Option<String>,
}

/// What a worker says of itself in a heartbeat.
#[derive(Debug)]
pub(crate) struct Beat {
    /// The worker.
    pub worker_id: WorkerId,
    /// The number it was given.
    pub incarnation: Incarnation,
    /// Which start of it speaks.
    pub instance: InstanceId,
    /// What it is doing.
    pub status: WorkerStatus,
    /// Our jobs among the runs whose logs it holds.
    pub runs: Vec<Run>,
    /// Free memory of its device, in bytes, when it tells.
    pub free_memory_bytes: Option<u64>,
    /// What it keeps of prompts in its KV cache, when it tells.
    pub prefixes: Option<Vec<RetainedPrefix>>,
}

impl Orchestrator {
    /// Takes a worker into the registry, or renews its entry.
    pub(crate) fn worker_ready(&mut self, request: RequestId, introduction: Introduction, turn: &mut Turn) {
        if let Err(error) = self.check_introduction(&introduction.facts) {
            return turn.refuse(request, error);
        }
        let worker_id = introduction.facts.worker_id.clone();
        let runs = introduction.runs.clone();
        let failed = introduction.status == WorkerStatus::Failed;
        let incarnation = match self.current_incarnation(&introduction.facts) {
            Some(incarnation) => self.renew_entry(introduction, incarnation, turn),
            None => self.new_entry(introduction, turn),
        };
        turn.workers_touched.insert(worker_id.clone());
        self.spawn_registered(&worker_id, turn);
        let drop_runs = self.reconcile(&worker_id, &runs, turn);
        turn.answer(request, Answer::Registered { incarnation, drop_runs });
        if failed {
            self.give_up_worker(&worker_id, WorkerState::Failed, false, turn);
        }
    }

    fn check_introduction(&self, facts: &WorkerFacts) -> Result<(), ErrorDetail> {
        if facts.protocol != PROTOCOL {
            return Err(version_skew(facts));
        }
        if facts.slots == 0 {
            return Err(ErrorDetail::new(ErrorCode::InvalidField, "A worker has at least 1 slot.")
                .with_field("facts.slots")
                .with_details(json!({ "reason": "out_of_range" })));
        }
        if self.registry.get(&facts.worker_id).is_some_and(|worker| worker.is_past(facts.instance)) {
            return Err(superseded(&facts.worker_id));
        }
        if self.registry.has_ended(facts.instance) { Err(ended(&facts.worker_id)) } else { Ok(()) }
    }

    /// The number of the same start of the same worker, if it is still its current one.
    fn current_incarnation(&self, facts: &WorkerFacts) -> Option<Incarnation> {
        let worker = self.registry.get(&facts.worker_id)?;
        let same = worker.row.facts.instance == facts.instance && worker.gone.is_none();
        same.then_some(worker.row.incarnation)
    }

    fn renew_entry(&mut self, new: Introduction, incarnation: Incarnation, turn: &mut Turn) -> Incarnation {
        let Some(mut worker) = self.registry.remove(&new.facts.worker_id) else { return incarnation };
        let row = WorkerRow { facts: new.facts, secret: new.secret, ..worker.row.clone() };
        if row != worker.row {
            turn.save_worker(&row);
        }
        worker.row = row;
        worker.hear(new.status, turn.now);
        turn.to_place.insert(worker.row.facts.model.clone());
        self.registry.put(worker);
        incarnation
    }

    /// Another start (or one that was given up): what the old one ran is lost.
    fn new_entry(&mut self, new: Introduction, turn: &mut Turn) -> Incarnation {
        let incarnation = self.registry.draw_incarnation();
        let worker_id = new.facts.worker_id.clone();
        let same_process = |old: &&Worker| old.row.facts.instance == new.facts.instance;
        let draining = self.registry.get(&worker_id).filter(same_process).is_some_and(|old| old.row.draining);
        self.lose_runs(&worker_id, &restarted(&worker_id), turn);
        if let Some(old) = self.registry.get(&worker_id) {
            self.prefixes.forget(old.row.incarnation);
        }
        let row = WorkerRow {
            facts: new.facts,
            incarnation,
            next_incarnation: self.registry.next_incarnation,
            secret: new.secret,
            draining,
        };
        turn.save_worker(&row);
        turn.to_place.insert(row.facts.model.clone());
        let worker = match self.registry.get(&worker_id) {
            Some(old) => old.succeed(row, new.status, turn.now),
            None => Worker::new(row, Some(new.status), turn.now),
        };
        self.registry.put(worker);
        incarnation
    }

    /// A sign of life. One with an old number is refused, so that the worker introduces itself again.
    pub(crate) fn worker_heartbeat(&mut self, request: RequestId, beat: Beat, turn: &mut Turn) {
        let Some(worker) = self.registry.get_mut(&beat.worker_id).filter(|worker| is_current(worker, &beat))
        else {
            turn.drop_stale("heartbeat");
            return turn.refuse(request, unknown_incarnation(&beat));
        };
        worker.hear(beat.status, turn.now);
        worker.free_memory_bytes = beat.free_memory_bytes.unwrap_or(worker.free_memory_bytes);
        let drain = worker.row.draining;
        turn.to_place.insert(worker.row.facts.model.clone());
        turn.workers_touched.insert(beat.worker_id.clone());
        if let Some(kept) = &beat.prefixes {
            self.prefixes_reported(&beat.worker_id, kept, turn.now);
        }
        let drop_runs = self.reconcile(&beat.worker_id, &beat.runs, turn);
        turn.answer(request, Answer::Heartbeat { drop_runs, drain });
        if beat.status == WorkerStatus::Failed {
            self.give_up_worker(&beat.worker_id, WorkerState::Failed, false, turn);
        }
    }

    /// Compares what a worker holds with what we believe. Returns the runs that nobody waits for,
    /// and asks for the streams of runs that it ought to hold but does not list.
    fn reconcile(&mut self, worker_id: &WorkerId, listed: &[Run], turn: &mut Turn) -> Vec<Run> {
        let Some(worker) = self.registry.get_mut(worker_id) else { return Vec::new() };
        let incarnation = worker.row.incarnation;
        worker.settle_stopping(listed);
        let believed: Vec<_> = worker
            .runs
            .iter()
            .filter(|(_, slot)| **slot == SlotUse::Wanted)
            .map(|(&(job_id, attempt), _)| RunKey {
                job_id,
                attempt,
                worker_id: worker_id.clone(),
                incarnation,
            })
            .collect();
        let is_listed =
            |run: &RunKey| listed.iter().any(|l| l.job_id == run.job_id && l.attempt == run.attempt);
        for run in believed.iter().filter(|run| !is_listed(run)) {
            self.look_for_run(run, turn);
        }
        let wanted = |run: &Run| believed.iter().any(|b| b.job_id == run.job_id && b.attempt == run.attempt);
        listed.iter().filter(|run| !wanted(run)).copied().collect()
    }

    /// A run that was handed out a while ago and is not listed: its own log is the truth, because the
    /// list may be older than the run. A stream of it that is still open is left alone.
    fn look_for_run(&mut self, run: &RunKey, turn: &mut Turn) {
        let Some(dispatched_at) = self
            .jobs
            .get(&run.job_id)
            .filter(|job| job.run().as_ref() == Some(run))
            .and_then(|job| job.row.attempt.as_ref())
            .map(|attempt| attempt.dispatched_at)
        else {
            return;
        };
        if turn.now.since(dispatched_at) >= self.settings.lease.run_listed_ms {
            self.take_up_again(run, turn);
        }
    }

    /// A worker (or its pool) says that it ended or cannot go on.
    pub(crate) fn worker_failed(
        &mut self,
        request: Option<RequestId>,
        worker_id: &WorkerId,
        instance: InstanceId,
        error: ErrorDetail,
        turn: &mut Turn,
    ) {
        let worker = self
            .registry
            .get_mut(worker_id)
            .filter(|worker| worker.row.facts.instance == instance && worker.gone.is_none());
        if let Some(worker) = worker {
            worker.failure = Some(error);
            self.give_up_worker(worker_id, WorkerState::Failed, false, turn);
        } else {
            turn.drop_stale("worker_failed");
        }
        if let Some(request) = request {
            turn.answer(request, Answer::Done);
        }
    }

    /// The operator wants a worker to finish its jobs and end.
    pub(crate) fn drain_worker(&mut self, request: RequestId, worker_id: &WorkerId, turn: &mut Turn) {
        let Some(worker) = self.registry.get_mut(worker_id) else {
            return turn.refuse(request, no_such_worker(worker_id));
        };
        if !worker.row.draining {
            worker.row.draining = true;
            turn.save_worker(&worker.row);
            turn.supply = true;
        }
        turn.answer(request, Answer::Done);
    }
}

fn is_current(worker: &Worker, beat: &Beat) -> bool {
    worker.gone.is_none()
        && worker.row.incarnation == beat.incarnation
        && worker.row.facts.instance == beat.instance
}

fn version_skew(facts: &WorkerFacts) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::VersionSkew,
        format!(
            "The worker `{}` (rbees {}) speaks protocol {}, the orchestrator protocol {PROTOCOL}.",
            facts.worker_id, facts.version, facts.protocol
        ),
    )
    .with_hint("Install the same version of rbees on both machines.")
}

fn superseded(worker_id: &WorkerId) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::StaleIncarnation,
        format!("A newer start of the worker `{worker_id}` has registered; this one takes no jobs any more."),
    )
    .with_details(json!({ "reason": "superseded" }))
}

fn ended(worker_id: &WorkerId) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::StaleIncarnation,
        format!("This start of the worker `{worker_id}` was taken out of service and has ended."),
    )
    .with_details(json!({ "reason": "superseded" }))
    .with_hint("Start the worker anew.")
}

fn unknown_incarnation(beat: &Beat) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::StaleIncarnation,
        format!(
            "Incarnation {} of the worker `{}` is not its current one.",
            beat.incarnation, beat.worker_id
        ),
    )
    .with_hint("Register again with POST /v2/workers/ready.")
}

fn restarted(worker_id: &WorkerId) -> ErrorDetail {
    let message = format!("The worker `{worker_id}` was started anew while it ran the job.");
    ErrorDetail::new(ErrorCode::WorkerLost, message)
}

fn no_such_worker(worker_id: &WorkerId) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::WorkerNotFound, format!("No worker has the id `{worker_id}`."))
        .with_hint("`rbees status` lists the workers.")
}
