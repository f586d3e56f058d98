//! The bytes that came so far, and their hash.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api_types::ErrorDetail;
use api_types::pool::Progress;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::OnProgress;
use crate::errors::{blocking, internal, storage};
use crate::files::{self, beside, sync_folder_of};

const TELL_EVERY: Duration = Duration::from_millis(200);

/// Which version of the remote file the bytes are of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) etag: Option<String>,
    pub(super) total: Option<u64>,
}

/// A file that is being written.
pub(super) struct Part {
    path: PathBuf,
    file: File,
    hash: Hashing,
    version: Version,
    name: String,
    progress: OnProgress,
    told: Option<Instant>,
}

pub(super) fn path_of(to: &Path) -> PathBuf {
    beside(to, "rbees-part")
}

impl Part {
    /// Opens the part of a target; what an earlier process left is hashed and kept.
    pub(super) async fn open(to: &Path, name: &str, progress: OnProgress) -> Result<Self, ErrorDetail> {
        let (path, name) = (path_of(to), name.to_owned());
        blocking(move || Self::open_now(path, name, progress)).await
    }

    fn open_now(path: PathBuf, name: String, progress: OnProgress) -> Result<Self, ErrorDetail> {
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = opened.map_err(|error| storage("opened", &path, &error))?;
        let noted = files::read(&version_path(&path), 64 << 10)?;
        let version: Option<Version> = noted.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut part = Self {
            path,
            file,
            hash: Hashing::default(),
            version: Version::default(),
            name,
            progress,
            told: None,
        };
        match version {
            Some(version) => {
                part.version = version;
                let path = part.path.clone();
                part.hash.take_file(&path, u64::MAX, |_| {})?;
                part.seek_to_end()?;
            }
            None => part.reset()?,
        }
        Ok(part)
    }

    pub(super) fn len(&self) -> u64 {
        self.hash.len()
    }

    pub(super) fn version(&self) -> &Version {
        &self.version
    }

    pub(super) fn sha256(&self) -> String {
        self.hash.hex()
    }

    /// Begins anew with a version of the remote file.
    pub(super) fn begin(&mut self, version: Version) -> Result<(), ErrorDetail> {
        self.reset()?;
        let bytes = serde_json::to_vec(&version).map_err(internal)?;
        files::replace(&version_path(&self.path), &bytes)?;
        self.version = version;
        Ok(())
    }

    /// Drops all bytes.
    pub(super) fn reset(&mut self) -> Result<(), ErrorDetail> {
        self.hash = Hashing::default();
        self.file.set_len(0).map_err(|error| storage("emptied", &self.path, &error))?;
        self.seek_to_end()
    }

    fn seek_to_end(&mut self) -> Result<(), ErrorDetail> {
        let at = std::io::SeekFrom::Start(self.hash.len());
        self.file.seek(at).map(|_| ()).map_err(|error| storage("read", &self.path, &error))
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), ErrorDetail> {
        let written = self.file.write_all(bytes);
        if let Err(error) = written {
            // A partly written portion is cut off, so that the hash and the file agree.
            let _ = self.file.set_len(self.hash.len());
            return Err(storage("written", &self.path, &error));
        }
        self.hash.take(bytes);
        self.tell();
        Ok(())
    }

    fn tell(&mut self) {
        let whole = self.version.total == Some(self.len());
        if whole || self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            let (file, done_bytes) = (self.name.clone(), self.len());
            (self.progress)(Progress::Download { file, done_bytes, total_bytes: self.version.total });
        }
    }

    /// Gives the bytes their name, durably.
    pub(super) fn finish(self, to: &Path) -> Result<(), ErrorDetail> {
        let done = self
            .file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.path, to))
            .and_then(|()| sync_folder_of(to));
        done.map_err(|error| storage("written", to, &error))?;
        files::remove(&version_path(&self.path))
    }

    /// Removes everything.
    pub(super) fn discard(self) -> Result<(), ErrorDetail> {
        files::remove(&version_path(&self.path))?;
        files::remove(&self.path)
    }
}

fn version_path(part: &Path) -> PathBuf {
    beside(part, "json")
}

/// A running hash and the count of what went into it.
#[derive(Default)]
pub(super) struct Hashing {
    hash: Sha256,
    len: u64,
}

impl Hashing {
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn hex(&self) -> String {
        self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Takes a file's bytes, up to `limit` of them.
    pub(super) fn take_file(
        &mut self,
        path: &Path,
        limit: u64,
        tell: impl Fn(u64),
    ) -> Result<(), ErrorDetail> {
        let file = File::open(path).map_err(|error| storage("read", path, &error))?;
        let (mut file, mut buffer) = (file.take(limit), vec![0; 1 << 20]);
        let mut told = Instant::now();
        loop {
            let count = file.read(&mut buffer).map_err(|error| storage("read", path, &error))?;
            self.take(buffer.get(..count).unwrap_or_default());
            if count == 0 || told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tell(self.len);
            }
            if count == 0 {
                return Ok(());
            }
        }
    }
}
