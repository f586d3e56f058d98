//! The part of a completion that another worker has made: its tokens are taken again, not drawn.

use std::collections::VecDeque;
use std::vec;

use api_types::event::TaskEvent;
use api_types::sampling::FieldProblem;
use api_types::worker::{Continuation, EXACT_REPLAY, Seam};
use engine::Token;

/// Tokens that are still to be taken, and the `seam` events that are still to be logged.
///
/// Each token is taken as if it had been drawn: after the same row, with the same scores asked for.
/// So the engine goes every step that the other worker's went, and is where that one was.
#[derive(Debug, Default)]
pub struct Replay {
    left: vec::IntoIter<Token>,
    count: u32,
    seams: VecDeque<Seam>,
}

impl Replay {
    /// All of a continuation, checked by [`check`].
    pub fn new(continuation: Continuation) -> Self {
        let count = u32::try_from(continuation.tokens.len()).unwrap_or(u32::MAX);
        Self { count, left: continuation.tokens.into_iter(), seams: continuation.seams.into() }
    }

    /// How many tokens there were in all; the first token of our own has this index.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The next token to take.
    pub fn next_token(&mut self) -> Option<Token> {
        self.left.next()
    }

    /// Whether all of them were taken.
    pub fn is_done(&self) -> bool {
        self.left.len() == 0
    }

    /// All tokens at once when there are too many for a step each; else none.
    pub fn take_if_long(&mut self) -> vec::IntoIter<Token> {
        if self.left.len() > EXACT_REPLAY { std::mem::take(&mut self.left) } else { vec::IntoIter::default() }
    }

    /// The next `seam` event that stands before the token with the index `before`.
    pub fn next_seam(&mut self, before: u32) -> Option<TaskEvent> {
        let seam = self.seams.pop_front_if(|seam| seam.at <= before)?;
        let Seam { at: _, from_worker, to_worker, i, exact } = seam;
        Some(TaskEvent::Seam { from_worker, to_worker, i, exact })
    }
}

/// What can be said of a continuation without a model.
///
/// # Errors
/// The field that is wrong.
pub fn check(continuation: &Continuation, seed: Option<u64>) -> Result<(), FieldProblem> {
    if continuation.tokens.is_empty() {
        let message = "continuation has no tokens; leave it out to begin from the start";
        return Err(FieldProblem::new("continuation.tokens", "empty", message));
    }
    if seed.is_none() {
        let message = "a continuation needs the seed of the run it goes on with";
        return Err(FieldProblem::new("seed", "required", message));
    }
    Ok(())
}

/// Refuses a token that the model does not have.
///
/// # Errors
/// The place of the first such token.
pub fn check_vocabulary(continuation: &Continuation, vocab: u32) -> Result<(), FieldProblem> {
    let Some(at) = continuation.tokens.iter().position(|token| *token >= vocab) else { return Ok(()) };
    let message = format!("the token is not in the vocabulary; allowed is 0 to {}", vocab.saturating_sub(1));
    Err(FieldProblem::new(format!("continuation.tokens.{at}"), "out_of_range", message))
}
