//! One run inside the decode loop: what was fed, what comes next, when it is over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::event::{RunEnd, RunMetrics, StopReason, TaskEvent};
use api_types::sampling::Sampling;
use api_types::{CorrelationId, ErrorCode, ErrorDetail, PrefixChain};
use engine::constraint::Constraint;
use engine::sampler::Sampler;
use engine::{Token, Tokenizer};

use crate::form;
use crate::prefix_cache::Prompt;
use crate::replay::Replay;
use crate::runs::Run;
use crate::text::{Settled, TokenText};

/// Progress is shown to live readers this often while tokens come.
const METRICS_EVERY: Duration = Duration::from_secs(1);

/// A run that is ready to begin: its prompt is tokens, its slot is taken.
#[derive(Debug)]
pub struct Job {
    /// The run and its log.
    pub run: Arc<Run>,
    /// At least one token, and fewer than the context holds.
    pub prompt: Vec<Token>,
    /// Checked settings.
    pub sampling: Sampling,
    /// Most tokens to generate; prompt and completion fit the context.
    pub max_tokens: u32,
    /// Seed of the draws.
    pub seed: u64,
    /// When the run has taken too long.
    pub deadline: Option<Instant>,
    /// When `/execute` arrived.
    pub accepted: Instant,
    /// Ties its log lines to the request that asked for it.
    pub correlation_id: Option<CorrelationId>,
    /// Whether its `token` events bear the ids of tokens.
    pub token_ids: bool,
    /// The orchestrator's hashes of the prompt, by which the worker reports what it keeps.
    pub prefix: Option<PrefixChain>,
    /// What another worker has done of it; empty for a run from the start.
    pub replay: Replay,
    /// The form that the text must have, where it must: it has taken the tokens of `replay` already.
    pub constraint: Option<Box<Constraint>>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// By itself or by request.
    Stopped(StopReason),
    /// By a failure.
    Failed(ErrorDetail),
}

/// A job at work in a slot.
#[derive(Debug)]
pub struct Generation {
    job: Job,
    sampler: Sampler,
    text: TokenText,
    /// The prompt and the tokens of the completion so far.
    sequence: Vec<Token>,
    /// How many of `sequence` are processed in chunks: the prompt, and a long continuation.
    feed: usize,
    /// How many of those the engine held before the run began.
    cached: usize,
    /// How many of those the engine holds.
    fed: usize,
    /// Tokens after those that the engine has processed, one a step.
    decoded: usize,
    /// Tokens of the completion so far.
    out: u32,
    /// Ids of the tokens that are not logged yet, where they are asked for.
    unlogged: VecDeque<Token>,
    /// The last token, while the engine has not processed it.
    next: Option<Token>,
    /// Set when the continuation was all there is to say.
    over: Option<Finish>,
    first_token: Option<Instant>,
    shown: Option<Instant>,
}

impl Generation {
    /// A generation that has done nothing yet.
    pub fn new(job: Job, tokenizer: &dyn Tokenizer) -> Self {
        let sampler = Sampler::new(&job.sampling, job.seed, &job.prompt);
        let text = TokenText::new(&job.sampling.stop);
        let mut generation = Self {
            sampler,
            text,
            sequence: job.prompt.clone(),
            feed: job.prompt.len(),
            cached: 0,
            fed: 0,
            decoded: 0,
            out: 0,
            unlogged: VecDeque::new(),
            next: None,
            over: None,
            first_token: None,
            shown: None,
            job,
        };
        generation.take_long_replay(tokenizer);
        generation
    }

    /// A continuation that is too long for a step per token is processed like a prompt.
    fn take_long_replay(&mut self, tokenizer: &dyn Tokenizer) {
        for token in self.job.replay.take_if_long() {
            if self.over.is_none() {
                self.sampler.accept(token);
                self.over = self.take(token, tokenizer);
            }
        }
        self.over = self.unless_complete(self.over.clone());
        self.feed = self.sequence.len();
        self.next = None;
    }

    /// Its run.
    pub fn run(&self) -> &Arc<Run> {
        &self.job.run
    }

    /// What the engine is to process before anything is decoded, from the start of the sequence.
    pub fn feed(&self) -> &[Token] {
        self.sequence.get(..self.feed).unwrap_or_default()
    }

