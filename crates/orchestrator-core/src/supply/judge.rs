//! Which pool is to serve what nobody serves, and what stands in the way.

use std::collections::BTreeSet;

use api_types::pool::Fit;
use api_types::{ErrorDetail, PoolId, WorkerId};

use super::demand::{misplaced, suits};
use super::evict::Place;
use super::hope::{Hope, Prospect};
use super::look::{Need, Outlook, look};
use super::pools::Knowledge;
use super::words::{end, reason};
use crate::event::PoolRoom;
use crate::orchestrator::Orchestrator;
use crate::policy::PolicyLog;
use crate::row::{JobRow, PoolRow};
use crate::time::Time;
use crate::turn::Turn;

/// Milliseconds until a pool is asked again what became of a worker that somebody else starts there.
const LOOK_AGAIN_MS: u64 = 2_000;

/// What follows for something that is waited for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// Ask this pool for a worker.
    Spawn { pool_id: PoolId, device: String, bytes: u64 },
    /// Let these give way first.
    Release { pool_id: PoolId, victims: Vec<WorkerId> },
    /// It will be served: by what comes, or once something is known. Nobody else takes from `pools`.
    Wait { pools: Vec<PoolId>, of: Option<PoolId> },
    /// Nothing can be done, but that may change.
    Stuck,
    /// It can never be.
    Hopeless(ErrorDetail),
}

/// A verdict with its ground.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Judged {
    pub verdict: Verdict,
    /// When it may be another one by itself.
    pub until: Option<Time>,
    /// The pool that is to start a worker, and from when on it may, where that is in sight.
    pub starts: Option<(PoolId, Time)>,
    /// For people; empty where no pool has the model.
    pub reason: String,
}

/// A worker that jobs bring about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wished {
    pub pool_id: PoolId,
    pub backend: String,
    /// Jobs it will take at once.
    pub slots: u64,
    /// Bytes of its weights, where the pool has told.
    pub weights: Option<u64>,
    /// From when on it may be started.
    pub from: Time,
}

impl Orchestrator {
    /// Asks the pools that could serve such jobs, where what they said counts no more.
    pub(super) fn ask_for(&mut self, row: &JobRow, taken: &BTreeSet<PoolId>, turn: &mut Turn) {
        let stale = |pool: &&PoolRow| {
            self.knowledge(&pool.pool_id, turn.now) == Knowledge::Stale
                && self.hope(row, turn.now, pool, taken, turn.now, None) == Hope::Asked(None)
        };
        let pools: Vec<PoolId> =
            self.pools_with(&row.model).filter(stale).map(|pool| pool.pool_id.clone()).collect();
        for pool_id in pools {
            self.ask_if_stale(&pool_id, turn);
        }
    }

    /// What is to be done for jobs such as this one, which have waited since `since`; `chosen` is the
    /// pool that was settled on before. Without a `log` the policy is not asked who goes first.
    pub(super) fn judge(
        &self,
        row: &JobRow,
        since: Time,
        chosen: Option<&PoolId>,
        taken: &BTreeSet<PoolId>,
        now: Time,
        mut log: Option<&mut PolicyLog>,
    ) -> Judged {
        let mut prospects = Vec::new();
        for pool in self.pools_with(&row.model) {
            let hope = self.hope(row, since, pool, taken, now, log.as_deref_mut());
            prospects.push(Prospect { pool_id: &pool.pool_id, hope });
        }
        let stuck_to =
            prospects.iter().find(|prospect| Some(prospect.pool_id) == chosen && prospect.hope.goes_on());
        let best = stuck_to.or_else(|| prospects.iter().min_by_key(|prospect| prospect.hope.rank(now)));
        match best {
            Some(best) => judged(best, &prospects, row, now),
            None => Judged { verdict: Verdict::Stuck, until: None, starts: None, reason: String::new() },
        }
    }

    /// The pools that have a model.
    fn pools_with<'a>(&'a self, model: &'a str) -> impl Iterator<Item = &'a PoolRow> {
        self.pools.values().filter(move |pool| {
            let catalog = self.catalogs.get(&pool.pool_id).into_iter().flatten();
            catalog.into_iter().any(|known| known.id == model && known.downloaded)
        })
    }

