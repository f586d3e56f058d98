//! The sums of one model: what waits by class and tenant, what runs, how many slots serve; and the
//! wait that follows from them.

use std::collections::BTreeMap;

use api_types::task::Priority;
use api_types::{JobId, TenantId};
use serde::{Deserialize, Serialize};

use super::kind::Kind;
use crate::estimate::rates::Engine;
use crate::queue::Group;

/// Work in microseconds of one slot. Whole numbers, so that what is added can be taken away.
pub type Work = u64;

/// How long work counts as having come in lately: a minute.
const WINDOW: Work = 60_000_000;
/// A run over its time has as much left as it has lasted, divided by this. That holds in the tail of
/// a log-logistic distribution whose p90 is twice its p50: half of those that lasted that long
/// end within a quarter of it.
const TAIL: u64 = 4;
/// The least share of the slots that is left for batch jobs, which aged ones get.
const LEFT_FOR_BATCH: f64 = 0.25;

/// What lies on the workers of one model.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct ModelLoad {
    pub workers: u64,
    pub slots: u64,
    pub engines: BTreeMap<Engine, u64>,
    pub kinds: BTreeMap<Kind, u64>,
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
    /// Of those that may not run on every worker, by what they demand.
    #[serde(with = "crate::estimate::rates::pairs")]
    pub restricted: BTreeMap<Group, Sum>,
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
}

/// Work that came in, in this window and in the one before.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Inflow {
    pub began: Work,
    pub now: Work,
    pub before: Work,
}

/// What runs. A run within its expectation has left what is missing to its expected end; one that is
/// about over or has lasted longer is expected to last for a [`TAIL`]th of its time once more.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct RunningLoad {
    pub jobs: u64,
    within: BTreeMap<(Work, JobId), Span>,
    sum_of_ends: u128,
    overdue: u64,
    sum_of_begins: u128,
}

/// When a run began and when it is expected to end.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Span {
    pub began: Work,
    pub end: Work,
}

impl Span {
    /// From when on what is left follows from how long it has lasted: where both ways to count agree.
    const fn overdue_at(self) -> Work {
        self.began + self.end.saturating_sub(self.began) / (TAIL + 1) * TAIL
    }
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

/// Where a job may run that may not run everywhere.
#[derive(Debug, Clone, Copy)]
pub struct Reach<'a> {
    /// What it demands.
    pub demands: &'a Group,
    /// Slots of the workers that meet that.
    pub slots: u64,
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

    /// The wait of a job that only `slots` of all slots may take. Those that demand the same are served
    /// there, the others wherever there is room: it waits for as long as either takes, what demands the
    /// same on its slots or everything on all of them.
    pub fn restricted_wait(&self, asked: &Asked<'_>, own: Work, reach: &Reach<'_>) -> Option<Work> {
        if reach.slots == 0 {
            return None;
        }
        let everything = self.wait(asked, own)?;
        let alike = |class: &ClassLoad| class.restricted.get(reach.demands).map_or(0, |s| s.size(asked.work));
        let (mut same, mut all) =
            (alike(self.class(asked.class)), self.class(asked.class).sum.size(asked.work));
        if asked.class == Priority::Batch {
            same = same.saturating_add(alike(&self.interactive));
            all = all.saturating_add(self.interactive.sum.size(asked.work));
        }
        let ahead = self.ahead(asked, own) as f64 * (same as f64 / all.max(1) as f64).min(1.0);
        let left = self.running.mean_left(asked) as f64 + ahead;
        Some(everything.max((left / (reach.slots as f64 * self.share_of(asked))) as Work))
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
    pub fn add(&mut self, job_id: JobId, span: Option<Span>) {
        self.jobs += 1;
        if let Some(span) = span {
            self.within.insert((span.overdue_at(), job_id), span);
            self.sum_of_ends += u128::from(span.end);
        }
    }

    pub fn remove(&mut self, job_id: JobId, span: Option<Span>) {
        self.jobs = self.jobs.saturating_sub(1);
        let Some(span) = span else { return };
        if self.within.remove(&(span.overdue_at(), job_id)).is_some() {
            self.sum_of_ends = self.sum_of_ends.saturating_sub(u128::from(span.end));
        } else {
            self.overdue = self.overdue.saturating_sub(1);
            self.sum_of_begins = self.sum_of_begins.saturating_sub(u128::from(span.began));
        }
    }

    /// Counts those as overdue that have become it, so that questions need not.
    pub fn pass_time(&mut self, now: Work) {
        while let Some(entry) = self.within.first_entry().filter(|entry| entry.key().0 <= now) {
            let span = entry.remove();
            self.sum_of_ends = self.sum_of_ends.saturating_sub(u128::from(span.end));
            self.overdue += 1;
            self.sum_of_begins += u128::from(span.began);
        }
    }

    /// What a running job has left on average. One of unknown length counts as a whole job.
    pub fn mean_left(&self, asked: &Asked<'_>) -> Work {
        if self.jobs == 0 {
            return 0;
        }
        let (mut within, mut ends) = (self.within.len() as u128, self.sum_of_ends);
        let (mut overdue, mut begins) = (u128::from(self.overdue), self.sum_of_begins);
        for ((at, _), span) in &self.within {
            if *at > asked.now {
                break;
            }
            (within, ends) = (within - 1, ends.saturating_sub(u128::from(span.end)));
            (overdue, begins) = (overdue + 1, begins + u128::from(span.began));
        }
        let now = u128::from(asked.now);
        let left = ends.saturating_sub(within * now);
        let of_overdue = (overdue * now).saturating_sub(begins) / u128::from(TAIL);
        let unknown = u128::from(self.jobs).saturating_sub(within + overdue) * u128::from(asked.work);
        u64::try_from((left + of_overdue + unknown) / u128::from(self.jobs)).unwrap_or(u64::MAX)
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
