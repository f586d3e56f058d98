//! How good each feasible worker looks, in terms that add up, and what is written down of it.

use std::cmp::Ordering;

use api_types::task::{Candidate, Decision};
use api_types::why::{RuledOut, ScoreTerms, millionths};

use crate::affinity::Affinity;
use crate::feasible::{is_called, objections};
use crate::orchestrator::Orchestrator;
use crate::policy::{LeastLoaded, Score};
use crate::row::JobRow;
use crate::time::Time;
use crate::worker::Worker;

/// On top of a policy's score (at most 1,000) for a worker or pool that the job prefers.
const PREFERRED: f64 = 10_000.0;
/// Below any policy's score for a worker that already failed this job.
const FAILED_BEFORE: f64 = -5_000.0;

/// How many of each kind a record of a placement names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    /// Feasible ones, the best.
    pub feasible: usize,
    /// Those ruled out; first the ones that the job has affinity to or prefers.
    pub ruled_out: usize,
}

impl Kept {
    /// What is stored with each attempt: well under 4 KiB.
    pub const STORED: Self = Self { feasible: 8, ruled_out: 6 };
    /// What a question about a waiting job gets.
    pub const SHOWN: Self = Self { feasible: 32, ruled_out: 32 };
}

/// A feasible worker with its score.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ranked<'a> {
    /// The worker.
    pub worker: &'a Worker,
    /// What its score is made of; `None` when the policy keeps it free of this job.
    pub terms: Option<ScoreTerms>,
}

impl<'a> Ranked<'a> {
    /// By the built-in policy.
    pub fn built_in(row: &JobRow, worker: &'a Worker, affinity: &Affinity<'_>) -> Self {
        Self { worker, terms: Some(built_in_terms(row, worker, affinity, worker.slots_free())) }
    }

    /// By a script, whose points count in whole millionths.
    pub fn scripted(row: &JobRow, worker: &'a Worker, score: Score) -> Self {
        let terms = match score {
            Score::Points(policy) => Some(ScoreTerms { policy: millionths(policy), ..wishes(row, worker) }),
            Score::KeepFree => None,
        };
        Self { worker, terms }
    }

    /// Best first and by id between equals; last those that the policy keeps free of the job.
    pub fn order(&self, other: &Self) -> Ordering {
        let score = |ranked: &Self| ranked.terms.map_or(f64::NEG_INFINITY, |terms| terms.total());
        let by_id = || self.worker.row.facts.worker_id.cmp(&other.worker.row.facts.worker_id);
        score(other).total_cmp(&score(self)).then_with(by_id)
    }

    fn candidate(&self, affinity: &Affinity<'_>, policy: &str) -> Candidate {
        let because = self.terms.is_none().then(|| RuledOut::KeptFree { policy: policy.to_owned() });
        candidate(self.worker, affinity, self.terms, because)
    }
}

/// The built-in policy's terms for a worker that had so many free slots.
pub(crate) fn built_in_terms(
    row: &JobRow,
    worker: &Worker,
    affinity: &Affinity<'_>,
    slots_free: u32,
) -> ScoreTerms {
    let worker_id = &worker.row.facts.worker_id;
    ScoreTerms {
        affinity: LeastLoaded::affinity(affinity.prefix_share(worker_id), affinity.session_here(worker_id)),
        load: LeastLoaded::load(slots_free, worker.row.facts.slots),
        memory: LeastLoaded::memory(worker.free_memory_bytes),
        ..wishes(row, worker)
    }
}

/// What the job's own wishes and past add to any score.
fn wishes(row: &JobRow, worker: &Worker) -> ScoreTerms {
    let is_preferred = row.placement.prefer.iter().any(|name| is_called(worker, name));
    let has_failed =
        row.attempt.as_ref().is_some_and(|attempt| attempt.worker_id == worker.row.facts.worker_id);
    ScoreTerms {
        prefer: if is_preferred { PREFERRED } else { 0.0 },
        failed: if has_failed { FAILED_BEFORE } else { 0.0 },
        ..ScoreTerms::default()
    }
}

