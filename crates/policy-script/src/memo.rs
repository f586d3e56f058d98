//! Scores that were given before. A script is a function of its facts, so equal facts need no second
//! run; what the first run cost is charged again, so that limits hit the same answers either way.

use std::collections::HashMap;

use orchestrator_core::policy::Score;

/// Scores kept; beyond it all are forgotten and gathered anew.
const KEPT: usize = 4_096;
/// Keys longer than this are not kept.
const LONGEST_KEY: usize = 1_024;

/// Scores by the facts that the script reads, with the operations they took.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    scores: HashMap<Box<[u8]>, (Score, u64)>,
}

impl Memo {
    /// The score of these facts and its operations.
    pub fn get(&self, key: &[u8]) -> Option<(Score, u64)> {
        self.scores.get(key).copied()
    }

    /// Keeps a score.
    pub fn put(&mut self, key: &[u8], score: Score, operations: u64) {
        if key.len() > LONGEST_KEY {
            return;
        }
        if self.scores.len() >= KEPT {
            self.scores.clear();
        }
        self.scores.insert(key.into(), (score, operations));
    }
}
