//! The sums of one model: what waits by class and tenant, what runs, how many slots serve; and the
//! wait that follows from them.

use std::collections::{BTreeMap, BTreeSet};

use api_types::task::Priority;
use api_types::{JobId, TenantId};
use serde::{Deserialize, Serialize};

use crate::estimate::rates::Engine;

/// Work in microseconds of one slot. Whole numbers, so that what is added can be taken away.
pub type Work = u64;

/// How long work counts as having come in lately: a minute.
const WINDOW: Work = 60_000_000;
/// The least share of the slots that is left for batch jobs, which aged ones get.
const LEFT_FOR_BATCH: f64 = 0.25;

/// What lies on the workers of one model.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct ModelLoad {
    pub workers: u64,
    pub slots: u64,
    pub engines: BTreeMap<Engine, u64>,
    pub interactive: ClassLoad,
    /// Interactive work that came in lately: it will go before batch jobs that wait now.
    pub inflow: Inflow,
    pub batch: ClassLoad,
    pub running: RunningLoad,
}

/// What waits of one class.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct ClassLoad {
    pub sum: Sum,
    pub lines: BTreeMap<TenantId, Line>,
}

/// Jobs and their work; `unknown` of them are of unknown size.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Sum {
    pub work: Work,
    pub jobs: u64,
    pub unknown: u64,
}

/// One tenant's jobs. Marks of its jobs are read against what was taken out since.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Line {
    pub sum: Sum,
    pub pushed: Work,
    pub taken: Work,
    pub jobs_pushed: u64,
    pub jobs_taken: u64,
}

/// Work that came in, in this window and in the one before.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Inflow {
    pub began: Work,
    pub now: Work,
    pub before: Work,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct RunningLoad {
    pub jobs: u64,
    pub ends: BTreeSet<(Work, JobId)>,
    pub sum_of_ends: u128,
}

/// What a question about a wait depends on.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The job's class.
    pub class: Priority,
    /// Whose it is.
    pub tenant: &'a TenantId,
    /// Its own work: what jobs of unknown size are taken for.
    pub work: Work,
    /// Now, in microseconds.
    pub now: Work,
}

impl ModelLoad {
    pub const fn class(&self, class: Priority) -> &ClassLoad {
        match class {
            Priority::Interactive => &self.interactive,
            Priority::Batch => &self.batch,
        }
    }

    pub const fn class_mut(&mut self, class: Priority) -> &mut ClassLoad {
        match class {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }

    pub const fn is_idle(&self) -> bool {
        self.slots == 0
            && self.running.jobs == 0
            && self.interactive.sum.jobs == 0
            && self.batch.sum.jobs == 0
    }

    /// The wait behind `own` work of the same tenant: all slots together first end what the running
    /// jobs have left on average, then what goes ahead. While tenants take turns, each other one
    /// gets as much done as this one, up to what it has.
    pub fn wait(&self, asked: &Asked<'_>, own: Work) -> Option<Work> {
        if self.slots == 0 {
            return None;
        }
        let ahead = self.ahead(asked, own);
        if ahead == 0 && self.running.jobs < self.slots {
            return Some(0);
        }
        let left = self.running.mean_left(asked) + ahead;
        Some((left as f64 / (self.slots as f64 * self.share_of(asked))) as Work)
    }

    /// The share of the slots that a class gets while its jobs wait: batch jobs get what interactive
    /// ones leave, as a queue with priorities has it (Cobham 1954).
    pub fn share_of(&self, asked: &Asked<'_>) -> f64 {
        match asked.class {
            Priority::Interactive => 1.0,
            Priority::Batch => (1.0 - self.inflow.rate(asked.now) / self.slots as f64).max(LEFT_FOR_BATCH),
        }
    }

    /// What waits in the same tenant's line.
    pub fn own(&self, asked: &Asked<'_>) -> Work {
        self.class(asked.class).lines.get(asked.tenant).map_or(0, |line| line.sum.size(asked.work))
    }

    pub fn ahead(&self, asked: &Asked<'_>, own: Work) -> Work {
        let class = self.class(asked.class);
        let others = class.lines.len() - usize::from(class.lines.contains_key(asked.tenant));
        let in_turn = own.saturating_mul(others as u64 + 1).min(class.sum.size(asked.work));
        match asked.class {
            Priority::Interactive => in_turn,
            Priority::Batch => in_turn.saturating_add(self.interactive.sum.size(asked.work)),
        }
    }
}

impl Inflow {
    pub fn add(&mut self, work: Work, now: Work) {
        let passed = now.saturating_sub(self.began) / WINDOW;
        if passed > 0 {
            self.before = if passed == 1 { self.now } else { 0 };
            self.now = 0;
            self.began += passed * WINDOW;
        }
        self.now = self.now.saturating_add(work);
    }

    /// Work per unit of time over the last window: a sliding mean of the two that are counted.
    pub fn rate(&self, now: Work) -> f64 {
        let into = now.saturating_sub(self.began) as f64 / WINDOW as f64;
        let (now, before) = (self.now as f64 / WINDOW as f64, self.before as f64 / WINDOW as f64);
        if into < 1.0 { now + before * (1.0 - into) } else { now * (2.0 - into).max(0.0) }
    }
}

impl RunningLoad {
    pub fn remove(&mut self, job_id: JobId, end: Option<Work>) {
        self.jobs = self.jobs.saturating_sub(1);
        if let Some(end) = end
            && self.ends.remove(&(end, job_id))
        {
            self.sum_of_ends = self.sum_of_ends.saturating_sub(u128::from(end));
        }
    }

    /// Jobs over their expected time are of unknown length from now on.
    pub fn drop_overdue(&mut self, now: Work) {
        while let Some((end, job_id)) = self.ends.first().copied().filter(|(end, _)| *end <= now) {
            self.ends.remove(&(end, job_id));
            self.sum_of_ends = self.sum_of_ends.saturating_sub(u128::from(end));
        }
    }

    /// What a running job has left on average. One of unknown length, or over its time, counts as a
    /// whole job: it has shown that nothing is known of it.
    pub fn mean_left(&self, asked: &Asked<'_>) -> Work {
        if self.jobs == 0 {
            return 0;
        }
        let known = self.ends.len() as u128;
        let left = self.sum_of_ends.saturating_sub(known * u128::from(asked.now));
        let unknown = u128::from(self.jobs).saturating_sub(known) * u128::from(asked.work);
        u64::try_from((left + unknown) / u128::from(self.jobs)).unwrap_or(u64::MAX)
    }
}

impl Sum {
    pub fn add(&mut self, work: Option<Work>) {
        self.jobs += 1;
        self.unknown += u64::from(work.is_none());
        self.work = self.work.saturating_add(work.unwrap_or(0));
    }

    pub fn take(&mut self, work: Option<Work>) {
        self.jobs = self.jobs.saturating_sub(1);
        self.unknown = self.unknown.saturating_sub(u64::from(work.is_none()));
        self.work = self.work.saturating_sub(work.unwrap_or(0));
    }

    /// The work, with `each` for every job of unknown size.
    pub const fn size(&self, each: Work) -> Work {
        self.work.saturating_add(self.unknown.saturating_mul(each))
    }
}
