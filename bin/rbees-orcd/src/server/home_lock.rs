//! One orchestrator per state root.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::json;

use super::StartError;

/// Name of the lock in the state root.
const FILE_NAME: &str = "orchestrator.lock";

/// Held for life; the system lets go of it with the process, however it ends.
#[derive(Debug)]
pub(super) struct HomeLock {
    file: File,
}

impl HomeLock {
    /// Makes the state root where it is missing, and locks it.
    pub(super) fn take(home: &Path) -> Result<Self, StartError> {
        let failed = |error| StartError::Home { home: home.to_owned(), error };
        make_folder(home).map_err(failed)?;
        let path = home.join(FILE_NAME);
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                Err(StartError::InUse { home: home.to_owned(), owner: owner.trim().to_owned() })
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Says in the file who holds it. A failure to do so changes nothing about the lock.
    pub(super) fn describe(&self, url: &str) {
        let owner = json!({ "pid": std::process::id(), "url": url, "version": env!("CARGO_PKG_VERSION") });
        let mut file = &self.file;
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{owner}"));
        if let Err(error) = written {
            tracing::warn!(code = "LOCK_NOT_DESCRIBED", %error, "the lock file could not be written");
        }
    }
}

/// Makes the folder for its owner only; what lies in it are people's prompts.
fn make_folder(home: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(home)
}
