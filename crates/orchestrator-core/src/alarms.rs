//! What is due when: one alarm per job and per worker, kept in the order of time.

use std::collections::{BTreeMap, BTreeSet};

use api_types::{JobId, WorkerId};
use serde::{Deserialize, Serialize};

use crate::time::Time;

/// Whom an alarm is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Subject {
    /// Something about this job is due.
    Job(JobId),
    /// Something about this worker is due.
    Worker(WorkerId),
    /// Readers of waiting jobs may have news.
    LiveReaders,
    /// Jobs wait for capacity, and it is time to look again.
    Supply,
    /// A pool has not answered a stop.
    Stops,
    /// What was learnt has not been written for long enough.
    Learnt,
}

/// At most one alarm per subject.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Alarms {
    by_subject: BTreeMap<Subject, Time>,
    by_time: BTreeSet<(Time, Subject)>,
}

impl Alarms {
    /// Replaces the subject's alarm; `None` takes it away.
    pub fn set(&mut self, subject: Subject, at: Option<Time>) {
        if let Some(old) = self.by_subject.remove(&subject) {
            self.by_time.remove(&(old, subject.clone()));
        }
        if let Some(at) = at {
            self.by_subject.insert(subject.clone(), at);
            self.by_time.insert((at, subject));
        }
    }

    /// When the next alarm is due.
    pub fn next(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes everything that is due at `now`, in the order of time, then jobs before workers before the rest.
    pub fn take_due(&mut self, now: Time) -> Vec<Subject> {
        let mut due = Vec::new();
        while self.next().is_some_and(|at| at <= now) {
            if let Some((_, subject)) = self.by_time.pop_first() {
                self.by_subject.remove(&subject);
                due.push(subject);
            }
        }
        due
    }
}
