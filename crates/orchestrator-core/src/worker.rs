//! A worker in the registry: its incarnation, its lease, its slots and what runs where.

use std::collections::BTreeMap;

use api_types::worker::{PREFIX_CACHE, WorkerState, WorkerStatus, WorkerView};
use api_types::{Attempt, ErrorDetail, InstanceId, JobId};
use serde::{Deserialize, Serialize};

use crate::event::Run;
use crate::policy::LeastLoaded;
use crate::prefix::Keeper;
use crate::row::WorkerRow;
use crate::settings::Settings;
use crate::time::Time;

/// Earlier starts that are remembered, so that a late registration does not supersede a newer one.
const PAST_INSTANCES: usize = 8;

/// A worker as the brain knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Worker {
    /// What is on disk.
    pub row: WorkerRow,
    /// What it said it is doing; `None` until it is heard of after a start of the orchestrator.
    pub status: Option<WorkerStatus>,
    /// When its lease was last renewed.
    pub last_heard: Time,
    /// Free memory of its device, in bytes.
    pub free_memory_bytes: u64,
    /// Runs that hold its slots.
    pub runs: BTreeMap<(JobId, Attempt), SlotUse>,
    /// Set once it is given up, until it is forgotten or introduces itself again.
    pub gone: Option<Gone>,
    /// What it said when it failed.
    pub failure: Option<ErrorDetail>,
    /// Not asked before this time, because it refused a run as busy.
    pub paused_until: Option<Time>,
    /// Protocol errors since it started.
    pub protocol_errors: u32,
    /// Gets no new job before this time, because it broke the protocol too often.
    pub quarantined_until: Option<Time>,
    /// Whether its present silence has already been put down to a fault of our own.
    pub braked: bool,
    /// Whether it was asked for a sign of life in its present silence.
    pub probed: bool,
    /// When it was first seen ready, since this start of the orchestrator.
    pub ready_at: Option<Time>,
    /// Since when it has had no run, while it is ready and has none.
    pub idle_since: Option<Time>,
    /// When it is unloaded if no job comes.
    pub unload_at: Option<Time>,
    /// What watchers were last told: its state and its busy slots.
    pub told: Option<(WorkerState, u32)>,
    /// Earlier starts under the same id, oldest first.
    past_instances: Vec<InstanceId>,
}

/// Why a run holds a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SlotUse {
    /// A job waits for it.
    Wanted,
    /// It was told to stop; the slot is free once the worker no longer lists it as going on.
    Stopping,
}

/// When and how a worker was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gone {
    /// When.
    pub at: Time,
    /// `Lost` or `Failed`.
    pub state: WorkerState,
    /// Whether silence was the evidence.
    pub by_silence: bool,
}

impl Worker {
    /// A worker with no runs that was heard of at `now`.
    pub fn new(row: WorkerRow, status: Option<WorkerStatus>, now: Time) -> Self {
        Self {
            row,
            status,
            last_heard: now,
            free_memory_bytes: 0,
            runs: BTreeMap::new(),
            gone: None,
            failure: None,
            paused_until: None,
            protocol_errors: 0,
            quarantined_until: None,
            braked: false,
            probed: false,
            ready_at: None,
            idle_since: None,
            unload_at: None,
            told: None,
            past_instances: Vec::new(),
        }
    }

    /// The next start of the same worker: remembers this one so that its late messages are known.
    pub fn succeed(&self, row: WorkerRow, status: WorkerStatus, now: Time) -> Self {
        let mut next = Self::new(row, Some(status), now);
        next.past_instances.clone_from(&self.past_instances);
        if next.row.facts.instance != self.row.facts.instance {
            next.past_instances.push(self.row.facts.instance);
        }
        let surplus = next.past_instances.len().saturating_sub(PAST_INSTANCES);
        next.past_instances.drain(..surplus);
        next
    }

    /// Whether a newer start has taken this one's place.
    pub fn is_past(&self, instance: InstanceId) -> bool {
        self.past_instances.contains(&instance)
    }

    /// Renews its lease.
    pub fn hear(&mut self, status: WorkerStatus, now: Time) {
        self.status = Some(status);
        self.renew(now);
    }

    /// Renews its lease without news of it.
    pub fn renew(&mut self, now: Time) {
        self.last_heard = now;
        self.braked = false;
        self.probed = false;
    }

    /// What the orchestrator thinks of it at `now`.
    pub fn state(&self, settings: &Settings, now: Time) -> WorkerState {
        if let Some(gone) = self.gone {
            return gone.state;
        }
        if now.since(self.last_heard) >= settings.lease.suspect_ms || self.is_quarantined(now) {
            return WorkerState::Suspect;
        }
        match self.status {
            None => WorkerState::Suspect,
            Some(WorkerStatus::Failed) => WorkerState::Failed,
            Some(WorkerStatus::Draining) => WorkerState::Draining,
            Some(_) if self.row.draining => WorkerState::Draining,
            Some(WorkerStatus::Loading) => WorkerState::Loading,
            Some(WorkerStatus::Ready) => WorkerState::Ready,
        }
    }

