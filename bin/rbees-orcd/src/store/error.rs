//! How a database fails, and what each kind of failure asks for.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode as Code;
use rusqlite::ffi;

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's own report.
    #[error("the database failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A file beside the database could not be made, read or erased.
    #[error("{path} could not be used: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// A change of the tables failed and was rolled back.
    #[error("the migration {name} failed and was rolled back: {error}")]
    Migration {
        /// Which one.
        name: &'static str,
        /// SQLite's words.
        error: rusqlite::Error,
    },
    /// The file was written by a newer rbees.
    #[error(
        "the database is at version {found} and this rbees-orcd knows versions up to {known}: \
         it was written by a newer rbees. Start that version, or move the file away"
    )]
    Newer {
        /// The file's version.
        found: i64,
        /// The newest this build knows.
        known: usize,
    },
    /// The file is some other program's.
    #[error("the file is a database of another program; move it away or choose another --home")]
    Foreign,
    /// Something does not hold what rbees writes.
    #[error("the database is damaged in {column}: {reason}")]
    Damaged {
        /// Table and column.
        column: &'static str,
        /// What is odd.
        reason: String,
    },
    /// SQLite was asked for a setting and did not take it.
    #[error("the database did not take the setting {0}; is its folder on a network share?")]
    Setting(&'static str),
    /// The SQLite that was linked is too old.
    #[error("SQLite {found} is linked; 3.51.3 or newer is needed, older ones can lose committed data")]
    OldSqlite {
        /// Its version.
        found: &'static str,
    },
}

/// What a failure means for whoever met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// No room on the disk. Nothing was written; it may pass without us.
    Full,
    /// Another program holds the database. Nothing was written; it may pass without us.
    Busy,
    /// The folder or the file may not be written to.
    NotWritable,
    /// The file does not hold what it should, or is not ours.
    Unusable,
    /// The disk said that a write or a sync failed: what is on it is not known any more, so nothing
    /// may be tried again in this process.
    Broken,
}

impl StoreError {
    /// What it means.
    pub fn class(&self) -> Class {
        match self {
            Self::Sqlite(error) | Self::Migration { error, .. } => class_of_sqlite(error),
            Self::File { error, .. } => class_of_file(error.kind()),
            Self::Newer { .. } | Self::Foreign | Self::Damaged { .. } => Class::Unusable,
            Self::Setting(_) | Self::OldSqlite { .. } => Class::Broken,
        }
    }
}

fn class_of_sqlite(error: &rusqlite::Error) -> Class {
    let rusqlite::Error::SqliteFailure(failure, _) = error else { return Class::Unusable };
    match failure.code {
        Code::DiskFull => Class::Full,
        // The index of the log could not grow; no data is written through it.
        Code::SystemIoFailure if failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE => Class::Full,
        Code::DatabaseBusy | Code::DatabaseLocked => Class::Busy,
        Code::ReadOnly
        | Code::CannotOpen
        | Code::PermissionDenied
        | Code::AuthorizationForStatementDenied => Class::NotWritable,
        Code::DatabaseCorrupt | Code::NotADatabase => Class::Unusable,
        _ => Class::Broken,
    }
}

fn class_of_file(kind: io::ErrorKind) -> Class {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::Full,
        // A row speaks of it.
        io::ErrorKind::NotFound => Class::Unusable,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Class::NotWritable,
        _ => Class::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sqlite(extended: i32) -> Class {
        StoreError::from(rusqlite::Error::SqliteFailure(ffi::Error::new(extended), None)).class()
    }

    #[test]
    fn each_failure_has_its_class() {
        assert_eq!(sqlite(ffi::SQLITE_FULL), Class::Full);
        assert_eq!(sqlite(ffi::SQLITE_IOERR_SHMSIZE), Class::Full);
        assert_eq!(sqlite(ffi::SQLITE_BUSY), Class::Busy);
        assert_eq!(sqlite(ffi::SQLITE_IOERR_FSYNC), Class::Broken);
        assert_eq!(sqlite(ffi::SQLITE_IOERR_WRITE), Class::Broken);
        assert_eq!(sqlite(ffi::SQLITE_READONLY), Class::NotWritable);
        assert_eq!(sqlite(ffi::SQLITE_CANTOPEN), Class::NotWritable);
        assert_eq!(sqlite(ffi::SQLITE_CORRUPT), Class::Unusable);
        assert_eq!(sqlite(ffi::SQLITE_NOTADB), Class::Unusable);
        let full = StoreError::File { path: "a".into(), error: io::ErrorKind::StorageFull.into() };
        assert_eq!(full.class(), Class::Full);
    }
}
