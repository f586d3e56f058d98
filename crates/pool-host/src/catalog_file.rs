//! The catalog on the disk: read by everybody, edited under a lock.

use std::path::Path;

use api_types::{ErrorCode, ErrorDetail};
use pool_core::{Catalog, catalog::VERSION};

use crate::errors::internal;
use crate::files::{self, Lock, beside};
use crate::home::Home;

const MAX_BYTES: u64 = 32 << 20;

/// The catalog; a fresh home has the shipped one.
///
/// # Errors
/// `INVALID_CONFIG` with file and line when it cannot be understood; it is never overwritten then.
pub fn load(home: &Home) -> Result<Catalog, ErrorDetail> {
    let path = home.catalog();
    match files::read(&path, MAX_BYTES)? {
        Some(bytes) => parse(&path, &bytes),
        None => Ok(Catalog::shipped()),
    }
}

/// Reads the catalog, edits it and writes it, alone among all processes.
///
/// # Errors
/// What the edit says (nothing is written then), `INVALID_CONFIG`, `STORAGE_FAILED`.
pub fn edit<T>(
    home: &Home,
    edit: impl FnOnce(&mut Catalog) -> Result<T, ErrorDetail>,
) -> Result<T, ErrorDetail> {
    let path = home.catalog();
    let _lock = Lock::take(&beside(&path, "lock"))?;
    let mut catalog = load(home)?;
    let before = catalog.clone();
    let outcome = edit(&mut catalog)?;
    if catalog != before || !path.exists() {
        let mut bytes = serde_json::to_vec_pretty(&catalog).map_err(internal)?;
        bytes.push(b'\n');
        files::replace(&path, &bytes)?;
    }
    Ok(outcome)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Catalog, ErrorDetail> {
    let refuse = |line: usize, reason: String| {
        let message = format!("{}:{line}: the catalog cannot be read: {reason}", path.display());
        ErrorDetail::new(ErrorCode::InvalidConfig, message)
            .with_hint(format!("mend it, or move it aside to begin anew: mv {0} {0}.old", path.display()))
    };
    let catalog: Catalog =
        serde_json::from_slice(bytes).map_err(|error| refuse(error.line(), error.to_string()))?;
    if catalog.version != VERSION {
        let reason = format!("its version is {}; this build reads {VERSION}", catalog.version);
        return Err(refuse(1, reason));
    }
    Ok(catalog)
}