    /// Whether what the engine holds of other runs may serve this one. A continuation is to take the
    /// same steps as the run it goes on with, as far as that is in our hands.
    pub fn may_reuse(&self) -> bool {
        self.job.replay.count() == 0
    }

    /// The first `count` tokens of the feed are in the sequence already.
    pub fn resume_after(&mut self, count: usize) {
        self.cached = count;
        self.fed = count;
    }

    /// Tokens that need not be processed.
    pub fn tokens_cached(&self) -> usize {
        self.cached
    }

    /// How the orchestrator calls its prompt.
    pub fn prompt(&self) -> Prompt {
        Prompt { chain: self.job.prefix.clone().unwrap_or_default(), tokens: self.job.prompt.len() }
    }

    /// What the sequence holds now.
    pub fn held(&self) -> &[Token] {
        self.sequence.get(..self.fed + self.decoded).unwrap_or_default()
    }

    /// Tokens that are still to be processed before anything is decoded.
    pub fn unfed(&self) -> &[Token] {
        self.sequence.get(self.fed..self.feed).unwrap_or_default()
    }

    /// Where the next token goes in its sequence.
    pub fn position(&self) -> u32 {
        u32::try_from(self.fed + self.decoded).unwrap_or(u32::MAX)
    }

    /// The token to decode next, unless the prompt is still being processed.
    pub fn next_token(&self) -> Option<Token> {
        self.next
    }

    /// Whether it must wait because its log is full.
    pub fn is_paused(&self) -> bool {
        self.job.run.log.is_full()
    }

    /// Why it must end now although the model would go on.
    pub fn interruption(&self, now: Instant) -> Option<Finish> {
        if self.job.run.is_cancelled() {
            return Some(Finish::Stopped(StopReason::Cancelled));
        }
        if self.over.is_some() {
            return self.over.clone();
        }
        let late = self.job.deadline.is_some_and(|deadline| now >= deadline);
        late.then(|| {
            let message = format!("the run used up its time limit after {} tokens", self.out);
            Finish::Failed(ErrorDetail::new(ErrorCode::DeadlineExceeded, message))
        })
    }

    /// The engine has processed `count` more prompt tokens.
    pub fn prompt_processed(&mut self, count: usize, now: Instant) {
        self.fed += count;
        if !self.unfed().is_empty() {
            self.show(now);
        }
    }

    /// Chooses the next token from the scores after its last row, and logs it. As long as there are
    /// tokens from elsewhere, the next one is taken from them.
    pub fn advance(
        &mut self,
        logits: &[f32],
        tokenizer: &dyn Tokenizer,
        ends: &[Token],
        now: Instant,
    ) -> Option<Finish> {
        self.decoded += usize::from(self.next.take().is_some());
        if let Some(token) = self.job.replay.next_token() {
            self.sampler.accept(token);
            let finish = self.take(token, tokenizer);
            self.show_now_and_then(now);
            return self.unless_complete(finish);
        }
        let token = match self.draw(logits) {
            Ok(token) => token,
            Err(error) => return Some(Finish::Failed(error)),
        };
        self.first_token.get_or_insert(now);
        if ends.binary_search(&token).is_ok() {
            return Some(Finish::Stopped(StopReason::Eos));
        }
        let follows = self.job.constraint.as_mut().map_or(Ok(()), |constraint| constraint.accept(token));
        let broken = follows.err().map(|error| Finish::Failed(form::failure(&error)));
        let finish = self.take(token, tokenizer).or(broken);
        if finish.is_none() {
            self.show_now_and_then(now);
        }
        self.unless_complete(finish)
    }

    fn draw(&mut self, logits: &[f32]) -> Result<Token, ErrorDetail> {
        let allowed = self.job.constraint.as_mut().map(|constraint| constraint.allowed()).transpose();
        let allowed = allowed.map_err(|error| form::failure(&error))?;
        self.sampler.next_of(logits, allowed).ok_or_else(|| {
            ErrorDetail::new(ErrorCode::EngineFailed, "the engine gave no scores that could be drawn from")
        })
    }

    /// How the run ends, or not, after a token: a text that has its form and after which nothing may
    /// follow is at its end, even where it has used up its tokens with that. A stop string comes first.
    fn unless_complete(&self, finish: Option<Finish>) -> Option<Finish> {
        let complete = self.job.constraint.as_ref().is_some_and(|constraint| constraint.is_complete());
        if !complete || !self.job.replay.is_done() || finish == Some(Finish::Stopped(StopReason::Stop)) {
            return finish;
        }
        Some(Finish::Stopped(StopReason::Eos))
    }