fn candidate(
    worker: &Worker,
    affinity: &Affinity<'_>,
    terms: Option<ScoreTerms>,
    because: Option<RuledOut>,
) -> Candidate {
    let facts = &worker.row.facts;
    let failure = worker.failure.as_ref().filter(|_| because == Some(RuledOut::Failed));
    let ruled_out = because.as_ref().map(|because| match failure {
        Some(failure) => format!("{because}: {failure}"),
        None => because.to_string(),
    });
    Candidate {
        worker_id: facts.worker_id.clone(),
        feasible: because.is_none(),
        ruled_out,
        because,
        score: terms.map(|terms| terms.total()),
        terms,
        prompt_bytes_held: Some(affinity.held_bytes(&facts.worker_id)).filter(|bytes| *bytes > 0),
        slots_free: worker.slots_free(),
        slots: facts.slots,
    }
}

/// Everything that a placement looked at.
#[derive(Debug)]
pub(crate) struct Looked<'a> {
    /// Who could take the job, best first.
    pub ranking: Vec<Ranked<'a>>,
    /// Who could not.
    pub ruled_out: Vec<&'a Worker>,
    /// Who scored.
    pub policy: &'a str,
    /// Whether that was the built-in policy, so that its points can be had for other facts.
    pub is_built_in: bool,
}

impl<'a> Looked<'a> {
    /// Adds those that were looked at in addition; what another policy said before it answered for the
    /// first one counts no more.
    pub fn add(&mut self, further: Self) {
        if further.ranking.is_empty() {
            return;
        }
        if further.policy == self.policy {
            self.ranking.extend(further.ranking);
            self.ranking.sort_by(Ranked::order);
        } else {
            self.ranking = further.ranking;
        }
        (self.policy, self.is_built_in) = (further.policy, further.is_built_in);
    }

    /// The worker that the job goes to.
    pub fn picked(&self) -> Option<&'a Worker> {
        self.ranking.first().filter(|best| best.terms.is_some()).map(|best| best.worker)
    }
}

impl Orchestrator {
    /// Writes down what a placement looked at.
    pub(crate) fn record(
        &self,
        row: &JobRow,
        mut looked: Looked<'_>,
        affinity: &Affinity<'_>,
        kept: Kept,
        now: Time,
    ) -> Decision {
        let picked = looked.picked().map(|worker| worker.row.facts.worker_id.clone());
        looked.ranking.truncate(kept.feasible);
        let is_near = |worker: &Worker| {
            affinity.workers().any(|near| *near == worker.row.facts.worker_id)
                || row.placement.prefer.iter().any(|name| is_called(worker, name))
        };
        looked.ruled_out.sort_by_key(|worker| (worker.row.facts.model != row.model, !is_near(worker)));
        looked.ruled_out.truncate(kept.ruled_out);
        let objected: Vec<(&Worker, Vec<RuledOut>)> = looked
            .ruled_out
            .iter()
            .map(|worker| (*worker, objections(row, worker, &self.settings, now)))
            .collect();
        let counterfactual = self.counterfactual(row, &looked, &objected, affinity);
        let feasible = looked.ranking.iter().map(|ranked| ranked.candidate(affinity, looked.policy));
        let ruled_out = objected
            .into_iter()
            .map(|(worker, why)| candidate(worker, affinity, None, why.into_iter().next()));
        Decision {
            attempt: 0,
            at: now.rfc3339(),
            policy: looked.policy.to_owned(),
            queue_depth: self.queue.len(),
            waited_ms: now.since(row.submitted_at),
            candidates: feasible.chain(ruled_out).collect(),
            picked,
            counterfactual,
            unknown_names: self.unknown_names(&row.placement),
        }
    }
}
