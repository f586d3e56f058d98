//! Whether a worker can take a job, and everything that speaks against it.

use api_types::task::Placement;
use api_types::why::RuledOut;
use api_types::worker::{WorkerState, WorkerStatus};

use crate::row::JobRow;
use crate::settings::Settings;
use crate::time::Time;
use crate::worker::Worker;

/// Whether a worker could take the job now.
pub(crate) fn is_feasible(row: &JobRow, worker: &Worker, settings: &Settings, now: Time) -> bool {
    fits(row, worker) && worker.is_open(settings, now)
}

/// Whether a worker is of the kind that the job asks for, whatever it is doing. Of its memory nothing is
/// asked here: that was taken when it started, for every slot at its full context.
pub(crate) fn fits(row: &JobRow, worker: &Worker) -> bool {
    let facts = &worker.row.facts;
    facts.model == row.model && row.fits_context(facts.context_length) && !misplaced(&row.placement, worker)
}

/// That a context does not hold what a job surely brings along.
pub(crate) const fn too_small(context_length: u32, tokens_at_least: u32) -> RuledOut {
    RuledOut::ContextTooSmall { context_length, tokens_at_least }
}

/// Whether a worker is not what a placement asks for.
pub(crate) fn misplaced(placement: &Placement, worker: &Worker) -> bool {
    let facts = &worker.row.facts;
    placement.worker.as_ref().is_some_and(|wanted| *wanted != facts.worker_id)
        || placement.pool.as_ref().is_some_and(|wanted| Some(wanted) != facts.pool_id.as_ref())
        || placement.avoid.iter().any(|name| is_called(worker, name))
        || !placement.require.iter().all(|name| can(worker, name))
}

/// Whether a name in `prefer` or `avoid` means this worker or its pool.
pub(crate) fn is_called(worker: &Worker, name: &str) -> bool {
    let facts = &worker.row.facts;
    facts.worker_id.as_str() == name || facts.pool_id.as_ref().is_some_and(|pool| pool.as_str() == name)
}

/// Whether a worker has a capability.
pub(crate) fn can(worker: &Worker, capability: &str) -> bool {
    let facts = &worker.row.facts;
    facts.backend == capability || facts.capabilities.iter().any(|has| has == capability)
}

/// Everything that rules a worker out, what lasts longest first; nothing when it is feasible.
pub(crate) fn objections(row: &JobRow, worker: &Worker, settings: &Settings, now: Time) -> Vec<RuledOut> {
    let facts = &worker.row.facts;
    let model = (facts.model != row.model).then(|| RuledOut::OtherModel { runs: facts.model.clone() });
    let mut all: Vec<RuledOut> = model.into_iter().collect();
    all.extend(unmet(&row.placement, worker));
    if !row.fits_context(facts.context_length) {
        all.push(too_small(facts.context_length, row.tokens_at_least));
    }
    all.extend(bad_state(worker, settings, now));
    if worker.slots_free() == 0 {
        all.push(RuledOut::NoFreeSlot { slots: facts.slots, taken: worker.slots_busy() });
    }
    if let Some(until) = worker.paused_until.filter(|until| *until > now) {
        all.push(RuledOut::JustBusy { left_ms: until.since(now) });
    }
    all
}

/// Demands of the job that a worker does not meet.
fn unmet(placement: &Placement, worker: &Worker) -> Vec<RuledOut> {
    let facts = &worker.row.facts;
    let other_worker = placement.worker.iter().filter(|wanted| **wanted != facts.worker_id);
    let other_pool = placement.pool.iter().filter(|wanted| Some(*wanted) != facts.pool_id.as_ref());
    let avoided = placement.avoid.iter().filter(|name| is_called(worker, name));
    let lacks = placement.require.iter().filter(|name| !can(worker, name));
    other_worker
        .map(|wanted| RuledOut::OtherWorker { wanted: wanted.clone() })
        .chain(
            other_pool
                .map(|wanted| RuledOut::OtherPool { wanted: wanted.clone(), pool: facts.pool_id.clone() }),
        )
        .chain(avoided.map(|name| RuledOut::Avoided { name: name.clone() }))
        .chain(lacks.map(|capability| RuledOut::Lacks { capability: capability.clone() }))
        .collect()
}

/// What about its state keeps a worker from any job. What spoke against one that is gone before it went
/// would still do so if it had not gone, except for its silence, which is a part of its going.
fn bad_state(worker: &Worker, settings: &Settings, now: Time) -> Vec<RuledOut> {
    let gone = worker.gone.map(|gone| {
        let failed = gone.state == WorkerState::Failed;
        if failed { RuledOut::Failed } else { RuledOut::Lost }
    });
    let quarantined = worker.quarantined_until.filter(|until| *until > now).map(|until| {
        RuledOut::Quarantined { protocol_errors: worker.protocol_errors, left_ms: until.since(now) }
    });
    let said = bad_status(worker).filter(|said| gone.as_ref() != Some(said));
    let silent = silence(worker, settings, now).filter(|_| gone.is_none());
    gone.into_iter().chain(quarantined).chain(said).chain(silent).collect()
}

/// What it said it is doing, or was told to do, that keeps a worker from any job.
const fn bad_status(worker: &Worker) -> Option<RuledOut> {
    match worker.status {
        None => Some(RuledOut::NotHeard),
        Some(WorkerStatus::Failed) => Some(RuledOut::Failed),
        Some(WorkerStatus::Draining) => Some(RuledOut::Draining),
        Some(WorkerStatus::Loading | WorkerStatus::Ready) if worker.row.draining => Some(RuledOut::Draining),
        Some(WorkerStatus::Loading) => Some(RuledOut::Loading),
        Some(WorkerStatus::Ready) => None,
    }
}

fn silence(worker: &Worker, settings: &Settings, now: Time) -> Option<RuledOut> {
    let (silent_ms, limit_ms) = (now.since(worker.last_heard), settings.lease.suspect_ms);
    (silent_ms >= limit_ms).then_some(RuledOut::Silent { silent_ms, limit_ms })
}