    fn take(&mut self, token: Token, tokenizer: &dyn Tokenizer) -> Option<Finish> {
        let mut piece = Vec::new();
        tokenizer.piece(token, &mut piece);
        self.sequence.push(token);
        if self.job.token_ids {
            self.unlogged.push_back(token);
        }
        let (settled, stopped) = self.text.push(self.out, &piece);
        self.log(settled);
        self.out += 1;
        if stopped {
            return Some(Finish::Stopped(StopReason::Stop));
        }
        if self.out >= self.job.max_tokens {
            return Some(Finish::Stopped(StopReason::MaxTokens));
        }
        self.next = Some(token);
        None
    }

    /// Logs what is left and the last event.
    pub fn end(mut self, finish: Finish, now: Instant) {
        let rest = self.text.finish();
        self.log(rest);
        self.log_seams(u32::MAX);
        self.tell_operator(&finish);
        let event = match finish {
            Finish::Stopped(stop_reason) => TaskEvent::End(self.figures(stop_reason, now)),
            Finish::Failed(error) => failure(error),
        };
        self.job.run.log.append(&event);
    }

    fn tell_operator(&self, finish: &Finish) {
        let outcome = match finish {
            Finish::Stopped(reason) => format!("{reason:?}"),
            Finish::Failed(error) => error.code.to_string(),
        };
        tracing::info!(
            event = "run_ended",
            job_id = self.job.run.job_id,
            attempt = self.job.run.attempt.0,
            correlation_id = self.job.correlation_id.as_ref().map(CorrelationId::as_str),
            tokens_in = self.job.prompt.len(),
            tokens_out = self.out,
            outcome,
        );
    }

    /// Tokens of the completion so far, those from elsewhere included.
    pub fn tokens_out(&self) -> u32 {
        self.out
    }

    /// From `/execute` to the first token, once there is one.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        Some(self.first_token?.saturating_duration_since(self.job.accepted))
    }

    /// Logs what readers do not have from elsewhere.
    fn log(&mut self, settled: Vec<Settled>) {
        for token in settled {
            let k = self.unlogged.pop_front();
            if token.index >= self.job.replay.count() {
                self.log_seams(token.index);
                self.job.run.log.append(&TaskEvent::Token { t: token.text, i: token.index, k });
            }
        }
    }

    fn log_seams(&mut self, before: u32) {
        while let Some(seam) = self.job.replay.next_seam(before) {
            self.job.run.log.append(&seam);
        }
    }

    fn show_now_and_then(&mut self, now: Instant) {
        let shown = *self.shown.get_or_insert(now);
        if now.saturating_duration_since(shown) >= METRICS_EVERY {
            self.show(now);
        }
    }

    fn show(&mut self, now: Instant) {
        self.shown = Some(now);
        let decoding =
            self.first_token.map_or(0.0, |first| now.saturating_duration_since(first).as_secs_f32());
        let own = self.out.saturating_sub(self.job.replay.count());
        let rate = if decoding > 0.0 { own.saturating_sub(1) as f32 / decoding } else { 0.0 };
        let prefilling = self.first_token.is_none();
        let known = self.job.prompt.len() as u32 + self.job.replay.count();
        self.job.run.log.show(&TaskEvent::Metrics(RunMetrics {
            prompt_tokens_done: prefilling.then_some(self.position()),
            prompt_tokens: prefilling.then_some(known),
            tokens_out: self.out,
            tokens_per_second: rate,
        }));
    }

    fn figures(&self, stop_reason: StopReason, now: Instant) -> RunEnd {
        let first = self.first_token.unwrap_or(now);
        RunEnd {
            tokens_in: self.job.prompt.len() as u32,
            tokens_out: self.out,
            queue_time_ms: 0,
            prefill_time_ms: first.saturating_duration_since(self.job.accepted).as_millis() as u64,
            decode_time_ms: now.saturating_duration_since(first).as_millis() as u64,
            stop_reason,
            seed: Some(self.job.seed),
            tokens_cached: Some(self.cached as u32),
        }
    }
}

/// The `error` event of a failure.
pub fn failure(error: ErrorDetail) -> TaskEvent {
    TaskEvent::Error {
        code: error.code,
        message: error.message,
        retriable: error.retriable,
        details: error.details,
    }
}
