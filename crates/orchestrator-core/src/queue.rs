//! The order of waiting jobs: interactive before batch with ageing; within a class fair between
//! tenants, then between a tenant's sessions, then by arrival.
//!
//! Jobs are kept by model, and within a model by what they demand of a worker: jobs of one group
//! fit the same workers, so a placement looks at the head of each group and never walks the queue.

mod class;
mod group;
mod lanes;
mod line;
mod passed;
mod ranks;
mod shares;
#[cfg(test)]
#[expect(clippy::unwrap_in_result, reason = "a model that contradicts itself is a failed test")]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use api_types::task::Priority;
use api_types::{JobId, SessionId, TenantId};
use serde::{Deserialize, Serialize};

pub(crate) use self::class::Charge;
use self::class::Class;
pub(crate) use self::group::Group;
use self::line::Ticket;
pub(crate) use self::passed::Passed;
use crate::row::JobRow;
use crate::settings::Settings;
use crate::time::Time;

/// All jobs that wait.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Queue {
    models: BTreeMap<String, ModelQueue>,
    /// Waiting jobs that may not be handed out yet.
    resting: BTreeSet<JobId>,
    /// Waiting batch jobs by number, resting ones included.
    batch: BTreeMap<u64, JobId>,
    /// Tenants of which no job may be handed out for now.
    blocked: BTreeSet<TenantId>,
    /// Marks each arrival in a line.
    sequence: u64,
    len: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct ModelQueue {
    interactive: Class,
    batch: Class,
    /// Batch jobs that have not aged yet, by the time since which they wait.
    young: BTreeSet<(Time, u64, JobId)>,
    /// Placements since an aged batch job last went before a waiting interactive one.
    since_aged: u32,
}

/// What decides a job's place within its flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rank {
    /// The policy's key; the smallest goes first.
    pub order: i64,
    /// When it has to start to end by its deadline.
    pub latest_start: Option<Time>,
}

/// The next job of a model, as [`Queue::next`] picks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Next {
    /// The job.
    pub job_id: JobId,
    /// Its group.
    pub group: Group,
    /// Whether it goes before interactive jobs because it has aged.
    pub aged: bool,
}

impl Next {
    /// This job, when it is not picked by the queue's own order.
    pub fn of(row: &JobRow) -> Self {
        Self { job_id: row.job_id, group: Group::of(row), aged: false }
    }
}

impl Queue {
    /// Adds a job that may be handed out at once.
    pub fn push(&mut self, row: &JobRow, rank: Rank) {
        self.len += 1;
        if row.priority == Priority::Batch {
            self.batch.insert(row.number, row.job_id);
        }
        let ticket = self.ticket(row, rank);
        let blocked = self.blocked.contains(&row.tenant);
        let model = self.models.entry(row.model.clone()).or_default();
        if row.priority == Priority::Batch {
            model.young.insert((row.submitted_at, row.number, row.job_id));
        }
        model.class_mut(row.priority).push(row, ticket, blocked, self.sequence);
    }

    fn ticket(&mut self, row: &JobRow, rank: Rank) -> Ticket {
        self.sequence += 1;
        Ticket::new(row.job_id, rank.order, row.number, self.sequence, rank.latest_start)
    }

    /// Adds a job that waits for its `not_before`.
    pub fn rest(&mut self, row: &JobRow) {
        self.resting.insert(row.job_id);
        self.len += 1;
        if row.priority == Priority::Batch {
            self.batch.insert(row.number, row.job_id);
        }
    }

    /// Lets a resting job join those that may be handed out. Returns whether it was resting.
    pub fn wake(&mut self, row: &JobRow, rank: Rank) -> bool {
        let was_resting = self.resting.remove(&row.job_id);
        if was_resting {
            self.len -= 1;
            self.push(row, rank);
        }
        was_resting
    }

    /// Takes a job out that leaves unserved, wherever it waits.
    pub fn remove(&mut self, row: &JobRow) {
        if self.resting.remove(&row.job_id) || self.leave_line(row) {
            self.count_out(row);
        }
    }

    fn leave_line(&mut self, row: &JobRow) -> bool {
        self.models.get_mut(&row.model).is_some_and(|model| model.remove(row))
    }

    fn count_out(&mut self, row: &JobRow) {
        self.len -= 1;
        self.batch.remove(&row.number);
        if self.models.get(&row.model).is_some_and(ModelQueue::is_empty) {
            self.models.remove(&row.model);
        }
    }

    /// Jobs that wait, resting ones included.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Jobs of this model that wait, resting ones not included.
    pub fn of_model(&self, model: &str) -> u64 {
        self.models.get(model).map_or(0, |model| model.interactive.len() + model.batch.len())
    }

    /// Whether any job of this model may be handed out.
    pub fn has(&self, model: &str) -> bool {
        self.models.get(model).is_some_and(|m| m.interactive.is_servable() || m.batch.is_servable())
    }

    /// Whether jobs of this tenant may be handed out.
    pub fn is_open_to(&self, tenant: &TenantId) -> bool {
        !self.blocked.contains(tenant)
    }

