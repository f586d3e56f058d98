//! Faults planted on purpose: a simulation that cannot fail is no test.

use clap::ValueEnum;

/// A planted bug, chosen at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bug {
    /// The driver acts first and commits afterwards.
    ActBeforeCommit,
    /// What an old attempt reports is taken as news of the current one.
    StaleAttemptAccepted,
    /// A worker never frees the slot of a run that was stopped.
    SlotLeaked,
    /// Starts of a worker are not told apart.
    NoIncarnation,
    /// A reader that comes back is sent on one event too far.
    ResumeOffByOne,
    /// The journal leaves out that time passed.
    TimeoutNotJournaled,
}

impl Bug {
    /// Every bug.
    pub const ALL: [Self; 6] = [
        Self::ActBeforeCommit,
        Self::StaleAttemptAccepted,
        Self::SlotLeaked,
        Self::NoIncarnation,
        Self::ResumeOffByOne,
        Self::TimeoutNotJournaled,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ActBeforeCommit => "act-before-commit",
            Self::StaleAttemptAccepted => "stale-attempt-accepted",
            Self::SlotLeaked => "slot-leaked",
            Self::NoIncarnation => "no-incarnation",
            Self::ResumeOffByOne => "resume-off-by-one",
            Self::TimeoutNotJournaled => "timeout-not-journaled",
        }
    }
}
