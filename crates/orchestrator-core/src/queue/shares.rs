//! Who is next among those who share a queue: virtual-token counters.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Fair shares by virtual-token counters (VTC; Sheng et al., "Fairness in Serving Large Language
/// Models", OSDI 2024): everybody has a counter of the tokens done for them, divided by their
/// weight, and who waits with the smallest is served next. A charge is made at dispatch with what
/// the job is expected to cost and settled at its end with what it did cost.
///
/// **The bound.** Let `U` be the largest charge, `E` the largest amount by which a settlement
/// changes one, and `M` the number of jobs in flight. While two share the queue and both could be
/// served, their counters never differ by more than `U + M·E`: the one ahead was the smaller when
/// it was last charged, which adds at most `U`; afterwards only the settlements of what was in
/// flight then can raise it or lower the other. So in any stretch of time in which both wait, the
/// tokens charged to them, divided by their weights, differ by at most `2·(U + M·E)`. With exact
/// estimates that is the paper's `2·U`.
///
/// **Idleness is not saved up.** Who comes back is lifted to the smallest counter of those who
/// wait, and never below `served`, the counter at which somebody was last served. The second half
/// matters when the smallest belongs to somebody who waits for a worker that is not there: such a
/// one is lifted too when its turn comes, but for what settlements gave back to it.
///
/// **Newcomers without end** (each chat of a large application is a session) would keep those who
/// have been served once waiting for ever if they all began at the minimum. Under [`Lift::Pace`]
/// they begin where an equal share would have brought somebody who had waited all along, so that
/// everybody's turn comes.
///
/// **Nobody starves.** Whoever joins, new or come back, is served before `(3·n + 1)·(U + M·E)` tokens,
/// divided by the weights, were charged to all others together, where `n` is the most sharers that
/// waited meanwhile. It begins at most `U + M·E` above the smallest counter: no higher than the largest
/// of those who wait, or where its own last charge left it, which was made when it was the smallest.
/// Those who wait with it are charged `2·U + M·E` each at most before they have passed it. Under
/// [`Lift::Pace`] those who join later begin at the pace, which is not below the smallest either and
/// rises by an n-th part of each charge, so after `n·(U + M·E) + U` tokens of charges they begin behind
/// it. Under [`Lift::Minimum`] each other sharer goes before it once at most until then, which is enough
/// where sharers are few and come back, as tenants do. However much the heavy ones have waiting, it
/// makes no difference.
///
/// Every operation is `O(log n)` in the number of sharers, amortised.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound(deserialize = "K: Deserialize<'de> + Ord", serialize = "K: Serialize + Ord"))]
pub(super) struct Shares<K> {
    accounts: BTreeMap<K, Account>,
    /// Who waits and may be served, by counter.
    waiting: BTreeSet<(u64, K)>,
    /// Who waits for nothing but is still ahead of the others, by counter.
    idle: BTreeSet<(u64, K)>,
    /// The largest counter at which anybody was served.
    served: u64,
    /// What an equal share amounts to by now.
    pace: u64,
    lift: Lift,
}

/// Where those begin who were not waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Lift {
    /// At the smallest counter of those who wait.
    Minimum,
    /// At what an equal share amounts to.
    Pace,
}

#[derive(Debug, Serialize, Deserialize)]
struct Account {
    /// Tells it from an earlier account of the same name.
    serial: u64,
    counter: u64,
    /// Jobs that wait.
    jobs: u64,
    /// Whether it may not be served for now.
    blocked: bool,
    /// What settlements gave back since it was last served in its turn.
    given_back: u64,
}

/// A counter before and after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moved {
    /// Before.
    pub from: u64,
    /// After.
    pub to: u64,
}

impl<K: Ord + Clone> Shares<K> {
    /// Nobody waits.
    pub const fn new(lift: Lift) -> Self {
        Self {
            accounts: BTreeMap::new(),
            waiting: BTreeSet::new(),
            idle: BTreeSet::new(),
            served: 0,
            pace: 0,
            lift,
        }
    }

    /// One more job of `key` waits. `serial` marks the account if this opens one; it is larger than
    /// any given before.
    pub fn join(&mut self, key: &K, serial: u64, blocked: bool) {
        let floor = self.floor();
        let fresh = || Account { serial, counter: 0, jobs: 0, blocked: false, given_back: 0 };
        let account = self.accounts.entry(key.clone()).or_insert_with(fresh);
        account.jobs += 1;
        if account.jobs > 1 {
            return;
        }
        self.idle.remove(&(account.counter, key.clone()));
        account.blocked = blocked;
        if !blocked {
            account.counter = account.counter.max(floor);
            account.given_back = 0;
            self.waiting.insert((account.counter, key.clone()));
        }
    }

