//! Who goes next: jobs join the queue, are charged to their tenant and session when they are
//! handed out, and are settled when they end.

use api_types::JobId;
use api_types::sampling::DEFAULT_MAX_TOKENS;

use crate::estimate::latest_start;
use crate::job::Job;
use crate::orchestrator::Orchestrator;
use crate::policy::Hook;
use crate::queue::{Next, Rank};
use crate::row::JobRow;
use crate::time::Time;
use crate::turn::Turn;

/// Bytes of text behind a token as a rule, until a worker has counted.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens that a prompt has besides those of its bytes at most: the mark of its beginning.
const BEGIN_TOKENS: u64 = 1;
/// Tokens that a chat template adds at most, as far as is known of any: the marks of roles, and a
/// system prompt of its own.
const TEMPLATE_TOKENS: u64 = 512;
/// Tokens of context that a model is taken to have at most while neither a worker nor a catalog says.
const LARGEST_CONTEXT: u64 = 131_072;

impl Orchestrator {
    /// A job that has to wait takes its place: among those that may be handed out, or apart from
    /// them until its pause is over.
    pub(crate) fn join_queue(&mut self, job_id: JobId, turn: &mut Turn) {
        let Some(job) = self.jobs.get(&job_id) else { return };
        self.tenants.wait(&job.row.tenant);
        if job.resting {
            self.queue.rest(&job.row);
        } else {
            let rank = self.rank(&job.row, turn);
            self.queue.push(&job.row, rank);
        }
    }

    /// The pause of a waiting job is over.
    pub(crate) fn wake_in_queue(&mut self, job_id: JobId, turn: &mut Turn) {
        let Some(job) = self.jobs.get(&job_id) else { return };
        let rank = self.rank(&job.row, turn);
        self.queue.wake(&job.row, rank);
    }

    /// Lets the batch jobs of a model age that have waited long enough.
    pub(crate) fn age_waiting(&mut self, model: &str, turn: &mut Turn) {
        while let Some(job_id) = self.queue.due_to_age(model, &self.settings, turn.now) {
            let Some(job) = self.jobs.get(&job_id) else { return };
            let rank = self.rank(&job.row, turn);
            self.queue.age(&job.row, rank);
        }
    }

    /// Takes the next job out of the queue, and charges its tenant and session for it.
    pub(crate) fn begin_service(&mut self, next: &Next) {
        let Some(job) = self.jobs.get_mut(&next.job_id) else { return };
        let (tenant, tokens) = (&job.row.tenant, expected_tokens(&job.row));
        let weight = self.settings.quotas.of(tenant).weight;
        job.charge = self.queue.take(&job.row, next.aged, tokens, weight);
        self.tenants.stop_waiting(tenant);
        if self.tenants.begin_service(&self.settings.quotas, tenant) {
            self.queue.block(tenant);
        }
    }

    /// A worker held this job when the orchestrator started: it is charged as if handed out now.
    pub(crate) fn go_on_serving(&mut self, job_id: JobId) {
        let Some(job) = self.jobs.get(&job_id) else { return };
        self.tenants.wait(&job.row.tenant);
        self.queue.push(&job.row, Rank::default());
        self.begin_service(&Next::of(&job.row));
    }

    /// No worker holds this job any longer, and it waits once more. What it took so far is on the
    /// house.
    pub(crate) fn return_to_queue(&mut self, job_id: JobId, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        if let Some(charge) = job.charge.take() {
            self.queue.settle(&job.row, &charge, 0);
            let tenant = job.row.tenant.clone();
            self.end_service(&tenant, turn);
        }
        self.join_queue(job_id, turn);
    }

    /// A job has ended: what it was taken to cost gives way to what it did cost.
    pub(crate) fn settle_tokens(&mut self, job: &Job, turn: &mut Turn) {
        self.release_tokens(job, job.tokens_spent(), turn);
        self.save_session(job, turn);
    }

    /// Releases all that was booked for a job, which leaves having cost `spent` tokens: its place
    /// among its tenant's jobs, its charge, its tenant's minute and its session. Writes nothing.
    pub(crate) fn release_tokens(&mut self, job: &Job, spent: u64, turn: &mut Turn) {
        let row = &job.row;
        match &job.charge {
            None => self.tenants.stop_waiting(&row.tenant),
            Some(charge) => {
                self.queue.settle(row, charge, spent);
                self.end_service(&row.tenant, turn);
            }
        }
        self.tenants.settle(&self.settings.quotas, &row.tenant, job.reserved, spent, turn.now);
        self.sessions.close(row, job.reserved, spent, turn.now);
    }

    fn end_service(&mut self, tenant: &api_types::TenantId, turn: &mut Turn) {
        if self.tenants.end_service(&self.settings.quotas, tenant) {
            turn.to_place.extend(self.queue.unblock(tenant));
        }
    }

    /// What decides a job's place within its flow: the policy's key, then its slack.
    fn rank(&self, row: &JobRow, turn: &mut Turn) -> Rank {
        let order = if self.policy.asks(Hook::Order) {
            self.policy.order(&row.job_id, &self.job_facts(row, turn.now), &mut turn.policy)
        } else {
            0
        };
        Rank { order, latest_start: latest_start(row) }
    }

    /// Sets aside what a job takes at most; gives how much that is.
    pub(crate) fn reserve_tokens(&mut self, row: &JobRow, now: Time) -> u64 {
        let tokens = self.worst_case_tokens(row);
        self.tenants.reserve(&self.settings.quotas, &row.tenant, tokens, now);
        tokens
    }

    /// Tokens of prompt and output that a job takes at most: each byte may be a token, and together
    /// they fit the largest context that the model is known to have.
    pub(crate) fn worst_case_tokens(&self, row: &JobRow) -> u64 {
        let context = self.largest_context(&row.model);
        let both = |output| most_prompt_tokens(row).saturating_add(u64::from(output));
        match row.max_tokens {
            Some(output) => both(output).min(context.unwrap_or(u64::MAX)),
            None => context.unwrap_or(LARGEST_CONTEXT),
        }
    }

    fn largest_context(&self, model: &str) -> Option<u64> {
        let of_catalogs = self.catalogs.values().flatten().filter(|known| known.id == model);
        let trained_for = of_catalogs.filter_map(|known| known.context_length).max();
        self.registry.openings().most_context(model).max(trained_for).map(u64::from)
    }
}

/// Tokens that a job is expected to take: its prompt and a usual answer.
fn expected_tokens(row: &JobRow) -> u64 {
    prompt_tokens(row) + u64::from(row.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS).min(DEFAULT_MAX_TOKENS))
}

/// Tokens of a prompt at most.
pub(crate) fn most_prompt_tokens(row: &JobRow) -> u64 {
    let template = if row.chat { TEMPLATE_TOKENS } else { 0 };
    row.prompt_bytes.saturating_add(BEGIN_TOKENS + template)
}

/// Tokens of a prompt as a rule; at least 1.
pub(crate) fn prompt_tokens(row: &JobRow) -> u64 {
    row.prompt_bytes.div_ceil(BYTES_PER_TOKEN).max(1)
}
