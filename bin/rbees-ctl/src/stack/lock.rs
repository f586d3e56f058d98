//! `<home>/orchestrator.lock`: held by the orchestrator of this home for its whole life.

use std::fs::{File, TryLockError};
use std::path::Path;

use api_types::ErrorDetail;
use serde::Deserialize;

use crate::detail;

/// What the holder wrote into its lock.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Running {
    /// Its process.
    pub pid: u32,
    /// Where it listens.
    pub url: String,
    /// Its version.
    pub version: String,
}

/// What the lock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// No orchestrator runs on this home.
    Nobody,
    /// One is starting: it holds the lock and has not yet said where it listens.
    Starting,
    /// One runs.
    Running(Running),
}

/// Who holds the lock of `home`. Taking a shared lock for a moment is how one asks.
pub fn holder(home: &Path) -> Result<Holder, ErrorDetail> {
    let path = home.join("orchestrator.lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Holder::Nobody),
        Err(error) => return Err(detail::file("read", &path, &error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Holder::Nobody),
        Err(TryLockError::WouldBlock) => Ok(written(home).map_or(Holder::Starting, Holder::Running)),
        Err(TryLockError::Error(error)) => Err(detail::file("locked", &path, &error)),
    }
}

/// What stands in the lock, whoever wrote it and whether or not it is held.
pub fn written(home: &Path) -> Option<Running> {
    let text = std::fs::read(home.join("orchestrator.lock")).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_held_lock_names_somebody() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("orchestrator.lock");
        assert_eq!(holder(home.path()).expect("readable"), Holder::Nobody);
        std::fs::write(&path, r#"{"pid":7,"url":"http://127.0.0.1:1","version":"0"}"#).expect("written");
        assert_eq!(holder(home.path()).expect("readable"), Holder::Nobody);
        let held = File::open(&path).expect("there");
        held.lock().expect("locked");
        assert!(matches!(holder(home.path()).expect("readable"), Holder::Running(Running { pid: 7, .. })));
        std::fs::write(&path, "").expect("written");
        assert_eq!(holder(home.path()).expect("readable"), Holder::Starting);
    }
}
