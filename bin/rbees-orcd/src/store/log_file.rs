//! The file of SQLite's write-ahead log: grown ahead, and cleared of what was erased.
//!
//! The file is never cut while the daemon works. It is filled with zeros at the start, so that a
//! commit overwrites blocks that the file has and its sync need not write down a new length; and
//! once all of the log is in the database, SQLite writes over it from its start.
//!
//! What it has not written over yet may be prompts that were erased from the tables. Those places
//! are told by their salts: a frame bears the two numbers of the header it was written under, and
//! the header gets new ones whenever the log starts over. A frame with other numbers than the
//! header's is read by nobody, now or after a crash, so it may be overwritten in any order and torn
//! at will. Only the writer could put a frame of its own there; it is kept out meanwhile, piece by
//! piece, by the lock that it takes itself.
//!
//! (Formats: <https://sqlite.org/fileformat2.html#the_write_ahead_log>.)

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;
use super::housekeeping::{Copied, log, passive};

/// Bytes before the first frame.
const HEADER: usize = 32;
/// Bytes of a frame before its page.
const FRAME_HEADER: usize = 24;
/// Where the salts lie in the header of the file, and in that of a frame.
const SALTS: usize = 16;
const FRAME_SALTS: usize = 8;
/// Bytes of a frame with a page of the usual size.
const FRAME: usize = FRAME_HEADER + 4_096;
/// Frames cleared while the writer is kept out once: a quarter of a MiB.
const PIECE: usize = 64;
/// The file is grown to so many frames: where the log starts over under load, and some more.
const FRAMES: usize = log::START_OVER as usize + 256;
/// The file takes this part of the free room at most.
const PART_OF_ROOM: u64 = 16;
/// Tries to have the log start over while commits go on.
const TRIES: u32 = 8;

/// The log of the database at `path`.
fn path_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Fills the empty log of the database at `path` with zeros, as far as `free` bytes of room allow.
///
/// # Errors
/// When the system refuses. The log works all the same.
pub(super) fn grow(path: &Path, free: u64) -> io::Result<()> {
    let most = usize::try_from(free / PART_OF_ROOM).unwrap_or(usize::MAX);
    let mut left = (HEADER + FRAMES * FRAME).min(most);
    let mut file = OpenOptions::new().append(true).open(path_of(path))?;
    let zeros = vec![0; PIECE * FRAME];
    while left > 0 {
        let piece = zeros.get(..left).unwrap_or(&zeros);
        file.write_all(piece)?;
        left -= piece.len();
    }
    file.sync_all()
}

/// Has the log of `connection` start over and clears what it held before. Says whether nothing is
/// left of what was in the log when this began; if not, somebody reads or writes, and it is to be
/// tried again.
///
/// # Errors
/// When SQLite or the system fails.
pub(super) fn clear(connection: &mut Connection, path: &Path) -> Result<bool, StoreError> {
    let page: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let path = path_of(path);
    let failed = |error| StoreError::File { path: path.clone(), error };
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
    let log = Log { file, frame: FRAME_HEADER + page as usize };
    let started_over = log.start_over(connection).map_err(|failure| failure.of(&path))?;
    if log.clear(connection).map_err(|failure| failure.of(&path))? {
        log.file.sync_data().map_err(failed)?;
    }
    Ok(started_over)
}

/// How it goes wrong.
enum Failure {
    Sqlite(StoreError),
    File(io::Error),
}

