//! The same inputs again: do they give the same decisions?

mod chapters;
mod recorded;
pub mod report;
mod what_if;

pub use self::chapters::{Chapters, Joined};
pub use self::recorded::Life;
pub use self::what_if::{Compared, WhatIf, what_if};

use crate::journal::{Digest, Entry, Input, Segment, Unreadable, entries};
use crate::orchestrator::Orchestrator;
use crate::step::Step;
use crate::time::Time;

/// What a replay found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Inputs that were handled again.
    pub inputs: u64,
    /// Placements that were made again.
    pub placements: u64,
    /// Where the decisions first differ from the recorded ones: the start of the first segment
    /// whose digest is another.
    pub differs_at: Option<Time>,
}

impl Replayed {
    /// Whether every decision was the recorded one.
    pub const fn is_identical(&self) -> bool {
        self.differs_at.is_none()
    }
}

/// Why a replay gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfinished {
    /// A piece of the record cannot be read.
    Unreadable(Unreadable),
    /// Nobody wants it any more.
    Stopped,
}

impl From<Unreadable> for Unfinished {
    fn from(unreadable: Unreadable) -> Self {
        Self::Unreadable(unreadable)
    }
}

/// Handles one recorded input. `None` for one that only says how the next is to be handled.
pub fn handle(brain: &mut Orchestrator, entry: Entry) -> Option<Step> {
    match entry.input {
        Input::Event(event) => Some(brain.handle_event(event, entry.at)),
        Input::Timeout => Some(brain.handle_timeout(entry.at)),
        Input::Cut(interrupted) => {
            brain.cut_next(interrupted);
            None
        }
    }
}

/// Runs the segments after a snapshot again and compares digests. `brain` is the state of the
/// snapshot. Stops at the first difference: what follows it follows from it.
///
/// # Errors
/// When an entry cannot be read.
pub fn verify<'a>(
    mut brain: Orchestrator,
    segments: impl IntoIterator<Item = &'a Segment>,
) -> Result<Replayed, Unreadable> {
    let mut found = Replayed::default();
    let mut digest = Digest::default();
    for segment in segments {
        for entry in entries(&segment.entries) {
            let Some(step) = handle(&mut brain, entry?) else { continue };
            digest.add(&step);
            found.inputs += 1;
        }
        found.placements = digest.placements;
        if digest != segment.digest {
            found.differs_at = Some(segment.from);
            break;
        }
    }
    Ok(found)
}
