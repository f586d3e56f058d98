//! The daemon's hold on the brain: decide, commit, act.
//!
//! Everybody speaks to the brain through one mailbox ([`desk`]), and whoever finds the brain free
//! empties it: a step without writes, while no commit is pending, is decided and acted on at once, on
//! the caller's own thread. A step with writes, and all that come after it, wait for the driver's
//! thread, which commits whatever has gathered in one transaction and then acts, step by step in the
//! order of their decisions. Nobody hears of a decision before it is on disk.

mod ahead;
mod brain;
mod carry;
mod desk;
mod erase;
pub mod handle;
mod hold;
mod journal;
mod pool_room;
mod prepare;
pub mod requests;
mod round;

use std::sync::Arc;

use api_types::JobId;
use api_types::task::{RetryMode, TaskStatus};
use orchestrator_core::Orchestrator;
use orchestrator_core::policy::Scripts;
use orchestrator_core::settings::Settings;

use self::brain::Brain;
pub use self::brain::Keeping;
use self::desk::Desk;
pub use self::handle::{Accepted, CheckedTask, Handle, is_for_want_of_model};
use crate::actions::Actions;
use crate::clock::{Clock, Wall};
use crate::hashes::HashKey;
use crate::store::housekeeping::Housekeeper;
use crate::store::{Recovered, Store, StoreError};

/// The mailbox of a driver that has not started.
pub struct Mailbox(Arc<Desk>);

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Mailbox").finish_non_exhaustive()
    }
}

/// A way to speak to a driver that is yet to be started. Prompts are hashed under `hash_key`; large
/// ones are put on disk by `keeper` before the brain hears of them.
pub fn mailbox(hash_key: HashKey, keeper: Housekeeper) -> (Handle, Mailbox) {
    let desk = Arc::new(Desk::default());
    (Handle::new(hash_key, keeper, Arc::clone(&desk)), Mailbox(desk))
}

/// The thread that commits, and that wakes up when something is due.
#[derive(Debug)]
pub struct Driver {
    desk: Arc<Desk>,
}

impl Driver {
    /// Recovers the brain from the database and performs what recovery asks for. The time goes on
    /// from `wall`; see [`Clock::start`].
    ///
    /// # Errors
    /// When the database fails.
    pub fn recover(
        settings: Settings,
        keeping: Keeping,
        mut store: Store,
        mailbox: Mailbox,
        actions: Actions,
        scripts: Arc<dyn Scripts>,
        wall: Wall,
    ) -> Result<Self, StoreError> {
        store.keep_requests(keeping.prompts);
        let (clock, set_back) = Clock::start(wall.now(), store.last_time()?);
        let now = clock.now();
        if let Some(by_ms) = set_back {
            store.set_back(by_ms, now)?;
            tracing::warn!(
                code = "CLOCK_SET_BACK",
                by_ms,
                "the database was written under a clock far ahead of this one; its times were set back"
            );
        }
        let Recovered { rows, published } = store.load(settings.idempotency_kept_ms)?;
        let running: Vec<JobId> =
            rows.jobs.iter().filter(|job| job.status == TaskStatus::Running).map(|job| job.job_id).collect();
        for (job_id, frames) in &published {
            actions.subscribers.create(*job_id, frames, !running.contains(job_id));
        }
        for row in rows.jobs.iter().filter(|row| row.retry == RetryMode::Continue) {
            carry::take_over(&actions.subscribers, row);
        }
        let open = published.len();
        let (orchestrator, step) = Orchestrator::recover_with(settings, rows, scripts, now);
        store.commit(&[], now)?;
        let mut brain = Brain::new(orchestrator, store, clock, actions, keeping);
        brain.take_step(step, None)?;
        brain.commit()?;
        mailbox.0.open(brain);
        tracing::info!(
            code = "RECOVERED",
            open_jobs = open,
            running = running.len(),
            "recovered from the database"
        );
        Ok(Self { desk: mailbox.0 })
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// When the database fails. What was not committed was not done either; the process has to end.
    pub fn run(self) -> Result<(), StoreError> {
        self.desk.commit_until_stopped()
    }
}
