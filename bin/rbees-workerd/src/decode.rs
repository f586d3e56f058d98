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
use crate::prefix_cache::PrefixCache;
use crate::runs::Runs;
use crate::state::Retained;

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
    cache: PrefixCache,
    retained: Arc<Retained>,
    runs: Arc<Runs>,
    metrics: Arc<Metrics>,
    abandon: Arc<AtomicBool>,
}

impl Decoder {
    /// A decoder for as many runs at once as the engine has sequences, which puts up to
    /// `cache_bytes` of ended ones aside and tells `retained` of them. `abandon` makes it give up
    /// everything.
    pub fn new(
        engine: Box<dyn Engine>,
        cache_bytes: u64,
        retained: Arc<Retained>,
        runs: Arc<Runs>,
        metrics: Arc<Metrics>,
        abandon: Arc<AtomicBool>,
    ) -> Self {
        let tokenizer = engine.tokenizer();
        let ends = engine.info().end_tokens.clone();
        let caps = engine.caps();
        let slots = caps.max_seqs as usize;
        let cache = PrefixCache::new(slots, cache_bytes, caps.partial_remove);
        Self { tokenizer, ends, batch: Batch::new(slots), cache, retained, engine, runs, metrics, abandon }
    }

    /// Takes jobs and steps until told to quit.
    ///
    /// # Errors
    /// When the engine is in a state that no run can be trusted to; every run has then failed.
    pub fn run(&mut self, commands: &Receiver<Command>) -> Result<(), EngineError> {
        loop {
            match self.turn(commands) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.give_up(&Finish::Failed(error.detail()));
                    return Err(error);
                }
            }
        }
        let stopping =
            ErrorDetail::new(ErrorCode::ShuttingDown, "the worker was stopped before the run ended");
        self.give_up(&Finish::Failed(stopping));
        Ok(())
    }

    /// Takes what has arrived and makes one step. `false` means quit.
    fn turn(&mut self, commands: &Receiver<Command>) -> Result<bool, EngineError> {
        if !self.take_commands(commands)? || self.abandon.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let now = Instant::now();
        let interrupted = self.batch.interrupt(now);
        self.settle(interrupted, now)?;
        self.step()?;
        Ok(true)
    }

    /// Takes what has arrived; waits when there is nothing else to do. `false` means quit.
    fn take_commands(&mut self, commands: &Receiver<Command>) -> Result<bool, EngineError> {
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
                Ok(Command::Start(job)) => self.begin(*job)?,
                Ok(Command::Quit) | Err(RecvTimeoutError::Disconnected) => return Ok(false),
                Err(RecvTimeoutError::Timeout) => return Ok(true),
            }
        }
    }

    fn begin(&mut self, job: Job) -> Result<(), EngineError> {
        self.metrics.prefills.inc();
        self.metrics.prompt_tokens.inc_by(job.prompt.len() as u64);
        let mut generation = Generation::new(job, &*self.tokenizer);
        let batch = &self.batch;
        let (feed, reuse) = (generation.feed(), generation.may_reuse());
        let place = self.cache.begin(&mut *self.engine, feed, reuse, |slot| batch.held(slot));
        let place = match place {
            Ok(place) => place,
            Err(error) => {
                self.refuse(generation, error.detail());
                return Err(error);
            }
        };
        let joined = match place {
            Some(place) => {
                generation.resume_after(place.reused);
                self.metrics.prompt_tokens_cached.inc_by(place.reused as u64);
                self.batch.join(place.slot, generation)
            }
            None => Err(Box::new(generation)),
        };
        self.retained.set(self.cache.retained());
        if let Err(generation) = joined {
            // The table of runs hands out as many slots as there are here.
            let error = ErrorDetail::new(ErrorCode::Internal, "there was no slot for an admitted run");
            self.refuse(*generation, error);
        }
        Ok(())
    }

    fn refuse(&self, generation: Generation, error: ErrorDetail) {
        self.runs.finish(generation.run());
        generation.end(Finish::Failed(error), Instant::now());
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

    /// Frees the slots that were left, first in the cache, then in the table; the last event
    /// comes after both, so whoever sees it may use the slot at once.
    fn settle(&mut self, left: Vec<Left>, now: Instant) -> Result<(), EngineError> {
        let mut result = Ok(());
        let any = !left.is_empty();
        for Left { slot, generation, finish } in left {
            let removed = self.release(slot, &generation, &finish);
            self.runs.finish(generation.run());
            self.metrics.run_ended(&generation, &finish);
            generation.end(finish, now);
            result = result.and(removed);
        }
        if any {
            self.retained.set(self.cache.retained());
        }
        result
    }

    /// What a run that did not fail leaves in its sequence may serve others.
    fn release(&mut self, slot: usize, generation: &Generation, finish: &Finish) -> Result<(), EngineError> {
        match finish {
            Finish::Stopped(_) => {
                self.cache.end(slot, generation.held().to_vec(), generation.prompt());
                Ok(())
            }
            Finish::Failed(_) => self.cache.discard(&mut *self.engine, slot),
        }
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
