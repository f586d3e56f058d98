//! What a started worker presents to its orchestrator.

use std::fmt;

/// A token of the orchestrator's API, which never prints itself.
#[derive(Clone, PartialEq, Eq)]
pub struct OrchestratorToken(String);

impl OrchestratorToken {
    /// Keeps `text` as a token.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for OrchestratorToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OrchestratorToken(…)")
    }
}