    fn hope<'a>(
        &'a self,
        row: &JobRow,
        since: Time,
        pool: &'a PoolRow,
        taken: &BTreeSet<PoolId>,
        now: Time,
        log: Option<&mut PolicyLog>,
    ) -> Hope<'a> {
        let seen = self.supply.pools.get(&pool.pool_id);
        let fit = seen.and_then(|seen| seen.last()).and_then(|room| fit_of(room, &row.model));
        if let Some(reason) = self.unfit(row, pool, fit) {
            return Hope::Unfit(reason);
        }
        if let Some(spawn) = self.supply.spawns.values().find(|s| s.is_for(&pool.pool_id, &row.model)) {
            return spawn.called_off().map_or(Hope::Coming(None), |(why, until)| Hope::Silent(why, *until));
        }
        let failures = seen.and_then(|seen| seen.failures.get(&row.model));
        if let Some(failures) = failures.filter(|failures| now < failures.not_before) {
            let exhausted = failures.count >= self.settings.supply.spawn_tries;
            return if exhausted { Hope::Exhausted(failures) } else { Hope::Resting(failures) };
        }
        if taken.contains(&pool.pool_id) {
            return Hope::Taken;
        }
        match self.knowledge(&pool.pool_id, now) {
            Knowledge::Asked(until) => Hope::Asked(Some(until)),
            Knowledge::Stale => Hope::Asked(None),
            Knowledge::Silent(error, until) => Hope::Silent(error, until),
            Knowledge::Fresh(room) => self.hope_in(row, since, pool, room, now, log),
        }
    }

    /// Why a pool that has the model is not the one for such jobs.
    fn unfit(&self, row: &JobRow, pool: &PoolRow, fit: Option<&Fit>) -> Option<String> {
        if pool.draining {
            return Some("it is draining and starts no workers".to_owned());
        }
        if row.placement.worker.is_some() {
            return Some("the job asks for a certain worker".to_owned());
        }
        let backend = fit.map(|fit| fit.device.split(':').next().unwrap_or_default());
        if let Some(reason) = misplaced(&row.placement, Some(&pool.pool_id), backend) {
            return Some(reason);
        }
        let mut there = self
            .registry
            .of_model(&row.model)
            .filter(|worker| worker.row.facts.pool_id.as_ref() == Some(&pool.pool_id) && worker.is_staying());
        there.find_map(|worker| {
            let reason = suits(row, worker)?;
            Some(format!("`{}` runs it there, but {reason}", worker.row.facts.worker_id))
        })
    }

    fn hope_in<'a>(
        &'a self,
        row: &JobRow,
        since: Time,
        pool: &'a PoolRow,
        room: &'a PoolRoom,
        now: Time,
        log: Option<&mut PolicyLog>,
    ) -> Hope<'a> {
        let unknown = |id: &WorkerId| self.registry.get(id).is_none();
        let starting = |model: &str| {
            room.processes.iter().any(|p| p.starting && p.model == model && unknown(&p.worker_id))
        };
        if starting(&row.model) {
            return Hope::Coming(Some(now + LOOK_AGAIN_MS));
        }
        let Some(fit) = fit_of(room, &row.model) else { return Hope::Fits(None) };
        let need = Need {
            bytes: fit.needed_bytes.saturating_add(fit.margin_bytes),
            free: fit.free_bytes.saturating_sub(self.bytes_coming(&pool.pool_id, &fit.device)),
            total: fit.total_bytes,
        };
        let place = Place { pool_id: &pool.pool_id, device: &fit.device, room };
        let residents = self.residents(place, since, now, log);
        match look(need, self.is_changing(&pool.pool_id), &residents) {
            Outlook::Fits => Hope::Fits(Some(fit)),
            Outlook::Release { from, victims } => Hope::Release(from, victims, fit),
            Outlook::Going => Hope::Going(fit),
            Outlook::Held => Hope::Held(fit),
            Outlook::TooLarge => Hope::TooLarge(fit),
        }
    }

    /// Why such jobs wait, when the reason is that no worker serves them and a pool could.
    pub(crate) fn why_no_capacity(&self, row: &JobRow) -> Option<String> {
        if !self.settings.supply.on_demand || self.serves(row) {
            return None;
        }
        let group = crate::queue::Group::of(row);
        let want = super::Want { model: row.model.clone(), group };
        let since = self.supply.blocked.get(&want).map_or(self.seen, |blocked| blocked.since);
        let older = self.supply.blocked.iter().filter(|(_, other)| other.since < since);
        let taken = older.filter_map(|(_, other)| other.pool.clone()).collect();
        let judged = self.judge(row, since, self.waits_for(&want), &taken, self.seen, None);
        (!judged.reason.is_empty()).then_some(judged.reason)
    }

    /// The worker that jobs such as this one bring about, as far as is in sight: its pool, its backend,
    /// the bytes of its weights and from when on it may be started.
    pub(crate) fn wished_for(&self, row: &JobRow, now: Time) -> Option<Wished> {
        if !self.settings.supply.on_demand || self.serves(row) {
            return None;
        }
        let want = super::Want { model: row.model.clone(), group: crate::queue::Group::of(row) };
        let blocked = self.supply.blocked.get(&want);
        let since = blocked.map_or(now, |blocked| blocked.since);
        let judged = self.judge(row, since, self.waits_for(&want), &BTreeSet::new(), now, None);
        let (pool_id, from) = judged.starts?;
        let room = self.supply.pools.get(&pool_id).and_then(|seen| seen.last());
        let fit = room.and_then(|room| fit_of(room, &row.model));
        let backend = fit.map_or("cpu", |fit| fit.device.split(':').next().unwrap_or_default()).to_owned();
        let slots = fit.map_or(1, |fit| u64::from(fit.slots).max(1));
        Some(Wished { pool_id, backend, slots, weights: fit.map(|fit| fit.weights_bytes), from })
    }

    /// Refuses a job that can never run, because no worker serves it and none ever fits.
    ///
    /// # Errors
    /// `INSUFFICIENT_VRAM`, `INSUFFICIENT_MEMORY` or `NO_CAPACITY`, with the numbers of each pool.
    pub(crate) fn check_capacity(&self, row: &JobRow, now: Time) -> Result<(), ErrorDetail> {
        if !self.settings.supply.on_demand || self.serves(row) {
            return Ok(());
        }
        match self.judge(row, now, None, &BTreeSet::new(), now, None).verdict {
            Verdict::Hopeless(error) => Err(error),
            Verdict::Spawn { .. } | Verdict::Release { .. } | Verdict::Wait { .. } | Verdict::Stuck => Ok(()),
        }
    }
}

