//! The disk: what was committed, and nothing else, survives a crash of the orchestrator.

use std::collections::BTreeMap;

use api_types::task::{Decision, TaskStatus};
use api_types::{Attempt, Incarnation, JobId, PoolId, SessionId, TaskEvent, TenantId, WorkerId};
use orchestrator_core::policy::PolicyRows;
use orchestrator_core::{Estimates, JobRow, PoolRow, Rows, SessionRow, SpawnRow, WorkerRow, Write};

use crate::bugs::Bug;
use crate::carry::is_carried;
use crate::checks::Checks;
use crate::daemon::Logged;

/// The committed state.
#[derive(Debug, Default)]
pub struct Store {
    /// Every job ever committed.
    pub jobs: BTreeMap<JobId, Stored>,
    workers: BTreeMap<WorkerId, WorkerRow>,
    pools: BTreeMap<PoolId, PoolRow>,
    /// Workers that pools were asked for.
    pub spawns: BTreeMap<WorkerId, SpawnRow>,
    /// Sessions.
    pub sessions: BTreeMap<(TenantId, SessionId), SessionRow>,
    next_incarnation: Option<Incarnation>,
    decisions: Vec<(JobId, Attempt, Decision)>,
    estimates: Option<Estimates>,
    /// The policies in force.
    pub policies: PolicyRows,
}

/// A job on disk.
#[derive(Debug)]
pub struct Stored {
    /// Its row.
    pub row: JobRow,
    /// Its first event, committed with it.
    pub queued: Logged,
    /// What is on disk of its log after that, while it runs and can go on elsewhere.
    pub saved: Vec<Logged>,
    /// Its kept events, once it ended.
    pub events: Vec<Logged>,
}

/// A row as a restart reads it; a planted bug may spoil it.
fn misread(row: &JobRow, bug: Option<Bug>) -> JobRow {
    let mut row = row.clone();
    if bug == Some(Bug::AttemptForgotten) && row.status == TaskStatus::Queued {
        row.attempt = None;
    }
    if bug == Some(Bug::NumbersReused) {
        row.number = 0;
    }
    row
}

impl Store {
    fn last_number(&self) -> u64 {
        self.jobs.values().map(|stored| stored.row.number).max().unwrap_or(0)
    }

    /// Applies one transaction. `kept` tells the events of a job that ends.
    pub fn commit(
        &mut self,
        writes: &[Write],
        queued: &BTreeMap<JobId, TaskEvent>,
        kept: &dyn Fn(JobId, &TaskEvent) -> Vec<Logged>,
        checks: &mut Checks,
    ) {
        for write in writes {
            match write {
                Write::InsertJob(row) => {
                    checks.inserted(row, &self.jobs);
                    let event = queued.get(&row.job_id).cloned();
                    let queued = Logged::Other(event.unwrap_or_else(|| checks.no_first_event(row.job_id)));
                    self.jobs.insert(
                        row.job_id,
                        Stored { row: row.clone(), queued, saved: Vec::new(), events: Vec::new() },
                    );
                }
                Write::UpdateJob(row) => self.update(row, Vec::new(), checks),
                Write::EndJob { row, last_event } => self.update(row, kept(row.job_id, last_event), checks),
                Write::PutDecision { job_id, attempt, decision } => {
                    self.decisions.push((*job_id, *attempt, decision.clone()));
                }
                Write::PutWorker(row) => {
                    self.next_incarnation = self.next_incarnation.max(Some(row.next_incarnation));
                    self.workers.insert(row.facts.worker_id.clone(), row.clone());
                }
                Write::DeleteWorker(id) => drop(self.workers.remove(id)),
                Write::PutPool(row) => drop(self.pools.insert(row.pool_id.clone(), row.clone())),
                Write::PutSession(row) => {
                    self.sessions.insert((row.tenant.clone(), row.session_id.clone()), row.clone());
                }
                Write::DeleteSession { tenant, session_id } => {
                    self.sessions.remove(&(tenant.clone(), session_id.clone()));
                }
                Write::DeletePool(id) => drop(self.pools.remove(id)),
                Write::PutEstimates(estimates) => self.estimates = Some((**estimates).clone()),
                Write::PutPolicies(rows) => self.policies = rows.clone(),
                Write::PutSpawn(row) => drop(self.spawns.insert(row.worker_id.clone(), row.clone())),
                Write::DeleteSpawn(id) => drop(self.spawns.remove(id)),
            }
        }
    }

    /// The logs of these jobs, as far as they are on disk.
    pub fn save_logs(&mut self, logs: BTreeMap<JobId, Vec<Logged>>) {
        for (job_id, log) in logs {
            if let Some(stored) = self.jobs.get_mut(&job_id).filter(|stored| is_carried(&stored.row)) {
                stored.saved = log.get(1..).unwrap_or_default().to_vec();
            }
        }
    }

    fn update(&mut self, row: &JobRow, events: Vec<Logged>, checks: &mut Checks) {
        match self.jobs.get_mut(&row.job_id) {
            None => checks.fail("I3", format!("{} is changed but was never inserted", row.job_id)),
            Some(stored) => {
                checks.moved(&stored.row, row);
                stored.row = row.clone();
                stored.events = events;
            }
        }
    }

    /// What an orchestrator finds when it starts.
    pub fn rows(&self, bug: Option<Bug>) -> Rows {
        let keys_count = bug != Some(Bug::KeysForgotten);
        let living_or_keyed =
            |row: &&JobRow| !row.status.is_terminal() || (keys_count && row.idempotency.is_some());
        let living = |id: &JobId| self.jobs.get(id).is_some_and(|stored| !stored.row.status.is_terminal());
        Rows {
            jobs: self
                .jobs
                .values()
                .map(|stored| &stored.row)
                .filter(living_or_keyed)
                .map(|row| misread(row, bug))
                .collect(),
            workers: self.workers.values().cloned().collect(),
            pools: self.pools.values().cloned().collect(),
            sessions: self.sessions.values().cloned().collect(),
            last_number: if bug == Some(Bug::NumbersReused) { 0 } else { self.last_number() },
            spawns: self.spawns.values().cloned().collect(),
            next_incarnation: self.next_incarnation,
            decisions: self.decisions.iter().filter(|(id, _, _)| living(id)).cloned().collect(),
            estimates: self.estimates.clone(),
            policies: if bug == Some(Bug::PoliciesForgotten) {
                PolicyRows::default()
            } else {
                self.policies.clone()
            },
        }
    }
}
