//! Counts the operations of an answer, and lets somebody with a clock stop it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;

use crate::limits::OPERATIONS;

/// Why an answer was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It used up its operations.
    Operations,
    /// A watchdog cut it.
    Watchdog,
}

/// One answer after the other is given under it: its operations are counted, and a watchdog on
/// another thread can see how long it takes and stop it.
///
/// The watchdog notes [`Watch::answering`]; when the same number is still there after its limit, it
/// calls [`Watch::stop`] with it. Answers that began later are not hit.
#[derive(Debug, Default)]
pub struct Watch {
    /// Odd while an answer is worked on; grows with each beginning and end.
    epoch: AtomicU64,
    /// The epoch that is to stop.
    stopped: AtomicU64,
    /// Operations of this answer so far.
    spent: AtomicU64,
    /// Whether the watchdog sleeps until somebody asks a policy again.
    asleep: AtomicBool,
    /// The watchdog's thread.
    watchdog: OnceLock<Thread>,
    /// Held while an answer is worked on: the counts are of one answer.
    one_at_a_time: Mutex<()>,
}

impl Watch {
    /// The number of the answer that is worked on, if any.
    pub fn answering(&self) -> Option<u64> {
        let epoch = self.epoch.load(Ordering::Acquire);
        (epoch % 2 == 1).then_some(epoch)
    }

    /// Answers begun and ended so far, as one number that only grows.
    pub fn progress(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Stops this answer if it is still worked on.
    pub fn stop(&self, answer: u64) {
        self.stopped.store(answer, Ordering::Release);
    }

    /// The thread that watches, once. It is unparked when an answer begins while it
    /// [sleeps](Self::sleep).
    pub fn watched_by(&self, watchdog: Thread) {
        let _ = self.watchdog.set(watchdog);
    }

    /// The watchdog is about to park until the next answer begins. False when one began since
    /// `progress`, so that it must not.
    pub fn sleep(&self, progress: u64) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let may = self.epoch.load(Ordering::SeqCst) == progress;
        if !may {
            self.asleep.store(false, Ordering::SeqCst);
        }
        may
    }

    /// Gives one answer: its operations are counted from nothing.
    pub(crate) fn over<T>(&self, give: impl FnOnce() -> T) -> T {
        // Nothing is kept under the lock, so a poisoned one means nothing.
        let _turn = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        self.begin();
        let answer = give();
        self.end();
        answer
    }

    fn begin(&self) {
        self.spent.store(0, Ordering::Relaxed);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.watchdog.get().map(Thread::unpark).unwrap_or_default();
        }
    }

    fn end(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Operations of this answer so far.
    pub(crate) fn spent(&self) -> u64 {
        self.spent.load(Ordering::Relaxed)
    }

    /// Counts operations that an earlier equal call took, as if it had been made again.
    pub(crate) fn charge(&self, operations: u64) -> Option<Stop> {
        // One thread counts: no answer begins before the one before it is given.
        let spent = self.spent().saturating_add(operations);
        self.spent.store(spent, Ordering::Relaxed);
        (spent > OPERATIONS).then_some(Stop::Operations)
    }

    /// After one more operation: whether to stop. The interpreter's own count is not used, because it
    /// begins anew in a function that a native function calls.
    pub(crate) fn operation(&self) -> Option<Stop> {
        let stop = self.charge(1);
        let stopped = self.stopped.load(Ordering::Relaxed);
        let cut = stopped != 0 && stopped == self.epoch.load(Ordering::Relaxed);
        stop.or(cut.then_some(Stop::Watchdog))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_stop_hits_the_answer_it_names_and_no_later_one() {
        let watch = Watch::default();
        assert_eq!(watch.answering(), None);
        watch.begin();
        let first = watch.answering().unwrap_or_default();
        watch.stop(first);
        assert_eq!(watch.operation(), Some(Stop::Watchdog));
        watch.end();
        watch.begin();
        assert_eq!(watch.operation(), None);
        watch.end();
    }

    #[test]
    fn operations_add_up_over_one_answer_and_begin_anew_with_the_next() {
        let watch = Watch::default();
        watch.begin();
        assert_eq!(watch.charge(OPERATIONS - 1), None);
        assert_eq!(watch.operation(), None);
        assert_eq!(watch.operation(), Some(Stop::Operations));
        watch.end();
        watch.begin();
        assert_eq!(watch.charge(OPERATIONS), None);
        watch.end();
    }

    #[test]
    fn a_sleeping_watchdog_is_woken_once() {
        let watch = Arc::new(Watch::default());
        let before = watch.progress();
        let guard = std::thread::spawn({
            let watch = Arc::clone(&watch);
            move || {
                while watch.sleep(before) {
                    std::thread::park();
                }
                watch.progress()
            }
        });
        watch.watched_by(guard.thread().clone());
        watch.begin();
        watch.end();
        assert!(guard.join().is_ok_and(|progress| progress > 0));
    }
}