    /// Models of which a job may be handed out, by name.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str)
    }

    /// Of a model, each group with the job whose turn it is, first of one class, then of the other.
    pub fn groups(&self, model: &str) -> impl Iterator<Item = (&Group, JobId)> {
        let classes = self.models.get(model).into_iter().flat_map(|model| [&model.interactive, &model.batch]);
        classes.flat_map(Class::heads)
    }

    /// The waiting batch job that came first.
    pub fn oldest_batch(&self) -> Option<JobId> {
        self.batch.first_key_value().map(|(_, job_id)| *job_id)
    }

    /// A batch job of this model that has waited long enough to age and has not yet.
    pub fn due_to_age(&self, model: &str, settings: &Settings, now: Time) -> Option<JobId> {
        let (since, _, job_id) = self.models.get(model)?.young.first()?;
        (now.since(*since) >= settings.batch_ageing_ms).then_some(*job_id)
    }

    /// Lets a waiting batch job age, under its new rank.
    pub fn age(&mut self, row: &JobRow, rank: Rank) {
        let ticket = self.ticket(row, rank);
        let Some(model) = self.models.get_mut(&row.model) else { return };
        if model.young.remove(&(row.submitted_at, row.number, row.job_id)) {
            model.class_mut(row.priority).age(row, ticket);
        }
    }

    /// The next job of a model, leaving out groups that are known to fit no worker at the moment, and who
    /// was passed over.
    pub fn next(&self, model: &str, passed: &Passed, settings: &Settings) -> Option<Next> {
        let model = self.models.get(model)?;
        let interactive = model.interactive.head(Priority::Interactive, passed);
        let aged_turn = model.since_aged + 1 >= settings.aged_share;
        let aged_turn = aged_turn && interactive.is_some();
        let aged = aged_turn.then(|| model.batch.aged_head(Priority::Batch, passed)).flatten();
        let is_aged = aged.is_some();
        let (group, job_id) = aged.or(interactive).or_else(|| model.batch.head(Priority::Batch, passed))?;
        Some(Next { job_id, group: group.clone(), aged: is_aged })
    }

    /// No open worker meets the demands of this group: it is left out until [`Self::lift_unfit`].
    pub fn set_unfit(&mut self, model: &str, group: &Group) {
        if let Some(model) = self.models.get_mut(model) {
            model.interactive.set_unfit(group);
            model.batch.set_unfit(group);
        }
    }

    /// Groups of which this holds are left out no longer.
    pub fn lift_unfit(&mut self, model: &str, is_met: impl Fn(&Group) -> bool) {
        if let Some(model) = self.models.get_mut(model) {
            model.interactive.lift_unfit(&is_met);
            model.batch.lift_unfit(&is_met);
        }
    }

    /// Takes out a job that [`Queue::next`] named, counts the share of aged jobs, and charges its
    /// tenant and session with what it is expected to cost.
    pub fn take(&mut self, row: &JobRow, aged: bool, tokens: u64, weight: u32) -> Option<Charge> {
        let model = self.models.get_mut(&row.model)?;
        let charge = model.class_mut(row.priority).serve(row, tokens, weight)?;
        model.young.remove(&(row.submitted_at, row.number, row.job_id));
        model.since_aged = if aged { 0 } else { model.since_aged.saturating_add(1) };
        self.count_out(row);
        Some(charge)
    }

    /// A job that was charged has cost so many tokens.
    pub fn settle(&mut self, row: &JobRow, charge: &Charge, tokens: u64) {
        if let Some(model) = self.models.get_mut(&row.model) {
            model.class_mut(row.priority).settle(row, charge, tokens);
        }
    }

    /// No job of this tenant is handed out until [`Self::unblock`]; they keep waiting.
    pub fn block(&mut self, tenant: &TenantId) {
        if self.blocked.insert(tenant.clone()) {
            self.models.values_mut().for_each(|model| model.block(tenant));
        }
    }

    /// Jobs of this tenant may be handed out again. Gives the models that they wait for.
    pub fn unblock(&mut self, tenant: &TenantId) -> Vec<String> {
        if !self.blocked.remove(tenant) {
            return Vec::new();
        }
        let waiting =
            self.models.iter_mut().filter_map(|(name, model)| model.unblock(tenant).then_some(name));
        waiting.cloned().collect()
    }

    /// Jobs of the same model that would go before one that came now, if all jobs cost the same.
    pub fn before_new(
        &self,
        model: &str,
        priority: Priority,
        tenant: &TenantId,
        session: &Option<SessionId>,
    ) -> u64 {
        let Some(model) = self.models.get(model) else { return 0 };
        model.before_class(priority) + model.class(priority).before_new(tenant, session)
    }

    /// Jobs of the same model that would go before this waiting one, if all jobs cost the same; of one
    /// that rests, before it if it came now. In `O(log n)`. What clients are told whenever they are.
    pub fn position(&self, row: &JobRow) -> u64 {
        if self.resting.contains(&row.job_id) {
            return self.before_new(&row.model, row.priority, &row.tenant, &row.session_id);
        }
        let Some(model) = self.models.get(&row.model) else { return 0 };
        model.before_class(row.priority) + model.class(row.priority).position(row)
    }
}

impl ModelQueue {
    const fn class(&self, priority: Priority) -> &Class {
        match priority {
            Priority::Interactive => &self.interactive,
            Priority::Batch => &self.batch,
        }
    }

    const fn class_mut(&mut self, priority: Priority) -> &mut Class {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }

    fn is_empty(&self) -> bool {
        self.interactive.len() + self.batch.len() == 0
    }

    fn before_class(&self, priority: Priority) -> u64 {
        match priority {
            Priority::Interactive => 0,
            Priority::Batch => self.interactive.len(),
        }
    }

    fn remove(&mut self, row: &JobRow) -> bool {
        self.young.remove(&(row.submitted_at, row.number, row.job_id));
        self.class_mut(row.priority).remove(row)
    }

    fn block(&mut self, tenant: &TenantId) {
        self.interactive.block(tenant);
        self.batch.block(tenant);
    }

    fn unblock(&mut self, tenant: &TenantId) -> bool {
        let interactive = self.interactive.unblock(tenant);
        self.batch.unblock(tenant) || interactive
    }
}
