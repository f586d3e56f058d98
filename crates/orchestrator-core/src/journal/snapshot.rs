//! The brain's whole state, to begin a journal with.

use crate::journal::Unreadable;
use crate::journal::hot::{from_cbor, to_cbor};
use crate::orchestrator::Orchestrator;

impl Orchestrator {
    /// The whole state (CBOR) but for secrets and the code of policies.
    ///
    /// # Errors
    /// When the state has no written form.
    pub fn snapshot(&self) -> Result<Vec<u8>, Unreadable> {
        to_cbor(self)
    }

    /// The brain as it was when [`Self::snapshot`] was taken. Policies that are scripts answer again
    /// after [`Self::use_scripts`].
    ///
    /// # Errors
    /// When the bytes are damaged or of another version.
    pub fn restore(snapshot: &[u8]) -> Result<Self, Unreadable> {
        let mut brain: Self = from_cbor(snapshot)?;
        brain.registry.reindex(&brain.settings, brain.seen);
        brain.memory.reindex();
        Ok(brain)
    }
}
