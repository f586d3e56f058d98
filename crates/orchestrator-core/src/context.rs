//! Jobs that are too long for the context of some workers and not of others.

use api_types::ErrorDetail;
use api_types::task::Placement;

use crate::event::RunKey;
use crate::feasible::misplaced;
use crate::orchestrator::Orchestrator;
use crate::row::WorkerRow;
use crate::time::Time;

/// Bits of a count that are kept, so that jobs of about the same length have the same demands.
const KEPT_BITS: u32 = 4;

/// A count rounded down to one of eight values between a power of two and the next. Contexts are such
/// values as a rule, and then it tells what the count itself would.
pub(crate) const fn at_least(tokens: u32) -> u32 {
    let dropped = (u32::BITS - tokens.leading_zeros()).saturating_sub(KEPT_BITS);
    tokens >> dropped << dropped
}

impl Orchestrator {
    /// A worker says that a job is too long for its context. Notes it, and returns whether some worker
    /// that the job may run on could hold it, now or once it has loaded.
    pub(crate) fn outgrew(&mut self, run: &RunKey, error: &ErrorDetail, now: Time) -> bool {
        let Some(worker) = self.registry.holder(run) else { return false };
        let context = worker.row.facts.context_length;
        let Some(job) = self.jobs.get_mut(&run.job_id) else { return false };
        let counted = error.details.as_ref().and_then(|details| details.get("prompt_tokens")?.as_u64());
        let counted = counted.and_then(|tokens| u32::try_from(tokens).ok()).map_or(0, at_least);
        job.row.tokens_at_least = job.row.tokens_at_least.max(context).max(counted);
        self.registry.refresh(&self.settings, now);
        self.jobs.get(&run.job_id).is_some_and(|job| self.holds(&job.row))
    }

    /// Tokens of context that the smallest worker has, if there is one. As of the last event.
    pub fn least_context(&self) -> Option<u32> {
        self.registry.openings().least_context()
    }

    /// As [`Self::least_context`], of the workers of one model.
    pub fn least_context_of(&self, model: &str) -> Option<u32> {
        self.registry.openings().least_context_of(model)
    }

    /// The worker with the largest context of those that could take a task of this model and placement
    /// now or after their running ones: what it cannot hold, none of them can. As of the last event.
    pub fn roomiest(&self, model: &str, placement: &Placement) -> Option<&WorkerRow> {
        let openings = self.registry.openings();
        let worker_id = match &placement.worker {
            Some(named) => Some(named).filter(|named| openings.counts_as_serving(named)),
            None => openings.largest_context(model, placement),
        };
        let worker = self.registry.get(worker_id?)?;
        (worker.row.facts.model == model && !misplaced(placement, worker)).then_some(&worker.row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_rounded_down_by_less_than_an_eighth_and_usual_contexts_are_kept() {
        for tokens in 0..100_000 {
            let rounded = at_least(tokens);
            assert!(rounded <= tokens && tokens - rounded <= tokens / 8, "{tokens} {rounded}");
            assert_eq!(at_least(rounded), rounded);
        }
        for context in [512, 2_048, 4_096, 6_144, 8_192, 32_768, 40_960, 131_072, 1 << 20] {
            assert_eq!(at_least(context), context);
            assert!(at_least(context + 1) >= context && at_least(context - 1) < context);
        }
    }
}
