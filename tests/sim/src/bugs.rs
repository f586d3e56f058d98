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
    /// The journal begins anew without a new snapshot.
    StaleSnapshot,
    /// A transaction of several rows leaves out the last one.
    LastWriteLost,
    /// A restart forgets the idempotency keys of jobs that have ended.
    KeysForgotten,
    /// A restart counts jobs from the start again.
    NumbersReused,
    /// A restart forgets which attempts waiting jobs have behind them.
    AttemptForgotten,
    /// A job that must not be tried again is written down as one that may.
    RequestAltered,
    /// What a failed attempt said is passed on instead of dropped.
    HeldPasses,
    /// Tokens pass before `running` is on disk.
    PassBeforeRunning,
    /// A stream that is taken up again begins one event too late.
    RelaySkips,
    /// The last event of a job is sent twice.
    EndTwice,
    /// A worker runs an attempt again when it is asked again.
    RunTwice,
    /// A worker that is to drain gets new jobs.
    DrainIgnored,
    /// A worker counts as heard of because its connection is open.
    SilenceForgiven,
    /// The brain is told the wall clock, which is set back at times.
    ClockRunsBack,
    /// A run that goes on elsewhere sends its last token again.
    SeamRepeats,
    /// A seam comes before tokens that a reader may have had.
    SeamTooEarly,
    /// A pool is asked twice for one worker.
    SpawnTwice,
    /// A pool is asked for a worker that is not written down.
    SpawnUnwritten,
    /// A worker that is to give way is stopped before its runs have ended.
    StopBusy,
    /// A pool's memory is read as if nothing were in it.
    RoomMisread,
    /// A worker goes as soon as it is idle.
    KeepAliveShort,
    /// A worker gives way before it has served for as long as it may.
    ResidencyIgnored,
    /// A run goes to a worker of another model.
    WrongModel,
    /// A run goes to two workers.
    RunElsewhereToo,
    /// That a job runs is not written down.
    RunningUnwritten,
    /// A session that is forgotten stays on disk.
    SessionKept,
    /// A restart forgets the policies in force.
    PoliciesForgotten,
    /// The journal leaves out what the watchdog cut.
    WatchdogNotJournaled,
    /// A policy's scores depend on how often it was asked.
    RestlessScript,
    /// The brain is not told of jobs that a full disk refused.
    WithdrawForgotten,
    /// A job that a full disk refused is acknowledged.
    FullDiskAccepted,
    /// What waits for room on the disk is acted on and never written.
    HeldForgotten,
    /// What is written down of a placement leaves out a part of the scores.
    TermsLeftOut,
    /// A job that its connection left keeps its idempotency key.
    KeyOfAbandonedKept,
    /// A job that its connection left has given its idempotency key up, but still answers to it.
    AbandonedAnswers,
}

impl Bug {
    /// Every bug.
    pub const ALL: [Self; 41] = [
        Self::ActBeforeCommit,
        Self::StaleAttemptAccepted,
        Self::SlotLeaked,
        Self::NoIncarnation,
        Self::ResumeOffByOne,
        Self::TimeoutNotJournaled,
        Self::StaleSnapshot,
        Self::LastWriteLost,
        Self::KeysForgotten,
        Self::NumbersReused,
        Self::AttemptForgotten,
        Self::RequestAltered,
        Self::HeldPasses,
        Self::PassBeforeRunning,
        Self::RelaySkips,
        Self::EndTwice,
        Self::RunTwice,
        Self::DrainIgnored,
        Self::SilenceForgiven,
        Self::ClockRunsBack,
        Self::SeamRepeats,
        Self::SeamTooEarly,
        Self::SpawnTwice,
        Self::SpawnUnwritten,
        Self::StopBusy,
        Self::RoomMisread,
        Self::KeepAliveShort,
        Self::ResidencyIgnored,
        Self::WrongModel,
        Self::RunElsewhereToo,
        Self::RunningUnwritten,
        Self::SessionKept,
        Self::PoliciesForgotten,
        Self::WatchdogNotJournaled,
        Self::RestlessScript,
        Self::WithdrawForgotten,
        Self::FullDiskAccepted,
        Self::HeldForgotten,
        Self::TermsLeftOut,
        Self::KeyOfAbandonedKept,
        Self::AbandonedAnswers,
    ];

    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}
