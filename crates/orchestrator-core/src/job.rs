//! The life of a job: its states, the moves between them, and its attempts.

use api_types::event::RunEnd;
use api_types::task::{Decision, Durability, OnDisconnect, RetryMode, TaskStatus};
use api_types::{Attempt, ErrorDetail, StopReason, WorkerId};
use serde::{Deserialize, Serialize};

use crate::carry::build_of;
use crate::event::RunKey;
use crate::fair::{most_prompt_tokens, prompt_tokens};
use crate::queue::Charge;
use crate::row::{AttemptRow, JobRow, WorkerRow};
use crate::settings::Settings;
use crate::time::Time;

/// An attempt's events start here unless earlier ones have sent tokens: event 0 is `queued`, and
/// nothing of a worker's stream reaches a reader before `running`.
pub(crate) const FIRST_EVENT_ID: u64 = 1;

/// A job that has not ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    /// What is on disk.
    pub row: JobRow,
    /// Placements so far, oldest first.
    pub decisions: Vec<Decision>,
    /// Since when its last reader has been gone, where that matters.
    pub readerless_since: Option<Time>,
    /// Whether anybody reads its stream now.
    pub is_read: bool,
    /// Whether it waits for its `not_before`.
    pub resting: bool,
    /// Breaks of the current run's stream in short succession, and when the last one was.
    pub breaks: Breaks,
    /// Tokens that were set aside for it at its admission.
    pub reserved: u64,
    /// What its tenant and session were charged with when it was handed out; `None` while it waits.
    pub charge: Option<Charge>,
    /// Whether it has been `running`.
    pub has_run: bool,
    /// How it ends as soon as the tokens in its log are counted.
    pub ending: Option<Ending>,
    /// Tokens that were in its log then.
    pub shown: u32,
    /// Whether the figures of its end are no worker's count.
    pub is_guessed: bool,
    /// While the policy keeps workers free of it: the last that was looked at, by id.
    pub kept_free_after: Option<WorkerId>,
}

/// How a job ends without its worker's word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Ending {
    /// Somebody asked for it.
    Cancelled,
    /// With this error.
    Failed(ErrorDetail),
}

/// How often the stream of the current run broke lately.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Breaks {
    /// Breaks in short succession.
    pub count: u32,
    /// The last one.
    pub last: Time,
}

impl Job {
    /// A job as it stands on disk.
    pub fn new(row: JobRow) -> Self {
        Self {
            has_run: row.status == TaskStatus::Running,
            row,
            decisions: Vec::new(),
            readerless_since: None,
            is_read: false,
            resting: false,
            breaks: Breaks::default(),
            reserved: 0,
            charge: None,
            ending: None,
            shown: 0,
            is_guessed: false,
            kept_free_after: None,
        }
    }

    /// Whether it is written down at all.
    pub fn is_durable(&self) -> bool {
        self.row.durability == Durability::Durable
    }

    /// Whether it waits.
    pub fn is_queued(&self) -> bool {
        self.row.status == TaskStatus::Queued
    }

    /// Whether a policy holds it back and nobody has had it yet.
    pub fn is_held(&self) -> bool {
        self.resting && self.row.attempt.is_none()
    }

    /// The run that a worker holds for it, while one does.
    pub fn run(&self) -> Option<RunKey> {
        match self.row.status {
            TaskStatus::Dispatched | TaskStatus::Running => self.last_run(),
            TaskStatus::Queued | TaskStatus::Completed | TaskStatus::Failed | TaskStatus::Cancelled => None,
        }
    }

    /// The current or last run.
    pub fn last_run(&self) -> Option<RunKey> {
        self.row.attempt.as_ref().map(|attempt| RunKey {
            job_id: self.row.job_id,
            attempt: attempt.attempt,
            worker_id: attempt.worker_id.clone(),
            incarnation: attempt.incarnation,
        })
    }

    /// Queued to dispatched, under the next attempt number.
    pub fn start_attempt(&mut self, worker: &WorkerRow, now: Time) {
        self.move_to(TaskStatus::Dispatched);
        let attempt = self.row.attempt.as_ref().map_or(Attempt::FIRST, |last| last.attempt.next());
        self.row.attempt = Some(AttemptRow {
            attempt,
            worker_id: worker.facts.worker_id.clone(),
            incarnation: worker.incarnation,
            dispatched_at: now,
            first_event_id: self.row.carried.as_ref().map_or(FIRST_EVENT_ID, |carried| carried.events),
            build: (self.row.retry == RetryMode::Continue).then(|| build_of(&worker.facts)),
        });
        self.row.not_before = None;
        self.breaks = Breaks::default();
    }

    /// Dispatched to running: tokens may be passed on once this is on disk.
    pub fn set_running(&mut self) {
        self.move_to(TaskStatus::Running);
        self.has_run = true;
    }

    /// Dispatched or, for a job that can go on elsewhere, running back to queued; not to be handed
    /// out before `not_before`.
    pub fn requeue(&mut self, not_before: Option<Time>) {
        self.undo_seam();
        self.move_to(TaskStatus::Queued);
        self.row.not_before = not_before;
        self.resting = not_before.is_some();
        self.breaks = Breaks::default();
    }

