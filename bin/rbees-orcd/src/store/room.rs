//! Whether the disk takes more. New jobs are refused while there is little room, so that those
//! which were taken in can still end.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::StoreError;
use super::error::Class;

/// Below so many free bytes no new job is taken in, or below a sixteenth of a small disk.
const KEPT_FREE: u64 = 32 << 20;
/// Written and removed to see whether a disk that refused something takes something again.
const PROBE: &str = "room.probe";
const PROBE_BYTES: usize = 64 * 1024;

/// The room on the disk of the state root.
#[derive(Debug)]
pub struct Room {
    home: PathBuf,
    low: AtomicBool,
    refused: AtomicBool,
}

impl Room {
    pub(super) fn new(home: PathBuf) -> Self {
        Self { home, low: AtomicBool::new(false), refused: AtomicBool::new(false) }
    }

    /// Whether no new job may be written down.
    pub fn is_full(&self) -> bool {
        self.low.load(Ordering::Relaxed) || self.refused.load(Ordering::Relaxed)
    }

    /// The disk refused a write for want of room.
    pub fn refuse(&self) {
        self.set_refused(true);
    }

    fn set_refused(&self, refused: bool) {
        if self.refused.swap(refused, Ordering::Relaxed) != refused {
            tell(refused);
        }
    }

    pub(super) fn refused_by(&self, error: &StoreError) {
        if error.class() == Class::Full {
            self.refuse();
        }
    }

    /// Asks the system how much is free, and after a refusal whether it takes something again.
    pub(super) fn look(&self) {
        if self.refused.load(Ordering::Relaxed) && self.takes_something() {
            self.set_refused(false);
        }
        // Without an answer the next write tells.
        let Some((free, all)) = self.bytes() else { return };
        let low = free < KEPT_FREE.min(all / 16);
        if self.low.swap(low, Ordering::Relaxed) != low {
            tell(low);
        }
    }

    /// Bytes that are free for us, and all bytes of the disk; nothing when the system does not tell.
    fn bytes(&self) -> Option<(u64, u64)> {
        let figures = rustix::fs::statvfs(&self.home).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(figures.f_frsize);
        Some((bytes(figures.f_bavail), bytes(figures.f_blocks)))
    }

    /// Bytes that are free for us.
    pub(super) fn free(&self) -> u64 {
        self.bytes().map_or(0, |(free, _)| free)
    }

    fn takes_something(&self) -> bool {
        let path = self.home.join(PROBE);
        let written = std::fs::File::create(&path).and_then(|mut file| {
            file.write_all(&[0; PROBE_BYTES])?;
            file.sync_all()
        });
        let _ = std::fs::remove_file(path);
        written.is_ok()
    }
}

fn tell(full: bool) {
    if full {
        tracing::error!(
            code = "STORAGE_FULL",
            "the disk of the state root is full: new jobs are refused, jobs that run go on"
        );
    } else {
        tracing::info!(code = "STORAGE_HAS_ROOM", "the disk of the state root has room again");
    }
}
