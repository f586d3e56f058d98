//! The order of waiting jobs: interactive before batch, then by number, with ageing.
//!
//! Jobs are kept by model, and within a model by what they demand of a worker: jobs of one group
//! fit the same workers, so a placement looks at the head of each group and never walks the queue.

use std::collections::{BTreeMap, BTreeSet};

use api_types::task::{Placement, Priority};
use api_types::{JobId, PoolId, WorkerId};
use serde::{Deserialize, Serialize};

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
    len: u64,
}

/// What a job demands of a worker besides the model. What it merely prefers is not part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Group {
    pool: Option<PoolId>,
    worker: Option<WorkerId>,
    require: BTreeSet<String>,
    avoid: BTreeSet<String>,
}

impl Group {
    /// The group of jobs with this placement.
    pub fn of(placement: &Placement) -> Self {
        Self {
            pool: placement.pool.clone(),
            worker: placement.worker.clone(),
            require: placement.require.iter().cloned().collect(),
            avoid: placement.avoid.iter().cloned().collect(),
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct ModelQueue {
    groups: BTreeMap<Group, Lanes>,
    interactive: u64,
    batch: u64,
    /// Placements since an aged batch job last went before a waiting interactive one.
    since_aged: u32,
}

/// The jobs of one group, by number.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Lanes {
    interactive: BTreeMap<u64, JobId>,
    batch: BTreeMap<u64, (JobId, Time)>,
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

impl Queue {
    /// Adds a job that may be handed out at once.
    pub fn push(&mut self, row: &JobRow) {
        let model = self.models.entry(row.model.clone()).or_default();
        let lanes = model.groups.entry(Group::of(&row.placement)).or_default();
        match row.priority {
            Priority::Interactive => {
                lanes.interactive.insert(row.number, row.job_id);
                model.interactive += 1;
            }
            Priority::Batch => {
                lanes.batch.insert(row.number, (row.job_id, row.submitted_at));
                model.batch += 1;
            }
        }
        self.count_in(row);
    }

    /// Adds a job that waits for its `not_before`.
    pub fn rest(&mut self, row: &JobRow) {
        self.resting.insert(row.job_id);
        self.count_in(row);
    }

    /// Lets a resting job join those that may be handed out. Returns whether it was resting.
    pub fn wake(&mut self, row: &JobRow) -> bool {
        let was_resting = self.resting.remove(&row.job_id);
        if was_resting {
            self.len -= 1;
            self.push(row);
        }
        was_resting
    }

    fn count_in(&mut self, row: &JobRow) {
        self.len += 1;
        if row.priority == Priority::Batch {
            self.batch.insert(row.number, row.job_id);
        }
    }

    /// Takes a job out, wherever it waits.
    pub fn remove(&mut self, row: &JobRow) {
        if self.resting.remove(&row.job_id) || self.remove_from_lanes(row) {
            self.len -= 1;
            self.batch.remove(&row.number);
        }
    }

    fn remove_from_lanes(&mut self, row: &JobRow) -> bool {
        let Some(model) = self.models.get_mut(&row.model) else { return false };
        let removed = model.remove(row);
        if model.interactive + model.batch == 0 {
            self.models.remove(&row.model);
        }
        removed
    }

    /// Jobs that wait, resting ones included.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether any job of this model may be handed out.
    pub fn has(&self, model: &str) -> bool {
        self.models.contains_key(model)
    }

    /// The waiting batch job that came first.
    pub fn oldest_batch(&self) -> Option<JobId> {
        self.batch.first_key_value().map(|(_, job_id)| *job_id)
    }

    /// The next job of a model, leaving out groups that fit no worker at the moment.
    pub fn next(
        &self,
        model: &str,
        without: &BTreeSet<Group>,
        settings: &Settings,
        now: Time,
    ) -> Option<Next> {
        let model = self.models.get(model)?;
        let interactive = model.first_interactive(without);
        let batch = model.first_batch(without);
        let aged_turn = model.since_aged + 1 >= settings.aged_share;
        let aged =
            batch.filter(|(_, _, _, since)| aged_turn && now.since(*since) >= settings.batch_ageing_ms);
        if let (Some((group, _, job_id, _)), Some(_)) = (aged, interactive) {
            return Some(Next { job_id, group: group.clone(), aged: true });
        }
        let (group, job_id) = interactive
            .map(|(group, _, job_id)| (group, job_id))
            .or(batch.map(|(group, _, job_id, _)| (group, job_id)))?;
        Some(Next { job_id, group: group.clone(), aged: false })
    }

    /// Takes out a job that [`Queue::next`] named, and counts the share of aged jobs.
    pub fn take(&mut self, row: &JobRow, aged: bool) {
        if let Some(model) = self.models.get_mut(&row.model) {
            model.since_aged = if aged { 0 } else { model.since_aged.saturating_add(1) };
        }
        self.remove(row);
    }

    /// Jobs of the same model that go before the next one of this class.
    pub fn length_before_new(&self, model: &str, priority: Priority) -> u64 {
        self.models.get(model).map_or(0, |model| match priority {
            Priority::Interactive => model.interactive,
            Priority::Batch => model.interactive + model.batch,
        })
    }

    /// Jobs of the same model that go before this waiting one. Counts them: for views only.
    pub fn position(&self, row: &JobRow) -> u64 {
        self.models.get(&row.model).map_or(0, |model| model.position(row))
    }
}

impl ModelQueue {
    fn remove(&mut self, row: &JobRow) -> bool {
        let group = Group::of(&row.placement);
        let Some(lanes) = self.groups.get_mut(&group) else { return false };
        let removed = match row.priority {
            Priority::Interactive => lanes.interactive.remove(&row.number).is_some(),
            Priority::Batch => lanes.batch.remove(&row.number).is_some(),
        };
        if lanes.interactive.is_empty() && lanes.batch.is_empty() {
            self.groups.remove(&group);
        }
        match row.priority {
            Priority::Interactive => self.interactive -= u64::from(removed),
            Priority::Batch => self.batch -= u64::from(removed),
        }
        removed
    }

    fn first_interactive<'a>(&'a self, without: &'a BTreeSet<Group>) -> Option<(&'a Group, u64, JobId)> {
        self.open_groups(without)
            .filter_map(|(group, lanes)| {
                lanes.interactive.first_key_value().map(|(number, job_id)| (group, *number, *job_id))
            })
            .min_by_key(|(_, number, _)| *number)
    }

    fn first_batch<'a>(&'a self, without: &'a BTreeSet<Group>) -> Option<(&'a Group, u64, JobId, Time)> {
        self.open_groups(without)
            .filter_map(|(group, lanes)| {
                let (number, (job_id, since)) = lanes.batch.first_key_value()?;
                Some((group, *number, *job_id, *since))
            })
            .min_by_key(|(_, number, _, _)| *number)
    }

    fn open_groups<'a>(
        &'a self,
        without: &'a BTreeSet<Group>,
    ) -> impl Iterator<Item = (&'a Group, &'a Lanes)> {
        self.groups.iter().filter(|(group, _)| !without.contains(group))
    }

    fn position(&self, row: &JobRow) -> u64 {
        let before = |lanes: &Lanes| match row.priority {
            Priority::Interactive => lanes.interactive.range(..row.number).count(),
            Priority::Batch => lanes.interactive.len() + lanes.batch.range(..row.number).count(),
        };
        self.groups.values().map(|lanes| before(lanes) as u64).sum()
    }
}