impl Failure {
    fn of(self, path: &Path) -> StoreError {
        match self {
            Self::Sqlite(error) => error,
            Self::File(error) => StoreError::File { path: path.to_owned(), error },
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Sqlite(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

struct Log {
    file: File,
    /// Bytes of a frame.
    frame: usize,
}

impl Log {
    /// Copies all of the log into the database and writes a note, which SQLite then puts at the
    /// log's start unless somebody still reads from it. Says whether it did.
    fn start_over(&self, connection: &Connection) -> Result<bool, Failure> {
        for _ in 0..TRIES {
            let Copied { pages, copied } = passive(connection)?;
            if copied < pages {
                continue;
            }
            let before = self.salts()?;
            connection.execute(
                "INSERT INTO meta (key, value) VALUES ('log_cleared', 1)
                 ON CONFLICT DO UPDATE SET value = value + 1",
                (),
            )?;
            if self.salts()? != before {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Clears every frame of an earlier log. Says whether there was any.
    fn clear(&self, connection: &mut Connection) -> Result<bool, Failure> {
        let mut piece = vec![0; PIECE * self.frame];
        let mut cleared = false;
        let mut offset = HEADER as u64;
        loop {
            let writer = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let read = self.read(&mut piece, offset)?;
            if let Some(stale) = piece.get_mut(..read).and_then(|frames| self.stale(frames).transpose()) {
                let (from, length) = stale?;
                self.file.write_all_at(&vec![0; length], offset + from as u64)?;
                cleared = true;
            }
            writer.rollback()?;
            if read < piece.len() {
                return Ok(cleared);
            }
            offset += read as u64;
        }
    }

    /// Where the frames after the last one of the present log lie among these, and their bytes;
    /// nothing when they hold nothing.
    fn stale(&self, frames: &[u8]) -> io::Result<Option<(usize, usize)>> {
        let salts = self.salts()?;
        let is_current = |frame: &[u8]| frame.get(FRAME_SALTS..FRAME_SALTS + salts.len()) == Some(&salts[..]);
        let current = frames.chunks(self.frame).rposition(is_current).map_or(0, |last| last + 1);
        let from = current * self.frame;
        let stale = frames.get(from..).unwrap_or_default();
        Ok(stale.iter().any(|byte| *byte != 0).then_some((from, stale.len())))
    }

    /// The salts of the header; zeros while the log was never written.
    fn salts(&self) -> io::Result<[u8; 8]> {
        let mut header = [0; HEADER];
        self.read(&mut header, 0)?;
        let mut salts = [0; 8];
        if let Some(found) = header.get(SALTS..SALTS + salts.len()) {
            salts.copy_from_slice(found);
        }
        Ok(salts)
    }

    /// Fills the buffer as far as the file goes; says how far that is.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERASED: &str = "canary-of-the-log";

    fn database(path: &Path) -> Connection {
        let connection = Connection::open(path).expect("opened");
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA secure_delete = ON; PRAGMA wal_autocheckpoint = 0;
                 CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER) STRICT;
                 CREATE TABLE texts (text TEXT) STRICT; PRAGMA wal_checkpoint(TRUNCATE);",
            )
            .expect("made");
        connection
    }

    fn holds(path: &Path, text: &str) -> bool {
        let bytes = std::fs::read(path_of(path)).expect("read");
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }

    fn write_and_erase(connection: &Connection) {
        connection.execute("INSERT INTO texts VALUES (?1)", [ERASED.repeat(10_000)]).expect("written");
        connection.execute("DELETE FROM texts", ()).expect("erased");
    }

    #[test]
    fn a_grown_log_is_overwritten_and_keeps_its_length() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("a.db");
        let connection = database(&path);
        grow(&path, u64::MAX).expect("grown");
        let length = || std::fs::metadata(path_of(&path)).expect("there").len();
        let grown = length();
        write_and_erase(&connection);
        assert_eq!((length(), grown), (grown, (HEADER + FRAMES * FRAME) as u64));
        let other = Connection::open(&path).expect("opened");
        let rows: i64 = other.query_row("SELECT count(*) FROM texts", [], |row| row.get(0)).expect("a count");
        assert_eq!(rows, 0);
    }

    #[test]
    fn little_room_is_not_used_up() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("a.db");
        let _connection = database(&path);
        grow(&path, 1 << 20).expect("grown");
        assert_eq!(std::fs::metadata(path_of(&path)).expect("there").len(), 1 << 16);
    }

    #[test]
    fn what_was_erased_leaves_the_log_and_what_is_kept_stays() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("a.db");
        let connection = database(&path);
        write_and_erase(&connection);
        connection.execute("INSERT INTO texts VALUES ('kept')", ()).expect("written");
        assert!(holds(&path, ERASED));
        let mut other = Connection::open(&path).expect("opened");
        assert!(clear(&mut other, &path).expect("cleared"));
        assert!(!holds(&path, ERASED));
        connection.execute("INSERT INTO texts VALUES ('later')", ()).expect("written");
        // As after a crash: a copy of the files, whose log is read anew.
        let copy = home.path().join("b.db");
        std::fs::copy(&path, &copy).expect("copied");
        std::fs::copy(path_of(&path), path_of(&copy)).expect("copied");
        let recovered = Connection::open(&copy).expect("opened");
        let texts: String = recovered
            .query_row("SELECT group_concat(text) FROM texts", [], |row| row.get(0))
            .expect("a text");
        assert_eq!(texts, "kept,later");
    }

    #[test]
    fn a_reader_keeps_the_log_and_sees_what_it_saw() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("a.db");
        let connection = database(&path);
        connection.execute("INSERT INTO texts VALUES (?1)", [ERASED]).expect("written");
        let reader = Connection::open(&path).expect("opened");
        let count = |reader: &Connection| -> i64 {
            reader.query_row("SELECT count(*) FROM texts", [], |row| row.get(0)).expect("a count")
        };
        reader.execute_batch("BEGIN").expect("begun");
        assert_eq!(count(&reader), 1);
        connection.execute("DELETE FROM texts", ()).expect("erased");
        let mut other = Connection::open(&path).expect("opened");
        assert!(!clear(&mut other, &path).expect("tried"), "the reader needs the old log");
        assert_eq!(count(&reader), 1);
        reader.execute_batch("COMMIT").expect("ended");
        assert!(clear(&mut other, &path).expect("cleared"));
        assert!(!holds(&path, ERASED));
        assert_eq!(count(&reader), 0);
    }
}
