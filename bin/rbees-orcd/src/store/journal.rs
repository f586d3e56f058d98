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

/// Begins a chapter. Its row notes how many bytes of journal went before it.
pub(super) fn begin(transaction: &Transaction<'_>, at: Time, snapshot: &[u8]) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "WITH last (seq, before) AS
                 (SELECT seq, placements FROM journal WHERE hash IS NULL ORDER BY seq DESC LIMIT 1)
             INSERT INTO journal (at, hash, placements, body)
             SELECT ?1, NULL,
                 coalesce((SELECT before FROM last), 0)
                 + coalesce((SELECT sum(length(body)) FROM journal WHERE seq >= (SELECT seq FROM last)), 0),
                 ?2",
        )?
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

/// Deletes up to `limit` rows of the oldest chapters: those that ended before `before`, and as many
/// more as leave about `most_bytes`. The last chapter always stays. Says how many rows there were.
pub(super) fn prune(
    connection: &Connection,
    before: Time,
    most_bytes: u64,
    limit: u32,
) -> Result<usize, StoreError> {
    let mut chapters = connection
        .prepare_cached("SELECT seq, at, placements FROM journal WHERE hash IS NULL ORDER BY seq DESC")?;
    let mut rows = chapters.query([])?;
    let mut keep_from: Option<(i64, i64)> = None;
    while let Some(row) = rows.next()? {
        let (seq, at, written): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let newest = keep_from.map_or(written, |(_, newest)| newest);
        if u64::try_from(newest - written).unwrap_or(u64::MAX) > most_bytes {
            break;
        }
        keep_from = Some((seq, newest));
        // What began before the time is the oldest chapter with anything after it.
        if from_micros(at) <= before {
            break;
        }
    }
    drop(rows);
    let Some((seq, _)) = keep_from else { return Ok(0) };
    let mut old = connection.prepare_cached(
        "DELETE FROM journal WHERE seq IN (SELECT seq FROM journal WHERE seq < ?1 ORDER BY seq LIMIT ?2)",
    )?;
    Ok(old.execute((seq, limit))?)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().expect("a database");
        let tables = include_str!("migrations/0001_jobs_workers_pools.sql");
        connection.execute_batch(tables).expect("the tables");
        connection
    }

    /// A chapter a second from 1 on, each with a snapshot of 10 bytes and 9 segments of 10.
    fn write(connection: &mut Connection, chapters: u64) {
        for chapter in 1..=chapters {
            let transaction = connection.transaction().expect("begun");
            begin(&transaction, Time(chapter * 1_000), &[0; 10]).expect("a snapshot");
            for n in 1..10 {
                let segment = Segment {
                    from: Time(chapter * 1_000 + n),
                    entries: vec![0; 10],
                    digest: Digest { hash: n, placements: n },
                };
                append(&transaction, &segment).expect("a segment");
            }
            transaction.commit().expect("written");
        }
    }

    fn starts(connection: &Connection) -> Vec<u64> {
        chapters(connection, Time(0)).expect("chapters").iter().map(|chapter| chapter.at.0).collect()
    }

    #[test]
    fn what_is_too_old_or_too_much_goes_and_the_last_chapter_stays() {
        let mut connection = database();
        write(&mut connection, 6);
        assert_eq!(prune(&connection, Time(0), 1_000, 100).expect("pruned"), 0);
        assert_eq!(prune(&connection, Time(2_500), 1_000, 100).expect("pruned"), 10);
        assert_eq!(starts(&connection), [2_000, 3_000, 4_000, 5_000, 6_000], "2,500 lies in the second");
        assert_eq!(prune(&connection, Time(0), 250, 100).expect("pruned"), 20);
        assert_eq!(starts(&connection), [4_000, 5_000, 6_000]);
        assert_eq!(prune(&connection, Time(u64::MAX / 2_000), 0, 5).expect("pruned"), 5);
        assert_eq!(starts(&connection), [5_000, 6_000], "what lost its snapshot is no chapter any more");
        while prune(&connection, Time(u64::MAX / 2_000), 0, 5).expect("pruned") > 0 {}
        assert_eq!(starts(&connection), [6_000]);
    }
}
