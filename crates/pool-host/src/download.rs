//! One file over HTTP: resumed, hashed, and only then called by its name.
//!
//! The bytes lie in a part file beside the target. A note beside it says which version of the
//! remote file they are of, so that a resumed request can be refused by a changed server.

pub(crate) mod attempt;
mod part;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api_types::pool::Progress;
use api_types::{ErrorCode, ErrorDetail};

use crate::OnProgress;
use crate::errors::{blocking, internal, storage};
use crate::files::{self, Lock, beside};

use attempt::Failure;
pub(crate) use attempt::plain;
use part::Part;

/// Left free on a disk after a download.
const KEEP_FREE: u64 = 64 << 20;
/// Attempts without a single new byte before a source is given up.
const FRUITLESS_ATTEMPTS: u32 = 4;
/// The longest time a server may make us wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Times of a download.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Silence after which a connection counts as lost.
    pub stall: Duration,
    /// First pause between attempts; it doubles up to 30 times as much.
    pub backoff: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { stall: Duration::from_secs(30), backoff: Duration::from_millis(500) }
    }
}

/// What is to be fetched.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where it lies.
    pub url: String,
    /// A token for that host; never sent to another one.
    pub bearer: Option<String>,
    /// Its name, for people.
    pub name: String,
    /// Its bytes, where known.
    pub size: Option<u64>,
    /// Its hash, where known.
    pub sha256: Option<String>,
    /// Where it is to lie.
    pub to: PathBuf,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes.
    pub size: u64,
    /// Their hash.
    pub sha256: String,
}

/// Fetches files.
#[derive(Clone)]
pub struct Downloader {
    client: reqwest::Client,
    limits: Limits,
    progress: OnProgress,
}

impl Downloader {
    /// A downloader; proxies of the environment are honoured, ring is the TLS provider.
    ///
    /// # Errors
    /// `INTERNAL` when the platform's TLS roots cannot be read.
    pub fn new(limits: Limits, progress: OnProgress) -> Result<Self, ErrorDetail> {
        let client = crate::http::client().build().map_err(internal)?;
        Ok(Self { client, limits, progress })
    }

    /// The client, for questions about what to fetch.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// The times that hold.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Tells something to whoever watches.
    pub fn tell(&self, progress: Progress) {
        (self.progress)(progress);
    }

    /// Tells people something.
    pub fn note(&self, message: impl Into<String>) {
        self.tell(Progress::Note { message: message.into() });
    }

    /// Where progress goes.
    pub fn progress(&self) -> &OnProgress {
        &self.progress
    }

    /// Fetches a file, or finds it there already; one process does it, others wait for it.
    ///
    /// # Errors
    /// `STORAGE_FULL` before the first byte where the size is known, `CHECKSUM_MISMATCH`,
    /// `GATED_MODEL`, `MODEL_NOT_FOUND`, `DOWNLOAD_FAILED`; except after a mismatch, the part
    /// that came is kept and the next call goes on with it.
    pub async fn fetch(&self, wanted: &Wanted) -> Result<Fetched, ErrorDetail> {
        let _alone = self.alone(&wanted.to, &wanted.name).await?;
        if let Some(there) = self.already(wanted).await? {
            return Ok(there);
        }
        let mut part = Part::open(&wanted.to, &wanted.name, self.progress.clone()).await?;
        check_space(&wanted.to, wanted.size, part.len())?;
        let mut resumed = part.len() > 0;
        loop {
            self.complete(wanted, &mut part).await?;
            let sha256 = part.sha256();
            if wanted.sha256.as_ref().is_none_or(|expected| *expected == sha256) {
                let size = part.len();
                part.finish(&wanted.to)?;
                return Ok(Fetched { size, sha256 });
            }
            part.reset()?;
            if !resumed {
                part.discard()?;
                return Err(mismatch(&wanted.name, wanted.sha256.as_deref().unwrap_or_default(), &sha256));
            }
            resumed = false;
            self.note(format!("{}: the resumed bytes have the wrong hash; fetching it anew", wanted.name));
        }
    }

