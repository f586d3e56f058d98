//! The journal in its table: snapshots of the brain, each followed by what the brain was told.

use orchestrator_core::Time;
use orchestrator_core::journal::{Digest, Segment};
use rusqlite::{Connection, Row, Transaction};

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

/// Where a chapter begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The row of its snapshot.
    seq: i64,
    /// When.
    pub at: Time,
}

/// Begins a chapter. Its row notes how many bytes of journal went before it.
pub(super) fn begin(transaction: &Transaction<'_>, at: Time, snapshot: &[u8]) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "WITH last (seq, before) AS
                 (SELECT seq, bytes_before FROM journal WHERE hash IS NULL ORDER BY seq DESC LIMIT 1)
             INSERT INTO journal (at, bytes_before, body)
             SELECT ?1,
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
        .prepare_cached("SELECT seq, at, bytes_before FROM journal WHERE hash IS NULL ORDER BY seq DESC")?;
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

/// Where the chapters begin that hold anything since `since`, oldest first.
pub(super) fn starts(connection: &Connection, since: Time) -> Result<Vec<Start>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, at FROM journal
         WHERE hash IS NULL
         AND seq >= coalesce((SELECT max(seq) FROM journal WHERE hash IS NULL AND at <= ?1), 0)
         ORDER BY seq",
    )?;
    let start = |row: &Row<'_>| Ok(Start { seq: row.get(0)?, at: from_micros(row.get(1)?) });
    Ok(statement.query_map([micros(since)], start)?.collect::<Result<_, _>>()?)
}

/// The chapter that begins there; `None` when it has been deleted since.
pub(super) fn chapter(connection: &Connection, start: Start) -> Result<Option<Chapter>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT at, hash, placements, body FROM journal WHERE seq >= ?1 ORDER BY seq")?;
    let mut rows = statement.query([start.seq])?;
    let mut chapter: Option<Chapter> = None;
    while let Some(row) = rows.next()? {
        let at = from_micros(row.get(0)?);
        let (hash, placements): (Option<i64>, Option<i64>) = (row.get(1)?, row.get(2)?);
        match (hash.zip(placements), &mut chapter) {
            (None, None) => chapter = Some(Chapter { at, snapshot: row.get(3)?, segments: Vec::new() }),
            (Some((hash, placements)), Some(chapter)) => {
                let digest = Digest { hash: hash.cast_unsigned(), placements: placements.cast_unsigned() };
                chapter.segments.push(Segment { from: at, entries: row.get(3)?, digest });
            }
            // The next one begins; or, without its snapshot, a segment cannot be replayed.
            (None, Some(_)) | (Some(_), None) => break,
        }
    }
    Ok(chapter.filter(|chapter| chapter.at == start.at))
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

    #[test]
    fn a_snapshot_counts_the_bytes_before_it_and_no_placements() {
        let mut connection = database();
        write(&mut connection, 3);
        let mut snapshots = connection
            .prepare("SELECT placements, bytes_before FROM journal WHERE hash IS NULL ORDER BY seq")
            .expect("a statement");
        let counts = snapshots.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
        let counts: Vec<(Option<i64>, Option<i64>)> = counts.collect::<Result<_, _>>().expect("numbers");
        assert_eq!(counts, [(None, Some(0)), (None, Some(100)), (None, Some(200))]);
    }

    fn begun(connection: &Connection) -> Vec<u64> {
        starts(connection, Time(0)).expect("chapters").iter().map(|start| start.at.0).collect()
    }

    #[test]
    fn a_chapter_is_read_by_itself_and_is_gone_when_its_snapshot_is() {
        let mut connection = database();
        write(&mut connection, 3);
        let all = starts(&connection, Time(2_005)).expect("chapters");
        assert_eq!(
            all.iter().map(|start| start.at.0).collect::<Vec<_>>(),
            [2_000, 3_000],
            "2,005 lies in it"
        );
        let second = chapter(&connection, all[0]).expect("read").expect("there");
        assert_eq!((second.at, second.segments.len()), (Time(2_000), 9));
        assert!(second.segments.iter().all(|segment| (2_001..2_010).contains(&segment.from.0)));
        assert_eq!(prune(&connection, Time(3_500), 1_000, 11).expect("pruned"), 11, "and its first row");
        assert_eq!(chapter(&connection, all[0]).expect("read"), None);
        assert!(chapter(&connection, all[1]).expect("read").is_some());
    }

    #[test]
    fn what_is_too_old_or_too_much_goes_and_the_last_chapter_stays() {
        let mut connection = database();
        write(&mut connection, 6);
        assert_eq!(prune(&connection, Time(0), 1_000, 100).expect("pruned"), 0);
        assert_eq!(prune(&connection, Time(2_500), 1_000, 100).expect("pruned"), 10);
        assert_eq!(begun(&connection), [2_000, 3_000, 4_000, 5_000, 6_000], "2,500 lies in the second");
        assert_eq!(prune(&connection, Time(0), 250, 100).expect("pruned"), 20);
        assert_eq!(begun(&connection), [4_000, 5_000, 6_000]);
        assert_eq!(prune(&connection, Time(u64::MAX / 2_000), 0, 5).expect("pruned"), 5);
        assert_eq!(begun(&connection), [5_000, 6_000], "what lost its snapshot is no chapter any more");
        while prune(&connection, Time(u64::MAX / 2_000), 0, 5).expect("pruned") > 0 {}
        assert_eq!(begun(&connection), [6_000]);
    }
}
