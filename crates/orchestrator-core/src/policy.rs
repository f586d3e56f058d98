//! Policies: what an operator may decide about jobs and workers that Rust found possible.
//!
//! A policy has five hooks. Read-only facts go in; a number, a yes or no, or a reason comes out. It
//! never names a worker and never sees one that could not run the job, so a bad policy can be slow or
//! silly but never unsafe. A hook that fails is counted and shown, and the next policy in line
//! answers in its place: the last good one, then the built-in one, which cannot fail. A policy that
//! fails too often is taken out of force.

mod breaker;
mod builtin;
mod facts;
mod failure;
mod loaded;
mod log;
mod sample;
mod slot;

use std::fmt::Debug;

pub use breaker::Outcomes;
pub use builtin::LeastLoaded;
pub use facts::{FailureFacts, Hour, JobFacts, Label, Labels, QueueFacts, WorkerLoad};
pub use failure::{FailureKind, Hook, PolicyFailure};
pub use loaded::{NoScripts, PolicyText, Scripts};
pub use log::{Difference, Failed, PolicyLog, Shadowed, Tally};
pub use sample::SampleWorker;
pub use slot::{Demotion, NoSuchPolicy, PolicyChange, PolicyRows, PolicySlot, PolicyStanding};

/// Workers that one placement shows to a policy at most: the best ones by the built-in order.
pub const MAX_SCORED: usize = 32;
/// The highest score; the lowest is 0. Wishes of the job (`prefer`) weigh more than any score.
pub const MAX_SCORE: f64 = 1_000.0;

/// Whether a new job is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It joins the queue.
    Admit,
    /// It joins the queue and is not handed out before this many milliseconds have passed.
    Hold(u64),
    /// It is refused, and its client reads this.
    Refuse(String),
}

/// What a policy thinks of a job on a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Score {
    /// How good it would be, from 0 to [`MAX_SCORE`], counted in whole millionths.
    Points(f64),
    /// Rather let the job wait than run it here now. It is asked again with every heartbeat.
    KeepFree,
}

/// Whether a failed job is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// As the retry settings say.
    GoOn,
    /// It ends with its last error.
    GiveUp,
}

/// Five hooks, each with the built-in answer as its default. The same facts always give the same
/// answer: nothing else may be looked at.
///
/// # Errors
/// Every hook may answer with a [`PolicyFailure`]; whoever asks goes on with the next policy in line.
pub trait Policy: Debug + Send + Sync {
    /// What `why` calls it: its name and its rule in a few words.
    fn describe(&self) -> &str;

    /// Whether it answers this hook in its own way. Where nobody does, no facts are gathered.
    fn has(&self, hook: Hook) -> bool;

    /// Whether a new job, which every other rule lets in, joins the queue.
    fn admit(&self, _job: &JobFacts<'_>, _queue: &QueueFacts) -> Result<Admission, PolicyFailure> {
        Ok(Admission::Admit)
    }

    /// The key by which jobs of one flow are ordered, lowest first; asked when a job joins the queue
    /// and when it ages. Between equals the first come goes first.
    fn order(&self, _job: &JobFacts<'_>) -> Result<i64, PolicyFailure> {
        Ok(0)
    }

    /// Scores workers for one job, in the order given, into `scores` (emptied first). The highest is
    /// taken, and between equals the lower id. At most [`MAX_SCORED`] workers are given.
    fn score(
        &self,
        _job: &JobFacts<'_>,
        workers: &[WorkerLoad<'_>],
        scores: &mut Vec<Score>,
    ) -> Result<(), PolicyFailure> {
        LeastLoaded::score_all(workers, scores);
        Ok(())
    }

    /// How readily an idle worker is given up to make room; the highest goes first.
    fn evict(&self, worker: &WorkerLoad<'_>) -> Result<f64, PolicyFailure> {
        Ok(LeastLoaded::evict_key(worker))
    }

    /// Whether a job whose attempt failed in a way that can be tried again is.
    fn retry(&self, _job: &JobFacts<'_>, _failure: &FailureFacts<'_>) -> Result<Again, PolicyFailure> {
        Ok(Again::GoOn)
    }
}
