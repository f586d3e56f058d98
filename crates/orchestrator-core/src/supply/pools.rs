//! What pools said of their memory, and whether that still counts.

use std::collections::BTreeMap;

use api_types::{ErrorDetail, PoolId};
use serde::{Deserialize, Serialize};

use crate::event::PoolRoom;
use crate::orchestrator::Orchestrator;
use crate::settings::SupplySettings;
use crate::step::Action;
use crate::time::Time;
use crate::turn::Turn;

/// Milliseconds for which an answer counts: other programs take memory too.
pub(super) const FRESH_MS: u64 = 2_000;
/// Milliseconds until a pool that did not answer is asked again.
const SILENT_MS: u64 = 10_000;
/// Milliseconds after which an answer is not expected any more.
const ANSWER_MS: u64 = 60_000;

/// What a pool said, in the order of questions and changes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    /// The last answer.
    room: Option<PoolRoom>,
    /// When it came.
    seen_at: Time,
    /// Why the last question had no answer.
    silent: Option<ErrorDetail>,
    /// Number of the last question; 0 before the first.
    asked: u64,
    asked_at: Time,
    /// Number of the last question that had an answer.
    answered: u64,
    /// Number of the last question before the last change.
    changed: u64,
    /// By model, spawns that failed since the last that did not.
    pub failures: BTreeMap<String, Failures>,
}

/// Spawns of one model in one pool that failed in a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Failures {
    /// How many.
    pub count: u32,
    /// No further one before this time.
    pub not_before: Time,
    /// The last reason.
    pub last: ErrorDetail,
}

/// What is known of a pool at some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Knowledge<'a> {
    /// What it said is true.
    Fresh(&'a PoolRoom),
    /// It was asked, and is asked again if it does not answer by this time.
    Asked(Time),
    /// It is to be asked.
    Stale,
    /// It did not answer, and is not asked again before this time.
    Silent(&'a ErrorDetail, Time),
}

impl Seen {
    /// What was said up to now tells nothing any more.
    pub fn change(&mut self) {
        self.changed = self.asked;
    }

    pub fn knowledge(&self, now: Time) -> Knowledge<'_> {
        if self.asked > self.changed.max(self.answered) && now.since(self.asked_at) < ANSWER_MS {
            return Knowledge::Asked(self.asked_at + ANSWER_MS);
        }
        let answered = self.answered > self.changed;
        match (&self.silent, &self.room) {
            (Some(error), _) if answered && now.since(self.seen_at) < SILENT_MS => {
                Knowledge::Silent(error, self.seen_at + SILENT_MS)
            }
            (None, Some(room)) if answered && now.since(self.seen_at) < FRESH_MS => Knowledge::Fresh(room),
            (Some(_) | None, _) => Knowledge::Stale,
        }
    }

    /// What it last said, however long ago.
    pub const fn last(&self) -> Option<&PoolRoom> {
        self.room.as_ref()
    }

    /// The number of the next question.
    fn ask(&mut self, now: Time) -> u64 {
        self.asked += 1;
        self.asked_at = now;
        self.asked
    }

    /// Takes an answer in. One that nobody asked for is worth something only where nothing better is
    /// known, because it may be older than it looks.
    fn answer(&mut self, ask: u64, answer: Result<PoolRoom, ErrorDetail>, now: Time) {
        let unasked = ask == 0 && matches!(self.knowledge(now), Knowledge::Stale | Knowledge::Silent(..));
        if !unasked && (ask <= self.answered || ask > self.asked) {
            return;
        }
        self.answered = self.answered.max(ask);
        self.seen_at = if unasked { self.seen_at } else { now };
        match answer {
            Ok(room) => (self.room, self.silent) = (Some(room), None),
            Err(error) => self.silent = Some(error),
        }
    }

    /// A spawn failed: the next one waits, longer each time.
    pub fn fail(&mut self, model: &str, error: ErrorDetail, settings: &SupplySettings, now: Time) {
        let count = self.failures.get(model).map_or(1, |failures| failures.count.saturating_add(1));
        // What does not pass by itself is not worth the tries that a passing trouble is.
        let count =
            if error.retriable || is_crowded(&error) { count } else { count.max(settings.spawn_tries) };
        let doubled = settings.backoff_first_ms.saturating_mul(1 << count.saturating_sub(1).min(20));
        let not_before = now + doubled.min(settings.backoff_max_ms);
        self.failures.insert(model.to_owned(), Failures { count, not_before, last: error });
    }
}

