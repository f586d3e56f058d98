//! News for those who read a job that waits: where it stands and when it may end. Live only: not
//! numbered, not kept, at most once a second per job, and only where somebody reads and could not
//! have counted it down alone.

use std::collections::BTreeMap;
use std::ops::Bound;

use api_types::event::Eta;
use api_types::{JobId, TaskEvent};
use serde::{Deserialize, Serialize};

use crate::alarms::Subject;
use crate::orchestrator::Orchestrator;
use crate::step::Action;
use crate::time::Time;
use crate::turn::Turn;

/// How often, in milliseconds.
const EVERY_MS: u64 = 1_000;
/// Most jobs that are looked at in one go; with more, each hears less often.
const AT_ONCE: usize = 512;

/// What the readers of a waiting job were last told.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Told {
    at: Time,
    position: u64,
    eta: Option<Eta>,
}

impl Told {
    /// Whether a reader could not have counted this down by itself from what it was told `before`.
    fn is_news_after(&self, before: &Self) -> bool {
        let passed = self.at.since(before.at);
        let moved = |now: u64, then: u64| {
            let counted = then.saturating_sub(passed);
            now.abs_diff(counted) > (counted / 10).max(EVERY_MS)
        };
        let eta_moved = match (self.eta, before.eta) {
            (Some(now), Some(then)) => moved(now.p50, then.p50) || moved(now.p90, then.p90),
            (now, then) => now.is_some() != then.is_some(),
        };
        self.position != before.position || eta_moved
    }
}

/// The waiting jobs that somebody reads.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Live {
    jobs: BTreeMap<JobId, Option<Told>>,
    /// The last one that was looked at.
    last: Option<JobId>,
    /// Whether the next look is set.
    armed: bool,
}

impl Live {
    /// The next jobs to look at, going round.
    fn next_round(&mut self) -> Vec<JobId> {
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let up_to = self.last.map_or(Bound::Unbounded, Bound::Included);
        let first = self.jobs.range((after, Bound::Unbounded));
        let wrapped = self.last.map(|_| self.jobs.range((Bound::Unbounded, up_to))).into_iter().flatten();
        let round: Vec<JobId> = first.chain(wrapped).take(AT_ONCE).map(|(job_id, _)| *job_id).collect();
        self.last = round.last().copied();
        round
    }
}

impl Orchestrator {
    /// Notes whether a job waits and is read.
    pub(crate) fn follow_live(&mut self, job_id: JobId) {
        let is_read_waiting = self.jobs.get(&job_id).is_some_and(|job| job.is_queued() && job.is_read);
        if is_read_waiting {
            self.live.jobs.entry(job_id).or_default();
        } else {
            self.live.jobs.remove(&job_id);
        }
    }

    /// Sets the next look while anybody reads a waiting job.
    pub(crate) fn arm_live(&mut self, turn: &Turn) {
        let wanted = !self.live.jobs.is_empty();
        if wanted != self.live.armed {
            self.live.armed = wanted;
            self.alarms.set(Subject::LiveReaders, wanted.then_some(turn.now + EVERY_MS));
        }
    }

    /// Tells the readers of jobs that still wait at the end of the turn what has changed.
    pub(crate) fn tell_live(&mut self, turn: &mut Turn) {
        self.live.armed = false;
        for job_id in self.live.next_round() {
            let waiting = self.jobs.get(&job_id).filter(|job| job.is_queued());
            let Some(position) = waiting.map(|job| self.queue.position(&job.row)) else { continue };
            self.pass_time(job_id, turn.now);
            let told = Told { at: turn.now, position, eta: self.eta(job_id, turn.now) };
            let Some(before) = self.live.jobs.get_mut(&job_id) else { continue };
            if before.is_none_or(|before| told.is_news_after(&before)) {
                *before = Some(told);
                let event = TaskEvent::Queued { job_id, queue_position: position, eta_ms: told.eta };
                turn.act(Action::PublishLive { job_id, event });
            }
        }
    }
}
