//! Where the brain is met: a mailbox that anybody fills without waiting, and a lock whose holder
//! empties it (flat combining: Hendler, Incze, Shavit and Tzafrir, SPAA 2010).
//!
//! Nobody but the driver's thread ever waits for the lock. Who finds it taken leaves its message
//! behind; the holder looks into the mailbox again after it has let go, so none is forgotten.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::Thread;

use super::brain::Brain;
use super::handle::Message;
use crate::store::StoreError;

/// See the module.
#[derive(Default)]
pub(super) struct Desk {
    mailbox: Mutex<Mailbox>,
    brain: Mutex<Option<Brain>>,
    /// The thread that commits, once it runs.
    committer: OnceLock<Thread>,
}

#[derive(Default)]
struct Mailbox {
    messages: VecDeque<Message>,
    /// Nobody will ever read it again.
    closed: bool,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    /// Lets the brain take messages.
    pub fn open(&self, brain: Brain) {
        *self.lock_brain() = Some(brain);
    }

    /// Leaves a message without handling any. Returns whether it will be read; [`Self::pump`] is to
    /// follow soon.
    pub fn post(&self, message: Message) -> bool {
        let mut mailbox = self.lock_mailbox();
        if !mailbox.closed {
            mailbox.messages.push_back(message);
        }
        !mailbox.closed
    }

    /// Handles what lies in the mailbox, unless somebody else is at it: they will.
    pub fn pump(&self) {
        loop {
            let mut guard = match self.brain.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::WouldBlock) => return,
                // The driver's thread ends the daemon over a brain that panicked.
                Err(TryLockError::Poisoned(_)) => return self.wake_committer(),
            };
            let Some(brain) = guard.as_mut() else { return };
            let panics = WakeOnPanic(self);
            self.empty_mailbox(brain);
            drop(panics);
            let (full, wake) = (brain.is_full(), brain.wants_committer());
            drop(guard);
            if wake {
                self.wake_committer();
            }
            if full || self.lock_mailbox().messages.is_empty() {
                return;
            }
        }
    }

    /// The driver's thread: commits what has gathered, does what is due, sleeps in between.
    pub fn commit_until_stopped(&self) -> Result<(), StoreError> {
        let _ = self.committer.set(std::thread::current());
        loop {
            let mut guard = self.brain.lock().unwrap_or_else(|_| panicked());
            let Some(brain) = guard.as_mut() else { return Ok(()) };
            match self.one_turn(brain) {
                Ok(true) => {
                    let sleep = brain.sleep();
                    drop(guard);
                    if self.lock_mailbox().messages.is_empty() {
                        std::thread::park_timeout(sleep);
                    }
                }
                ended => {
                    // Whatever is in there was not committed and must never be acted on.
                    let brain = guard.take();
                    drop(guard);
                    self.close();
                    return match (ended, brain) {
                        (Ok(_), Some(brain)) => brain.close(),
                        (ended, _) => ended.map(drop),
                    };
                }
            }
        }
    }

    /// Takes, commits and acts until nothing is left to commit. False when told to stop.
    fn one_turn(&self, brain: &mut Brain) -> Result<bool, StoreError> {
        brain.tick()?;
        loop {
            self.empty_mailbox(brain);
            brain.check()?;
            let stop = brain.stops();
            if !brain.has_round() {
                return Ok(!stop);
            }
            // The lock is kept: until the commit is done, nobody decides on top of it.
            brain.commit()?;
        }
    }

    fn empty_mailbox(&self, brain: &mut Brain) {
        while !brain.is_full() {
            let Some(message) = self.lock_mailbox().messages.pop_front() else { return };
            brain.take(message);
        }
    }

    /// Nobody is heard any more; callers that wait learn it by their channels closing.
    fn close(&self) {
        let mut mailbox = self.lock_mailbox();
        mailbox.closed = true;
        let unread = std::mem::take(&mut mailbox.messages);
        drop(mailbox);
        drop(unread);
    }

    fn wake_committer(&self) {
        if let Some(committer) = self.committer.get() {
            committer.unpark();
        }
    }

    fn lock_mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_brain(&self) -> MutexGuard<'_, Option<Brain>> {
        self.brain.lock().unwrap_or_else(|_| panicked())
    }
}

/// Has the driver's thread look at once when the brain panics on the caller's.
struct WakeOnPanic<'a>(&'a Desk);

impl Drop for WakeOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.wake_committer();
        }
    }
}

/// A brain that panicked half-way through a step is not to be asked again: this thread goes too,
/// and the daemon ends with what is on disk.
fn panicked() -> ! {
    std::panic::resume_unwind(Box::new("the brain panicked on another thread"))
}