    /// Any living state to completed or cancelled, as the figures say.
    pub fn end(&mut self, end: RunEnd, now: Time) {
        let cancelled = end.stop_reason == StopReason::Cancelled;
        self.move_to(if cancelled { TaskStatus::Cancelled } else { TaskStatus::Completed });
        self.row.end = Some(end);
        self.row.ended_at = Some(now);
    }

    /// Any living state to failed.
    pub fn fail(&mut self, error: ErrorDetail, now: Time) {
        self.move_to(TaskStatus::Failed);
        self.row.error = Some(error);
        self.row.ended_at = Some(now);
    }

    fn move_to(&mut self, status: TaskStatus) {
        debug_assert!(
            may_move(self.row.status, status),
            "{} may not move from {:?} to {status:?}",
            self.row.job_id,
            self.row.status
        );
        self.row.status = status;
    }

    /// From submission to the current dispatch, or to `now` while none was made.
    pub fn queue_time_ms(&self, now: Time) -> u64 {
        let until = self.row.attempt.as_ref().map_or(now, |attempt| attempt.dispatched_at);
        until.since(self.row.submitted_at)
    }

    /// The figures of a job that ends by request without a worker's word on it. Its prompt counts once
    /// a worker has read it; of its output what is in its log.
    pub fn cancelled_end(&self, now: Time) -> RunEnd {
        let tokens_in = if self.was_read() { prompt_tokens(&self.row) } else { 0 };
        RunEnd {
            tokens_in: u32::try_from(tokens_in).unwrap_or(u32::MAX),
            tokens_out: self.tokens_shown(),
            queue_time_ms: self.queue_time_ms(now),
            prefill_time_ms: 0,
            decode_time_ms: 0,
            stop_reason: StopReason::Cancelled,
            seed: None,
            tokens_cached: None,
        }
    }

    /// Tokens that an ended job took: as its worker counted them. Where no worker did, its prompt, if it
    /// was read, counts for as much as it may have been, so that no budget is overrun by guessing.
    pub fn tokens_spent(&self) -> u64 {
        match &self.row.end {
            Some(end) if !self.is_guessed => u64::from(end.tokens_in) + u64::from(end.tokens_out),
            Some(_) | None if self.was_read() => {
                let tokens = most_prompt_tokens(&self.row) + u64::from(self.tokens_shown());
                tokens.min(self.reserved)
            }
            Some(_) | None => 0,
        }
    }

    /// Whether a worker has read its prompt, in this attempt or an earlier one.
    const fn was_read(&self) -> bool {
        self.has_run || self.row.carried.is_some()
    }

    /// Tokens that its readers were shown as far as is known: of earlier attempts, and of the current
    /// one once they are counted.
    fn tokens_shown(&self) -> u32 {
        self.row.carried.as_ref().map_or(0, |carried| carried.tokens).max(self.shown)
    }

    /// Notes how many readers it has.
    pub fn set_readers(&mut self, readers: u32, now: Time) {
        self.is_read = readers > 0;
        if readers > 0 {
            self.readerless_since = None;
            self.row.had_reader = true;
        } else {
            self.wait_for_reader(now);
        }
    }

    /// Starts the grace of a job that ends without readers and had one.
    pub fn wait_for_reader(&mut self, now: Time) {
        if self.row.had_reader && self.row.on_disconnect == OnDisconnect::Cancel {
            self.readerless_since.get_or_insert(now);
        }
    }

    /// When the current attempt has run for as long as it may.
    pub fn time_limit_at(&self, settings: &Settings) -> Option<Time> {
        self.run()?;
        self.row.attempt.as_ref().map(|attempt| attempt.dispatched_at + settings.job_time_limit_ms)
    }

    /// When a cancellation becomes final whatever the worker does.
    pub fn cancel_final_at(&self, settings: &Settings) -> Option<Time> {
        self.row.cancel_requested_at.map(|at| at + settings.cancel_final_ms)
    }

    /// When a job without readers is cancelled.
    pub fn disconnect_at(&self, settings: &Settings) -> Option<Time> {
        let cancelling = self.row.cancel_requested_at.is_some();
        self.readerless_since.filter(|_| !cancelling).map(|at| at + settings.disconnect_grace_ms)
    }

    /// When anything about it is due next.
    pub fn next_alarm(&self, settings: &Settings) -> Option<Time> {
        let resting = self.row.not_before.filter(|_| self.resting);
        [
            self.ending.as_ref().map(|_| Time::default()),
            resting,
            self.row.deadline,
            self.time_limit_at(settings),
            self.cancel_final_at(settings),
            self.disconnect_at(settings),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// The legal moves. A terminal state never changes. Only a job with `retry: continue` goes from
/// running back to queued.
pub const fn may_move(from: TaskStatus, to: TaskStatus) -> bool {
    use TaskStatus::{Cancelled, Completed, Dispatched, Failed, Queued, Running};
    match from {
        Queued => matches!(to, Dispatched | Failed | Cancelled),
        Dispatched => matches!(to, Queued | Running | Completed | Failed | Cancelled),
        Running => matches!(to, Queued | Completed | Failed | Cancelled),
        Completed | Failed | Cancelled => false,
    }
}
