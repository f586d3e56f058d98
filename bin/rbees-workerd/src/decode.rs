//! The one thread that owns the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use api_types::{ErrorCode, ErrorDetail};
use engine::{Engine, EngineError, StepOutcome, Token, Tokenizer};

use crate::batch::{Batch, Left, Plan};
use crate::generation::{Finish, Generation, Job};
use crate::metrics::Metrics;
use crate::runs::Runs;

/// How often runs that wait for their readers are looked at.
const PAUSE: Duration = Duration::from_millis(20);

/// What the thread is told.
#[derive(Debug)]
pub enum Command {
    /// Begin this job; its slot is taken already.
    Start(Box<Job>),
    /// End the thread.
    Quit,
}

/// The engine with everything its loop needs.
pub struct Decoder {
    engine: Box<dyn Engine>,
    tokenizer: Arc<dyn Tokenizer>,
    ends: Vec<Token>,
    batch: Batch,
    runs: Arc<Runs>,
    metrics: Arc<Metrics>,
    abandon: Arc<AtomicBool>,
}

impl Decoder {
    /// A decoder for `slots` runs at once. `abandon` makes it give up everything.
    pub fn new(
        engine: Box<dyn Engine>,
        slots: u32,
        runs: Arc<Runs>,
        metrics: Arc<Metrics>,
        abandon: Arc<AtomicBool>,
    ) -> Self {
        let tokenizer = engine.tokenizer();
        let ends = engine.info().end_tokens.clone();
        Self { tokenizer, ends, batch: Batch::new(slots as usize), engine, runs, metrics, abandon }
    }

    /// Takes jobs and steps until told to quit.
    ///
    /// # Errors
    /// When the engine is in a state that no run can be trusted to; every run has then failed.
    pub fn run(&mut self, commands: &Receiver<Command>) -> Result<(), EngineError> {
        while self.take_commands(commands) && !self.abandon.load(Ordering::Relaxed) {
            let now = Instant::now();
            let interrupted = self.batch.interrupt(now);
            let outcome = self.settle(interrupted, now).and_then(|()| self.step());
            if let Err(error) = outcome {
                self.give_up(&Finish::Failed(error.detail()));
                return Err(error);
            }
        }
        let stopping =
            ErrorDetail::new(ErrorCode::ShuttingDown, "the worker was stopped before the run ended");
        self.give_up(&Finish::Failed(stopping));
        Ok(())
    }

    /// Takes what has arrived; waits when there is nothing else to do. `false` means quit.
    fn take_commands(&mut self, commands: &Receiver<Command>) -> bool {
        loop {
            let command = if self.batch.is_empty() {
                commands.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else if self.batch.plan().rows.is_empty() {
                commands.recv_timeout(PAUSE)
            } else {
                commands.try_recv().map_err(|error| match error {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            };
            match command {
                Ok(Command::Start(job)) => self.begin(*job),
                Ok(Command::Quit) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => return true,
            }
        }
    }

    fn begin(&mut self, job: Job) {
        self.metrics.prefills.inc();
        self.metrics.prompt_tokens.inc_by(job.prompt.len() as u64);
        if let Err(generation) = self.batch.join(Generation::new(job, &*self.tokenizer)) {
            // The table of runs hands out as many slots as there are here.
            let error = ErrorDetail::new(ErrorCode::Internal, "there was no slot for an admitted run");
            self.runs.finish(generation.run());
            generation.end(Finish::Failed(error), Instant::now());
        }
    }

    fn step(&mut self) -> Result<(), EngineError> {
        let plan = self.batch.plan();
        if plan.rows.is_empty() {
            return Ok(());
        }
        let begin = Instant::now();
        let outcome = self.engine.step(&plan.rows, &self.abandon);
        let now = Instant::now();
        self.metrics.step(plan.decode_rows, plan.rows.len() - plan.decode_rows, now - begin);
        let left = match outcome {
            Ok(StepOutcome::Done) => self.apply(&plan, now),
            Ok(StepOutcome::Abandoned) => Vec::new(),
            Err(error) => {
                tracing::error!(event = "engine_failed", rows = plan.rows.len(), %error);
                self.batch.fail(&plan, &Finish::Failed(error.detail()))
            }
        };
        self.settle(left, now)
    }

    fn apply(&mut self, plan: &Plan, now: Instant) -> Vec<Left> {
        self.metrics.tokens.inc_by(plan.scored.len() as u64);
        let engine = &self.engine;
        self.batch.apply(plan, |row| engine.logits(row), &*self.tokenizer, &self.ends, now)
    }

    /// Frees the slots that were left, first in the engine, then in the table; the last event
    /// comes after both, so whoever sees it may use the slot at once.
    fn settle(&mut self, left: Vec<Left>, now: Instant) -> Result<(), EngineError> {
        let mut result = Ok(());
        for Left { slot, generation, finish } in left {
            let removed = self.engine.seq_remove(slot as u32, 0);
            self.runs.finish(generation.run());
            self.metrics.run_ended(&generation, &finish);
            generation.end(finish, now);
            result = result.and(removed);
        }
        result
    }

    fn give_up(&mut self, finish: &Finish) {
        let now = Instant::now();
        for Left { generation, finish, .. } in self.batch.fail_all(finish) {
            self.runs.finish(generation.run());
            self.metrics.run_ended(&generation, &finish);
            generation.end(finish, now);
        }
    }
}