/// Whether a spawn failed for want of memory: another program was faster, and may leave.
fn is_crowded(error: &ErrorDetail) -> bool {
    use api_types::ErrorCode::{InsufficientMemory, InsufficientVram};
    error.code == InsufficientVram || error.code == InsufficientMemory
}

impl Orchestrator {
    /// A pool told what fits.
    pub(crate) fn pool_seen(&mut self, pool_id: PoolId, ask: u64, room: PoolRoom, turn: &mut Turn) {
        self.pool_answered(pool_id, ask, Ok(room), turn);
    }

    /// A pool did not answer.
    pub(crate) fn pool_silent(&mut self, pool_id: PoolId, ask: u64, error: ErrorDetail, turn: &mut Turn) {
        self.pool_answered(pool_id, ask, Err(error), turn);
    }

    fn pool_answered(
        &mut self,
        pool_id: PoolId,
        ask: u64,
        answer: Result<PoolRoom, ErrorDetail>,
        turn: &mut Turn,
    ) {
        if self.pools.contains_key(&pool_id) {
            self.supply.pools.entry(pool_id).or_default().answer(ask, answer, turn.now);
            turn.supply = true;
        } else {
            turn.drop_stale("pool_seen");
        }
    }

    /// What is known of a pool.
    pub(super) fn knowledge(&self, pool_id: &PoolId, now: Time) -> Knowledge<'_> {
        self.supply.pools.get(pool_id).map_or(Knowledge::Stale, |seen| seen.knowledge(now))
    }

    /// Asks a pool, unless what it said still counts.
    pub(super) fn ask_if_stale(&mut self, pool_id: &PoolId, turn: &mut Turn) {
        if self.knowledge(pool_id, turn.now) != Knowledge::Stale {
            return;
        }
        let Some(pool) = self.pools.get(pool_id).cloned() else { return };
        let ask = self.supply.pools.entry(pool_id.clone()).or_default().ask(turn.now);
        turn.act(Action::AskPool { pool, ask });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_until_something_changes() {
        let now = Time(1_000);
        let mut seen = Seen::default();
        assert_eq!(seen.knowledge(now), Knowledge::Stale);
        let first = seen.ask(now);
        assert_eq!(seen.knowledge(now), Knowledge::Asked(now + ANSWER_MS));
        seen.change();
        assert_eq!(seen.knowledge(now), Knowledge::Stale, "the answer will be about before the change");
        let second = seen.ask(now);
        seen.answer(first, Ok(PoolRoom::default()), now);
        assert_eq!(seen.knowledge(now), Knowledge::Asked(now + ANSWER_MS));
        seen.answer(second, Ok(PoolRoom::default()), now);
        assert_eq!(seen.knowledge(now), Knowledge::Fresh(&PoolRoom::default()));
        assert_eq!(seen.knowledge(now + FRESH_MS), Knowledge::Stale);
        seen.change();
        assert_eq!(seen.knowledge(now), Knowledge::Stale);
    }

    #[test]
    fn a_question_without_an_answer_is_put_again() {
        let mut seen = Seen::default();
        seen.ask(Time(0));
        assert_eq!(seen.knowledge(Time(ANSWER_MS - 1)), Knowledge::Asked(Time(ANSWER_MS)));
        assert_eq!(seen.knowledge(Time(ANSWER_MS)), Knowledge::Stale);
    }

    #[test]
    fn what_nobody_asked_for_never_replaces_a_fresh_answer() {
        let mut seen = Seen::default();
        let ask = seen.ask(Time(0));
        seen.answer(ask, Ok(PoolRoom::default()), Time(0));
        let error = ErrorDetail::new(api_types::ErrorCode::SshFailed, "no way");
        seen.answer(0, Err(error), Time(1));
        assert_eq!(seen.knowledge(Time(1)), Knowledge::Fresh(&PoolRoom::default()));
    }
}