    /// One job of `key` less waits.
    pub fn leave(&mut self, key: &K) {
        let Some(account) = self.accounts.get_mut(key) else { return };
        account.jobs = account.jobs.saturating_sub(1);
        if account.jobs == 0 {
            self.waiting.remove(&(account.counter, key.clone()));
            self.idle.insert((account.counter, key.clone()));
        }
        self.forget_idle();
    }

    /// `key` is served for `amount` virtual tokens while it waits. Gives the change and the account's
    /// serial, for [`Self::settle`].
    pub fn charge(&mut self, key: &K, amount: u64) -> Option<(Moved, u64)> {
        let account = self.accounts.get_mut(key)?;
        let from = account.counter;
        let start = from.max(self.served.saturating_sub(account.given_back));
        if start >= self.served {
            account.given_back = 0;
        }
        self.served = self.served.max(start);
        account.counter = start.saturating_add(amount);
        let (to, serial) = (account.counter, account.serial);
        let sharers = self.waiting.len().max(1) as u64;
        if self.waiting.remove(&(from, key.clone())) {
            self.waiting.insert((to, key.clone()));
        }
        let most = self.waiting.last().map_or(to, |(counter, _)| *counter);
        self.pace = self.pace.max(start).saturating_add(amount / sharers).min(most);
        Some((Moved { from, to }, serial))
    }

    /// What was charged to this account turned out to be `amount` more (or less).
    pub fn settle(&mut self, key: &K, serial: u64, amount: i64) -> Option<Moved> {
        let account = self.accounts.get_mut(key).filter(|account| account.serial == serial)?;
        let from = account.counter;
        account.counter = from.saturating_add_signed(amount);
        if amount < 0 {
            account.given_back = account.given_back.saturating_add(amount.unsigned_abs());
        }
        let to = account.counter;
        for set in [&mut self.waiting, &mut self.idle] {
            if set.remove(&(from, key.clone())) {
                set.insert((to, key.clone()));
            }
        }
        self.forget_idle();
        Some(Moved { from, to })
    }

    /// `key` may not be served until [`Self::unblock`]. Gives its counter when it was waiting.
    pub fn block(&mut self, key: &K) -> Option<u64> {
        let account = self.accounts.get_mut(key).filter(|account| account.jobs > 0 && !account.blocked)?;
        account.blocked = true;
        let counter = account.counter;
        self.waiting.remove(&(counter, key.clone()));
        self.forget_idle();
        Some(counter)
    }

    /// `key` may be served again, lifted as one who was idle. Gives its counter when it waits.
    pub fn unblock(&mut self, key: &K) -> Option<u64> {
        let floor = self.floor();
        let account = self.accounts.get_mut(key).filter(|account| account.jobs > 0 && account.blocked)?;
        account.blocked = false;
        account.counter = account.counter.max(floor);
        account.given_back = 0;
        self.waiting.insert((account.counter, key.clone()));
        Some(account.counter)
    }

    /// The counter of `key`; 0 when nothing is known of it.
    pub fn counter(&self, key: &K) -> u64 {
        self.accounts.get(key).map_or(0, |account| account.counter)
    }

    /// Jobs of `key` that wait.
    pub fn jobs(&self, key: &K) -> u64 {
        self.accounts.get(key).map_or(0, |account| account.jobs)
    }

    /// Whether `key` waits and may not be served.
    pub fn is_blocked(&self, key: &K) -> bool {
        self.accounts.get(key).is_some_and(|account| account.jobs > 0 && account.blocked)
    }

    /// How many wait and may be served.
    pub fn sharers(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// Where one begins who was not waiting.
    fn floor(&self) -> u64 {
        let Some((least, _)) = self.waiting.first() else { return self.served };
        let floor = self.served.max(*least);
        match self.lift {
            Lift::Minimum => floor,
            Lift::Pace => floor.max(self.pace),
        }
    }

    /// Forgets those who would be lifted above their counter anyway; everybody once nobody waits,
    /// because then nobody was deprived of anything.
    fn forget_idle(&mut self) {
        let floor = if self.waiting.is_empty() { u64::MAX } else { self.floor() };
        while self.idle.first().is_some_and(|(counter, _)| *counter <= floor) {
            if let Some((_, key)) = self.idle.pop_first() {
                self.accounts.remove(&key);
            }
        }
    }
}
