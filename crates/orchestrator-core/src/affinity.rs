//! What ties a job to certain workers: the prompt they hold, the session they served.

use api_types::WorkerId;
use api_types::prefix::{BLOCK_BYTES, RetainedPrefix};

use crate::event::RunKey;
use crate::orchestrator::Orchestrator;
use crate::row::JobRow;
use crate::time::Time;

/// The workers that a job has affinity to; a handful.
#[derive(Debug)]
pub(crate) struct Affinity<'a> {
    prompt_bytes: u64,
    /// Workers that hold the start of the prompt, with its length in bytes.
    held: Vec<(&'a WorkerId, u64)>,
    /// The worker that ran the last job of the session.
    session: Option<&'a WorkerId>,
}

impl Affinity<'_> {
    /// The workers, some perhaps twice.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerId> {
        self.held.iter().map(|(worker_id, _)| *worker_id).chain(self.session)
    }

    /// Bytes of the prompt that a worker holds.
    pub fn held_bytes(&self, worker_id: &WorkerId) -> u64 {
        self.held.iter().find(|(holder, _)| *holder == worker_id).map_or(0, |(_, bytes)| *bytes)
    }

    /// The share of the prompt that a worker holds, from 0 to 1.
    pub fn prefix_share(&self, worker_id: &WorkerId) -> f64 {
        self.held_bytes(worker_id) as f64 / self.prompt_bytes.max(1) as f64
    }

    /// Whether a worker ran the last job of the session.
    pub fn session_here(&self, worker_id: &WorkerId) -> bool {
        self.session == Some(worker_id)
    }
}

impl Orchestrator {
    /// Whom a job has affinity to.
    pub(crate) fn affinity(&self, row: &JobRow) -> Affinity<'_> {
        let bytes = |blocks: usize| u64::try_from(blocks.saturating_mul(BLOCK_BYTES)).unwrap_or(u64::MAX);
        let held = self.prefixes.find(&row.model, &row.prefix).into_iter();
        Affinity {
            prompt_bytes: row.prompt_bytes,
            held: held.map(|(worker_id, blocks)| (worker_id, bytes(blocks).min(row.prompt_bytes))).collect(),
            session: row.session_id.as_ref().and_then(|id| self.session_worker(&row.tenant, id)),
        }
    }

    /// A worker that keeps prompts was given one.
    pub(crate) fn prompt_given(&mut self, run: &RunKey, now: Time) {
        let keeper = self.registry.holder(run).and_then(|worker| worker.keeper());
        if let (Some(keeper), Some(job)) = (keeper, self.jobs.get(&run.job_id)) {
            self.prefixes.note(keeper, &job.row.prefix, now);
        }
    }

    /// A worker told which prompts it keeps. It may not have begun what it was sent a moment ago.
    pub(crate) fn prefixes_reported(&mut self, worker_id: &WorkerId, kept: &[RetainedPrefix], now: Time) {
        let settled_before = Time(now.0.saturating_sub(self.settings.lease.run_listed_ms));
        if let Some(keeper) = self.registry.get(worker_id).and_then(|worker| worker.keeper()) {
            self.prefixes.report(keeper, kept, settled_before, now);
        }
    }
}
