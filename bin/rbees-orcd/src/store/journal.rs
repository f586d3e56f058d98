//! The journal in its table: snapshots of the brain, each followed by what the brain was told.

use orchestrator_core::Time;
use orchestrator_core::journal::{Digest, Segment};
use rusqlite::{Connection, Transaction};

use super::StoreError;
use super::record::{from_micros, micros};

/// A snapshot and what followed it, up to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chapter {
    /// When it begins.
    pub at: Time,
    /// The brain's state then.
    pub snapshot: Vec<u8>,
    /// What it was told, in order.
    pub segments: Vec<Segment>,
}

/// Begins a chapter.
pub(super) fn begin(transaction: &Transaction<'_>, at: Time, snapshot: &[u8]) -> Result<(), StoreError> {
    transaction
        .prepare_cached("INSERT INTO journal (at, hash, placements, body) VALUES (?1, NULL, 0, ?2)")?
        .execute((micros(at), snapshot))?;
    Ok(())
}

/// Adds to the chapter.
pub(super) fn append(transaction: &Transaction<'_>, segment: &Segment) -> Result<(), StoreError> {
    transaction
        .prepare_cached("INSERT INTO journal (at, hash, placements, body) VALUES (?1, ?2, ?3, ?4)")?
        .execute((
        micros(segment.from),
        segment.digest.hash.cast_signed(),
        segment.digest.placements.cast_signed(),
        &segment.entries,
    ))?;
    Ok(())
}

/// Deletes the oldest chapters: those that ended before `before`, and as many more as leave the
/// rest above `most_bytes`. The last chapter always stays. Says how many rows there were.
pub(super) fn prune(connection: &Connection, before: Time, most_bytes: u64) -> Result<usize, StoreError> {
    let mut chapters = connection.prepare_cached(
        "SELECT first.seq, first.at, (SELECT coalesce(sum(length(body)), 0) FROM journal WHERE seq >= first.seq)
         FROM journal AS first WHERE hash IS NULL ORDER BY seq DESC",
    )?;
    let mut rows = chapters.query([])?;
    let mut keep_from: Option<i64> = None;
    while let Some(row) = rows.next()? {
        let (seq, at, bytes): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let fits = u64::try_from(bytes).unwrap_or(u64::MAX) <= most_bytes;
        if keep_from.is_some() && !fits {
            break;
        }
        keep_from = Some(seq);
        // What began before the time is the oldest chapter with anything after it.
        if from_micros(at) <= before {
            break;
        }
    }
    drop(rows);
    let Some(seq) = keep_from else { return Ok(0) };
    Ok(connection.execute("DELETE FROM journal WHERE seq < ?1", [seq])?)
}

/// The chapters that hold anything since `since`, oldest first.
pub(super) fn chapters(connection: &Connection, since: Time) -> Result<Vec<Chapter>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT at, hash, placements, body FROM journal
         WHERE seq >= coalesce((SELECT max(seq) FROM journal WHERE hash IS NULL AND at <= ?1), 0)
         ORDER BY seq",
    )?;
    let mut rows = statement.query([micros(since)])?;
    let mut chapters: Vec<Chapter> = Vec::new();
    while let Some(row) = rows.next()? {
        let (at, body) = (from_micros(row.get(0)?), row.get(3)?);
        match (row.get::<_, Option<i64>>(1)?, chapters.last_mut()) {
            (None, _) => chapters.push(Chapter { at, snapshot: body, segments: Vec::new() }),
            (Some(hash), Some(chapter)) => {
                let digest =
                    Digest { hash: hash.cast_unsigned(), placements: row.get::<_, i64>(2)?.cast_unsigned() };
                chapter.segments.push(Segment { from: at, entries: body, digest });
            }
            // Without its snapshot a segment cannot be replayed.
            (Some(_), None) => {}
        }
    }
    Ok(chapters)
}