    /// Waits until no other process fetches this file.
    pub async fn alone(&self, to: &Path, name: &str) -> Result<Lock, ErrorDetail> {
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder).map_err(|error| storage("made", folder, &error))?;
        }
        let path = beside(to, "rbees-lock");
        let mut told = false;
        loop {
            if let Some(lock) = Lock::try_take(&path)? {
                return Ok(lock);
            }
            if !told {
                self.note(format!("{name}: another process is fetching it; waiting for that"));
                told = true;
            }
            let done_bytes = part::path_of(to).metadata().map_or(0, |found| found.len());
            self.tell(Progress::Download { file: name.to_owned(), done_bytes, total_bytes: None });
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The file, when it is there and right; a wrong one is removed.
    async fn already(&self, wanted: &Wanted) -> Result<Option<Fetched>, ErrorDetail> {
        let Ok(found) = wanted.to.metadata() else { return Ok(None) };
        if wanted.size.is_none_or(|size| size == found.len()) {
            let (path, name, progress) = (wanted.to.clone(), wanted.name.clone(), self.progress.clone());
            let there = blocking(move || hash_file(&path, &name, &progress)).await?;
            if wanted.sha256.as_ref().is_none_or(|expected| *expected == there.sha256) {
                return Ok(Some(there));
            }
        }
        files::remove(&wanted.to)?;
        Ok(None)
    }

    /// Attempts until the whole file is in the part.
    async fn complete(&self, wanted: &Wanted, part: &mut Part) -> Result<(), ErrorDetail> {
        let mut fruitless = 0;
        loop {
            let before = part.len();
            let (reason, after) = match self.attempt(wanted, part).await {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again { reason, after }) => (reason, after),
            };
            fruitless = if part.len() > before { 1 } else { fruitless + 1 };
            if fruitless >= FRUITLESS_ATTEMPTS {
                return Err(gave_up(&wanted.name, &reason, part.len()));
            }
            let pause = after.unwrap_or_else(|| self.limits.backoff * 2u32.pow(fruitless.min(5) - 1));
            self.note(format!("{}: {reason}; trying again", wanted.name));
            tokio::time::sleep(pause.min(MAX_RETRY_AFTER)).await;
        }
    }
}

/// Size and hash of a file, with progress.
///
/// # Errors
/// `STORAGE_FAILED`.
pub fn hash_file(path: &Path, name: &str, progress: &OnProgress) -> Result<Fetched, ErrorDetail> {
    let mut hash = part::Hashing::default();
    let total_bytes = path.metadata().map_err(|error| storage("read", path, &error))?.len();
    hash.take_file(path, u64::MAX, |done_bytes| {
        progress(Progress::Verify { file: name.to_owned(), done_bytes, total_bytes });
    })?;
    Ok(Fetched { size: hash.len(), sha256: hash.hex() })
}

/// Refuses before the first byte when the disk has no room.
///
/// # Errors
/// `STORAGE_FULL` with both counts.
pub fn check_space(to: &Path, size: Option<u64>, there: u64) -> Result<(), ErrorDetail> {
    let (Some(size), Some(folder)) = (size, to.parent()) else { return Ok(()) };
    let needed = size.saturating_sub(there).saturating_add(KEEP_FREE);
    let free = files::free_bytes(folder)?;
    if free >= needed {
        return Ok(());
    }
    let message = format!("the download needs {needed} bytes and {} has {free} free", folder.display());
    Err(ErrorDetail::new(ErrorCode::StorageFull, message)
        .with_details(serde_json::json!({ "needed_bytes": needed, "free_bytes": free }))
        .with_hint("free space, for example with rbees-pool models delete ID, or use another --home"))
}

pub(crate) fn mismatch(name: &str, expected: &str, found: &str) -> ErrorDetail {
    let message = format!("{name} has the sha256 {found}, but {expected} was asked for");
    ErrorDetail::new(ErrorCode::ChecksumMismatch, message)
        .with_details(serde_json::json!({ "expected": expected, "found": found }))
        .with_hint("the source holds another file; use another source, or correct the sha256")
}

fn gave_up(name: &str, reason: &str, kept: u64) -> ErrorDetail {
    let message = format!("{name} could not be fetched: {reason}; {kept} bytes are kept");
    ErrorDetail::new(ErrorCode::DownloadFailed, message)
        .with_hint("run the same command again; it goes on where it stopped")
}

/// A progress sink that drops everything, for callers without a watcher.
pub fn silent() -> OnProgress {
    Arc::new(|_| {})
}
