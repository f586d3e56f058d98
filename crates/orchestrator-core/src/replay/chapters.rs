//! Jobs that lived in several chapters of a journal, each chapter replayed by itself.

use std::collections::BTreeMap;

use api_types::JobId;

use crate::replay::recorded::Life;
use crate::replay::what_if::{Compared, WhatIf};
use crate::time::Time;

/// What was found chapter by chapter. Each begins as it was recorded to begin: a job that stood
/// otherwise under the other policy when a chapter ended is told to its end from there.
#[derive(Debug, Default)]
pub struct Chapters {
    jobs: BTreeMap<JobId, Compared>,
    policy_failures: u64,
}

/// All chapters together.
#[derive(Debug, Clone, PartialEq)]
pub struct Joined {
    /// Jobs whose record is whole, in the order of their ids.
    pub jobs: Vec<Compared>,
    /// Jobs that had no end on record: they still waited or ran, or were lost.
    pub left_out: u64,
    /// Failures of the other policy.
    pub policy_failures: u64,
}

impl Chapters {
    /// Adds the next chapter.
    pub fn add(&mut self, chapter: WhatIf) {
        self.policy_failures += chapter.policy_failures;
        for job in chapter.jobs {
            match self.jobs.get_mut(&job.job_id) {
                Some(known) => known.go_on(job),
                None => drop(self.jobs.insert(job.job_id, job)),
            }
        }
    }

    /// The jobs that came since then.
    pub fn since(self, since: Time) -> Joined {
        let came = |job: &Compared| {
            job.before.as_ref().or(job.after.as_ref()).is_some_and(|life| life.submitted_at >= since)
        };
        let is_whole = |job: &Compared| job.before.as_ref().is_none_or(|life| life.ended.is_some());
        let (jobs, left_out): (Vec<Compared>, Vec<Compared>) =
            self.jobs.into_values().filter(came).partition(is_whole);
        Joined { jobs, left_out: left_out.len() as u64, policy_failures: self.policy_failures }
    }
}

impl Compared {
    fn go_on(&mut self, next: Self) {
        join(&mut self.before, next.before);
        if self.goes_on {
            join(&mut self.after, next.after);
            self.goes_on = next.goes_on;
        }
    }
}

fn join(life: &mut Option<Life>, next: Option<Life>) {
    let Some(next) = next else { return };
    let Some(life) = life else { return *life = Some(next) };
    life.dispatched_at = life.dispatched_at.or(next.dispatched_at);
    life.ended = next.ended.or(life.ended);
    life.worker = next.worker.or_else(|| life.worker.take());
}
