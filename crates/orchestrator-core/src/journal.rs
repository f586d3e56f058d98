//! What the brain was told and when, written small, so that any run can be had again.
//!
//! The brain is a function of its inputs: from a snapshot and the entries after it the same
//! decisions follow, to the byte. Of prompts and completions it holds counts and keyed hashes; the
//! names that clients give (of models, sessions, workers, correlation ids) stand in it as they are.
//! It never holds a secret.

mod digest;
mod entry;
mod hot;
mod recorder;
mod snapshot;

pub use self::digest::Digest;
pub use self::entry::{Entry, Input, entries};
pub use self::recorder::{Recorder, Segment};

/// Why a piece of a journal cannot be read: it is damaged, or of another version of rbees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable(String);

impl Unreadable {
    fn new(reason: impl ToString) -> Self {
        Self(reason.to_string())
    }
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the journal cannot be read: {}", self.0)
    }
}

impl std::error::Error for Unreadable {}
