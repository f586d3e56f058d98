//! What follows from the record of a placement alone, and what would have led elsewhere.

use api_types::task::{Candidate, Decision, Placement};
use api_types::why::{Change, Counterfactual, RuledOut, ScoreTerms};
use api_types::{PoolId, WorkerId};

use crate::affinity::Affinity;
use crate::orchestrator::Orchestrator;
use crate::rank::{Looked, Ranked, built_in_terms};
use crate::row::JobRow;
use crate::worker::Worker;

/// Unknown names that a record of a placement tells, of any number that a job gives.
const UNKNOWN_NAMES: usize = 8;

/// The choice that the recorded reasons lead to, by nothing but the record: of the candidates that
/// nothing rules out, the one whose terms add up to the most, and between equals the lower id.
pub fn reproduce(decision: &Decision) -> Option<WorkerId> {
    let score = |candidate: &Candidate| candidate.terms.filter(|_| candidate.because.is_none());
    decision
        .candidates
        .iter()
        .filter_map(|candidate| Some((score(candidate)?.total(), &candidate.worker_id)))
        .min_by(|(a, a_id), (b, b_id)| b.total_cmp(a).then_with(|| a_id.cmp(b_id)))
        .map(|(_, worker_id)| worker_id.clone())
}

/// A change that would have led elsewhere, and how far it is from what was so.
struct Distant {
    slots: u32,
    score: f64,
    counterfactual: Counterfactual,
}

impl Orchestrator {
    /// The nearest change that would have led to another choice: another worker with the fewest more
    /// free slots, or without the one condition that rules it out; else the picked one's absence. The
    /// points of a script for facts that were not so are not known, so there it is always the last.
    pub(crate) fn counterfactual(
        &self,
        row: &JobRow,
        looked: &Looked<'_>,
        ruled_out: &[(&Worker, Vec<RuledOut>)],
        affinity: &Affinity<'_>,
    ) -> Option<Counterfactual> {
        let best = looked.ranking.first().filter(|best| best.terms.is_some());
        let others = looked.ranking.get(1..).unwrap_or_default();
        let beats = |worker: &Worker, slots_free: u32| {
            let terms = built_in_terms(row, worker, affinity, slots_free);
            let other = Ranked { worker, terms: Some(terms) };
            best.is_none_or(|best| other.order(best).is_lt()).then_some(terms)
        };
        let with_slots = others.iter().filter_map(|other| with_more_slots(other.worker, beats));
        let without_objection =
            ruled_out.iter().filter_map(|(worker, why)| without_objection(worker, why, beats));
        let nearest = with_slots
            .chain(without_objection)
            .filter(|_| looked.is_built_in)
            .min_by(|a, b| a.slots.cmp(&b.slots).then_with(|| b.score.total_cmp(&a.score)));
        nearest.map(|nearest| nearest.counterfactual).or_else(|| {
            let runner_up = others.first().filter(|other| other.terms.is_some())?;
            let worker_id = runner_up.worker.row.facts.worker_id.clone();
            best.map(|_| Counterfactual { worker_id, change: Change::PickedAbsent })
        })
    }

    /// Names in a placement that mean no worker and no pool that is known; the first few.
    pub(crate) fn unknown_names(&self, placement: &Placement) -> Vec<String> {
        let is_pool = |id: &PoolId| self.pools.contains_key(id) || self.registry.openings().has_pool(id);
        let is_worker = |id: &WorkerId| self.registry.get(id).is_some();
        let is_either = |name: &str| {
            name.parse().is_ok_and(|id| is_worker(&id)) || name.parse().is_ok_and(|id| is_pool(&id))
        };
        let pool = placement.pool.iter().filter(|id| !is_pool(id)).map(ToString::to_string);
        let worker = placement.worker.iter().filter(|id| !is_worker(id)).map(ToString::to_string);
        let names = placement.prefer.iter().chain(&placement.avoid).filter(|name| !is_either(name));
        pool.chain(worker).chain(names.cloned()).take(UNKNOWN_NAMES).collect()
    }
}

/// With how many free slots a feasible worker would have been taken.
fn with_more_slots(worker: &Worker, beats: impl Fn(&Worker, u32) -> Option<ScoreTerms>) -> Option<Distant> {
    let free = worker.slots_free();
    (free + 1..=worker.row.facts.slots).find_map(|slots_free| {
        let change = Change::FreeSlots { slots_free };
        Some(distant(worker, change, slots_free - free, beats(worker, slots_free)?))
    })
}

/// Whether a worker that one condition alone rules out would have been taken without it.
fn without_objection(
    worker: &Worker,
    why: &[RuledOut],
    beats: impl Fn(&Worker, u32) -> Option<ScoreTerms>,
) -> Option<Distant> {
    let [because] = why else { return None };
    if !is_about_the_worker(because) {
        return None;
    }
    let change = Change::Lifted { because: because.clone() };
    Some(distant(worker, change, 1, beats(worker, worker.slots_free().max(1))?))
}

/// Whether a condition is one of the worker. Without a demand of the job others would be free to take
/// it too, so lifting that says little about this worker.
const fn is_about_the_worker(because: &RuledOut) -> bool {
    match because {
        RuledOut::OtherModel { .. }
        | RuledOut::OtherWorker { .. }
        | RuledOut::OtherPool { .. }
        | RuledOut::Avoided { .. }
        | RuledOut::Lacks { .. }
        | RuledOut::KeptFree { .. } => false,
        RuledOut::Loading
        | RuledOut::Draining
        | RuledOut::Failed
        | RuledOut::Lost
        | RuledOut::NotHeard
        | RuledOut::Silent { .. }
        | RuledOut::Quarantined { .. }
        | RuledOut::NoFreeSlot { .. }
        | RuledOut::ContextTooSmall { .. }
        | RuledOut::JustBusy { .. } => true,
    }
}

fn distant(worker: &Worker, change: Change, slots: u32, terms: ScoreTerms) -> Distant {
    let worker_id = worker.row.facts.worker_id.clone();
    Distant { slots, score: terms.total(), counterfactual: Counterfactual { worker_id, change } }
}