fn fit_of<'a>(room: &'a PoolRoom, model: &str) -> Option<&'a Fit> {
    room.fits.iter().find(|fit| fit.model == model)
}

fn judged(best: &Prospect<'_>, all: &[Prospect<'_>], row: &JobRow, now: Time) -> Judged {
    let pool_id = best.pool_id.clone();
    let of = Some(pool_id.clone());
    let (verdict, until) = match &best.hope {
        Hope::Coming(until) => (Verdict::Wait { pools: Vec::new(), of }, *until),
        Hope::Fits(fit) => {
            let device = fit.map_or_else(|| "cpu".to_owned(), |fit| fit.device.clone());
            (Verdict::Spawn { pool_id, device, bytes: fit.map_or(0, |fit| fit.needed_bytes) }, None)
        }
        Hope::Release(from, victims, _) if *from <= now => {
            (Verdict::Release { pool_id, victims: victims.clone() }, None)
        }
        Hope::Release(from, ..) => (Verdict::Wait { pools: vec![pool_id], of }, Some(*from)),
        Hope::Asked(until) => (Verdict::Wait { pools: vec![pool_id], of }, *until),
        Hope::Going(_) => (Verdict::Wait { pools: vec![pool_id], of }, None),
        Hope::Resting(failures) => (Verdict::Stuck, Some(failures.not_before)),
        Hope::Silent(_, until) => (Verdict::Stuck, Some(*until)),
        Hope::Taken | Hope::Held(_) => (Verdict::Stuck, None),
        Hope::Unfit(_) | Hope::Exhausted(_) | Hope::TooLarge(_) => (end(all, row, now), None),
    };
    Judged { verdict, until, starts: starts(best, now), reason: reason(best, all, row, now) }
}

/// From when on the best pool may start a worker, where that is in sight.
fn starts(best: &Prospect<'_>, now: Time) -> Option<(PoolId, Time)> {
    let from = match &best.hope {
        Hope::Coming(_) | Hope::Fits(_) | Hope::Asked(_) | Hope::Going(_) => now,
        Hope::Release(from, ..) => now.max(*from),
        Hope::Resting(failures) => failures.not_before,
        Hope::Silent(..) | Hope::Taken | Hope::Held(_) => return None,
        Hope::Unfit(_) | Hope::Exhausted(_) | Hope::TooLarge(_) => return None,
    };
    Some((best.pool_id.clone(), from))
}
