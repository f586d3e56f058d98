//! Files that survive a crash at any instant: locked, written beside, synced, renamed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use api_types::{ErrorCode, ErrorDetail};

use crate::errors::storage;

/// Holds a lock between processes until dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing the file is what releases the lock")] File);

impl Lock {
    /// Waits for the lock of this path.
    ///
    /// # Errors
    /// `STORAGE_FAILED`.
    pub fn take(path: &Path) -> Result<Self, ErrorDetail> {
        let file = lock_file(path)?;
        file.lock().map_err(|error| storage("locked", path, &error))?;
        Ok(Self(file))
    }

    /// Takes the lock of this path when nobody holds it.
    ///
    /// # Errors
    /// `STORAGE_FAILED`.
    pub fn try_take(path: &Path) -> Result<Option<Self>, ErrorDetail> {
        let file = lock_file(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(storage("locked", path, &error)),
        }
    }
}

fn lock_file(path: &Path) -> Result<File, ErrorDetail> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    opened.map_err(|error| storage("opened", path, &error))
}

/// Replaces a file as a whole: readers see the old bytes or the new ones, also after a power cut.
///
/// # Errors
/// `STORAGE_FULL` or `STORAGE_FAILED`; the old bytes are still there.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), ErrorDetail> {
    let temporary = beside(path, &format!("{}.tmp", std::process::id()));
    let written = write_synced(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| sync_folder_of(path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        storage("written", path, &error)
    })
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the names in a file's folder survive a power cut.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// A path with something behind its file name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

/// A file's bytes, when it is there.
///
/// # Errors
/// `STORAGE_FAILED`, also for a file of more than `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, ErrorDetail> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(storage("opened", path, &error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| storage("read", path, &error))?;
    if bytes.len() as u64 > limit {
        let message = format!("{} is larger than {limit} bytes", path.display());
        return Err(ErrorDetail::new(ErrorCode::StorageFailed, message));
    }
    Ok(Some(bytes))
}

/// Removes a file; one that is not there is fine.
///
/// # Errors
/// `STORAGE_FAILED`.
pub fn remove(path: &Path) -> Result<(), ErrorDetail> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(storage("removed", path, &error)),
        _ => Ok(()),
    }
}

/// Bytes free in a folder, for this user.
///
/// # Errors
/// `STORAGE_FAILED`.
pub fn free_bytes(folder: &Path) -> Result<u64, ErrorDetail> {
    let found = rustix::fs::statvfs(folder).map_err(|error| storage("measured", folder, &error.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}
