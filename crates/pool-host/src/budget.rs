//! `pool.toml`: what the operator lets workers take of the machine's memory.

use api_types::{ErrorCode, ErrorDetail};
use pool_core::fit::MemoryBudget;

use crate::files;
use crate::home::Home;

const MAX_BYTES: u64 = 1 << 16;

/// The budget of a home; without a file, none.
///
/// # Errors
/// `INVALID_CONFIG` when the file cannot be understood, with what is allowed.
pub(crate) fn read(home: &Home) -> Result<MemoryBudget, ErrorDetail> {
    let path = home.config();
    let Some(bytes) = files::read(&path, MAX_BYTES)? else { return Ok(MemoryBudget::default()) };
    let refuse = |reason: String| {
        let message = format!("{}: {}", path.display(), reason.trim_end());
        ErrorDetail::new(ErrorCode::InvalidConfig, message)
            .with_hint("allowed are ram_budget_bytes = N and gpu_budget_bytes = N, whole numbers of bytes")
    };
    let text = std::str::from_utf8(&bytes).map_err(|error| refuse(error.to_string()))?;
    toml::from_str(text).map_err(|error| refuse(error.to_string()))
}
