//! What is remembered of jobs that ended: their rows for a while, their idempotency keys for longer.

use std::collections::{BTreeMap, VecDeque};

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
}

/// Ended jobs and idempotency keys, bounded in time and number.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    jobs: BTreeMap<JobId, Box<JobRow>>,
    jobs_by_age: VecDeque<(Time, JobId)>,
    keys: BTreeMap<Key, KeyRecord>,
    keys_by_age: VecDeque<(Time, Key)>,
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
        };
        self.keys.insert((row.tenant.clone(), idempotency.key.clone()), record);
    }

    /// Notes that a job ended, and forgets what is too old or too much.
    pub fn end(&mut self, row: JobRow, settings: &Settings, now: Time) {
        let ended_at = row.ended_at.unwrap_or(now);
        if let Some(idempotency) = &row.idempotency {
            let key = (row.tenant.clone(), idempotency.key.clone());
            if let Some(record) = self.keys.get_mut(&key) {
                record.ended = Some(row.status);
            }
            self.keys_by_age.push_back((ended_at, key));
        }
        self.jobs_by_age.push_back((ended_at, row.job_id));
        self.jobs.insert(row.job_id, Box::new(row));
        self.forget(settings, now);
    }

    /// Lets another job have the key of this one.
    pub fn free_key(&mut self, tenant: &TenantId, key: String, job_id: JobId) {
        let key = (tenant.clone(), key);
        if self.keys.get(&key).is_some_and(|record| record.job_id == job_id) {
            self.keys.remove(&key);
        }
    }

    /// Forgets a job that was never written down, its key included.
    pub fn withdraw(&mut self, job_id: JobId) {
        self.jobs.remove(&job_id);
        self.jobs_by_age.retain(|(_, other)| *other != job_id);
        let keys = self.keys.iter().filter(|(_, record)| record.job_id == job_id);
        if let Some(key) = keys.map(|(key, _)| key.clone()).next() {
            self.keys.remove(&key);
            self.keys_by_age.retain(|(_, other)| *other != key);
        }
    }

    fn forget(&mut self, settings: &Settings, now: Time) {
        while let Some((ended_at, job_id)) = self.jobs_by_age.front() {
            let too_old = now.since(*ended_at) > settings.ended_kept_ms;
            if !too_old && self.jobs.len() <= settings.ended_capacity {
                break;
            }
            self.jobs.remove(job_id);
            self.jobs_by_age.pop_front();
        }
        while let Some((ended_at, key)) = self.keys_by_age.front() {
            let too_old = now.since(*ended_at) > settings.idempotency_kept_ms;
            if !too_old && self.keys_by_age.len() <= settings.idempotency_capacity {
                break;
            }
            self.keys.remove(key);
            self.keys_by_age.pop_front();
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