    /// Notes that it broke the protocol.
    pub fn break_protocol(&mut self, settings: &Settings, now: Time) {
        self.protocol_errors = self.protocol_errors.saturating_add(1);
        if self.protocol_errors >= settings.protocol_errors_allowed {
            self.quarantined_until = Some(now + settings.quarantine_ms);
        }
    }

    /// Whether it broke the protocol too often and gets no new job for now.
    pub fn is_quarantined(&self, now: Time) -> bool {
        self.quarantined_until.is_some_and(|until| now < until)
    }

    /// Slots that runs hold.
    pub fn slots_busy(&self) -> u32 {
        u32::try_from(self.runs.len()).unwrap_or(u32::MAX)
    }

    /// Slots that no run holds.
    pub fn slots_free(&self) -> u32 {
        self.row.facts.slots.saturating_sub(self.slots_busy())
    }

    /// Whether it could be asked to run one more job at `now`.
    pub fn is_open(&self, settings: &Settings, now: Time) -> bool {
        self.state(settings, now) == WorkerState::Ready
            && self.slots_free() > 0
            && self.paused_until.is_none_or(|until| until <= now)
    }

    /// It, as the prefix index knows it; `None` when it keeps no prompts.
    pub fn keeper(&self) -> Option<Keeper<'_>> {
        let facts = &self.row.facts;
        facts.capabilities.iter().any(|has| has == PREFIX_CACHE).then(|| Keeper {
            worker_id: &facts.worker_id,
            incarnation: self.row.incarnation,
            model: &facts.model,
            slots: facts.slots,
        })
    }

    /// What the built-in policy thinks of it for a job that it holds nothing of.
    pub fn base_points(&self) -> f64 {
        LeastLoaded::base(self.slots_free(), self.row.facts.slots, self.free_memory_bytes)
    }

    /// When the mere passing of time next changes what it can take.
    pub fn next_change(&self, settings: &Settings, now: Time) -> Option<Time> {
        let suspect_at = self.last_heard + settings.lease.suspect_ms;
        [Some(suspect_at), self.paused_until, self.quarantined_until]
            .into_iter()
            .flatten()
            .filter(|at| self.gone.is_none() && *at > now)
            .min()
    }

    /// Whether it takes jobs, or will.
    pub fn is_staying(&self) -> bool {
        let going = matches!(self.status, Some(WorkerStatus::Draining | WorkerStatus::Failed));
        self.gone.is_none() && !self.row.draining && !going
    }

    /// Whether it could run a job now or after its running ones.
    pub fn is_serving(&self, settings: &Settings, now: Time) -> bool {
        self.state(settings, now) == WorkerState::Ready
    }

    /// Frees the slots of stopping runs that it no longer lists as going on. Returns whether any was.
    pub fn settle_stopping(&mut self, listed: &[Run]) -> bool {
        let before = self.runs.len();
        self.runs.retain(|(job_id, attempt), slot| {
            *slot == SlotUse::Wanted
                || listed.iter().any(|run| run.job_id == *job_id && run.attempt == *attempt && !run.ended)
        });
        self.runs.len() != before
    }

    /// When anything about it is due next. `brake_until` holds back the end of leases.
    pub fn next_alarm(&self, settings: &Settings, brake_until: Option<Time>) -> Option<Time> {
        if let Some(gone) = self.gone {
            return Some(gone.at + settings.lease.gone_kept_ms);
        }
        let lost_at = self.last_heard + settings.lease.lost_ms;
        let lost_at = brake_until.map_or(lost_at, |until| lost_at.max(until));
        let suspect_at = (!self.probed).then(|| self.last_heard + settings.lease.suspect_ms);
        [Some(lost_at), suspect_at, self.paused_until, self.quarantined_until, self.unload_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// The worker as `/v2/workers` shows it.
    pub fn view(&self, settings: &Settings, now: Time) -> WorkerView {
        WorkerView {
            facts: self.row.facts.clone(),
            state: self.state(settings, now),
            incarnation: self.row.incarnation,
            slots_busy: self.slots_busy(),
            last_seen_ms: now.since(self.last_heard),
            pinned: crate::supply::is_pinned(&self.row.facts, &settings.supply),
            idle_ms: self.idle_since.map(|since| now.since(since)),
            unload_in_ms: self.unload_at.map(|at| at.since(now)),
            protocol_errors: self.protocol_errors,
            quarantined_ms: self.quarantined_until.filter(|until| *until > now).map(|until| until.since(now)),
        }
    }
}
