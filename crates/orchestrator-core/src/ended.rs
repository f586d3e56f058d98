//! What is remembered of jobs that ended: their rows for a while, their idempotency keys for longer.

use std::collections::{BTreeMap, BTreeSet};

use api_types::task::TaskStatus;
use api_types::{JobId, TenantId};
use serde::{Deserialize, Serialize};

use crate::row::JobRow;
use crate::settings::Settings;
use crate::time::Time;

/// A submission that bore an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRecord {
    /// SHA-256 of the canonical request.
    pub digest: String,
    /// The job it became.
    pub job_id: JobId,
    /// The model it was resolved to.
    pub model: String,
    /// How the job ended; `None` while it lives.
    pub ended: Option<TaskStatus>,
    /// When; its place among the keys by age.
    #[serde(skip)]
    ended_at: Option<Time>,
}

/// Ended jobs and idempotency keys, bounded in time and number.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    jobs: BTreeMap<JobId, Box<JobRow>>,
    jobs_by_age: BTreeSet<(Time, JobId)>,
    keys: BTreeMap<Key, KeyRecord>,
    keys_by_age: BTreeSet<(Time, Key)>,
    /// The keys of jobs, also of those that are forgotten themselves: a job can be erased among many
    /// thousands without a search.
    #[serde(skip)]
    key_of: BTreeMap<JobId, Key>,
}

/// A key counts within its tenant only.
type Key = (TenantId, String);

impl Memory {
    /// Notes the key of a job that was admitted.
    pub fn admit(&mut self, row: &JobRow) {
        let Some(idempotency) = &row.idempotency else { return };
        let record = KeyRecord {
            digest: idempotency.digest.clone(),
            job_id: row.job_id,
            model: row.model.clone(),
            ended: None,
            ended_at: None,
        };
        let key = (row.tenant.clone(), idempotency.key.clone());
        self.key_of.insert(row.job_id, key.clone());
        self.keys.insert(key, record);
    }

    /// Sets up what a snapshot leaves out.
    pub fn reindex(&mut self) {
        for (ended_at, key) in &self.keys_by_age {
            if let Some(record) = self.keys.get_mut(key) {
                record.ended_at = Some(*ended_at);
            }
        }
        self.key_of = self.keys.iter().map(|(key, record)| (record.job_id, key.clone())).collect();
    }

    /// Notes that a job ended, and forgets what is too old or too much.
    pub fn end(&mut self, mut row: JobRow, settings: &Settings, now: Time) {
        let ended_at = *row.ended_at.get_or_insert(now);
        if let Some(idempotency) = &row.idempotency {
            let key = (row.tenant.clone(), idempotency.key.clone());
            if let Some(record) = self.keys.get_mut(&key) {
                (record.ended, record.ended_at) = (Some(row.status), Some(ended_at));
            }
            self.keys_by_age.insert((ended_at, key));
        }
        self.jobs_by_age.insert((ended_at, row.job_id));
        self.jobs.insert(row.job_id, Box::new(row));
        self.forget(settings, now);
    }

    /// Lets another job have the key of this one.
    pub fn free_key(&mut self, tenant: &TenantId, key: String, job_id: JobId) {
        let key = (tenant.clone(), key);
        if self.keys.get(&key).is_some_and(|record| record.job_id == job_id) {
            self.keys.remove(&key);
            self.key_of.remove(&job_id);
        }
    }

    /// Forgets a job that was never written down, or is erased, its key included.
    pub fn withdraw(&mut self, job_id: JobId) {
        if let Some(ended_at) = self.jobs.remove(&job_id).and_then(|row| row.ended_at) {
            self.jobs_by_age.remove(&(ended_at, job_id));
        }
        let Some(key) = self.key_of.remove(&job_id) else { return };
        if self.keys.get(&key).is_some_and(|record| record.job_id == job_id)
            && let Some(ended_at) = self.keys.remove(&key).and_then(|record| record.ended_at)
        {
            self.keys_by_age.remove(&(ended_at, key));
        }
    }

    fn forget(&mut self, settings: &Settings, now: Time) {
        while let Some((ended_at, job_id)) = self.jobs_by_age.first() {
            let too_old = now.since(*ended_at) > settings.ended_kept_ms;
            if !too_old && self.jobs.len() <= settings.ended_capacity {
                break;
            }
            self.jobs.remove(job_id);
            self.jobs_by_age.pop_first();
        }
        while let Some((ended_at, _)) = self.keys_by_age.first() {
            let too_old = now.since(*ended_at) > settings.idempotency_kept_ms;
            if !too_old && self.keys_by_age.len() <= settings.idempotency_capacity {
                break;
            }
            let Some((_, key)) = self.keys_by_age.pop_first() else { break };
            if let Some(record) = self.keys.remove(&key) {
                self.key_of.remove(&record.job_id);
            }
        }
    }

    /// A job that ended a short while ago.
    pub fn job(&self, job_id: JobId) -> Option<&JobRow> {
        self.jobs.get(&job_id).map(Box::as_ref)
    }

    /// The submission of this tenant that bore this key.
    pub fn key(&self, tenant: &TenantId, key: &str) -> Option<&KeyRecord> {
        self.keys.get(&(tenant.clone(), key.to_owned()))
    }
}
