//! What the disk and SQLite can do by themselves, in the same run: the floor under durable
//! submissions.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rusqlite::Connection;

use crate::machine;
use crate::stats::percentile;

/// Size of one write of the raw rows, in bytes.
const BLOCK: usize = 4096;
/// Size of a job in the SQLite row, in bytes.
const PAYLOAD: usize = 512;
/// Submitters that wait for their commit at once.
const OUTSTANDING: usize = 32;

/// The floor.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    /// Median of a 4 KiB overwrite made durable, in microseconds.
    pub overwrite_us: f64,
    /// Median of a 4 KiB append made durable, in microseconds.
    pub append_us: f64,
    /// Rows per second into SQLite with `synchronous=FULL`, 32 submitters, one commit for all that wait.
    pub sqlite_per_second: f64,
}

/// Measures each for `duration` in `folder`, on the CPU of the subjects.
///
/// # Errors
/// When the disk refuses.
pub fn measure(folder: &Path, duration: Duration) -> anyhow::Result<Floor> {
    let folder = folder.to_owned();
    let task = std::thread::spawn(move || {
        machine::pin(machine::SUBJECT_CPU)?;
        let overwrite_us = raw(&folder.join("overwrite.raw"), duration / 2, |_| 0)?;
        let append_us = raw(&folder.join("append.raw"), duration / 2, |count| count * BLOCK as u64)?;
        let sqlite_per_second = sqlite(&folder.join("floor.db"), duration)?;
        Ok(Floor { overwrite_us, append_us, sqlite_per_second })
    });
    task.join().map_err(|_| anyhow::anyhow!("the storage measurement ended early"))?
}

/// Writes a block and syncs, for `duration`; `place` says where block number n goes.
fn raw(path: &Path, duration: Duration, place: impl Fn(u64) -> u64) -> anyhow::Result<f64> {
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.write_all(&[0; BLOCK])?;
    file.sync_all()?;
    let (started, mut took) = (Instant::now(), Vec::new());
    while started.elapsed() < duration {
        let one = Instant::now();
        file.seek(SeekFrom::Start(place(took.len() as u64 + 1)))?;
        file.write_all(&[7; BLOCK])?;
        file.sync_data()?;
        took.push(u64::try_from(one.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(percentile(&mut took, 0.5) as f64 / 1e3)
}

/// One writer that commits what waits; each submitter waits for its commit before the next row.
fn sqlite(path: &Path, duration: Duration) -> anyhow::Result<f64> {
    let database = open(path)?;
    let (rows, inbox) = mpsc::channel::<mpsc::Sender<()>>();
    let submitters: Vec<_> = (0..OUTSTANDING).map(|_| submitter(rows.clone(), duration)).collect();
    drop(rows);
    let (started, mut count) = (Instant::now(), 0u64);
    while let Ok(first) = inbox.recv() {
        let waiting: Vec<mpsc::Sender<()>> = std::iter::once(first).chain(inbox.try_iter()).collect();
        commit(&database, count, waiting.len())?;
        count += waiting.len() as u64;
        for submitter in waiting {
            // A submitter whose time is up no longer listens.
            let _ = submitter.send(());
        }
    }
    let took = started.elapsed().as_secs_f64();
    submitters
        .into_iter()
        .try_for_each(std::thread::JoinHandle::join)
        .map_err(|_| anyhow::anyhow!("a submitter ended early"))?;
    Ok(count as f64 / took)
}

fn submitter(rows: mpsc::Sender<mpsc::Sender<()>>, duration: Duration) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let _ = machine::pin(machine::LOAD_CPU);
        let (done, committed) = mpsc::channel();
        let started = Instant::now();
        while started.elapsed() < duration && rows.send(done.clone()).is_ok() && committed.recv().is_ok() {}
    })
}

fn open(path: &Path) -> anyhow::Result<Connection> {
    let database = Connection::open(path)?;
    database.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
         CREATE TABLE job (id INTEGER PRIMARY KEY, state INTEGER, class INTEGER, request BLOB);
         CREATE INDEX ready ON job (class, id) WHERE state = 0;",
    )?;
    Ok(database)
}

fn commit(database: &Connection, first: u64, count: usize) -> anyhow::Result<()> {
    database.execute_batch("BEGIN IMMEDIATE")?;
    let mut insert = database.prepare_cached("INSERT INTO job VALUES (?1, 0, 0, ?2)")?;
    for index in 0..count as u64 {
        insert.execute((i64::try_from(first + index)?, &[b'x'; PAYLOAD][..]))?;
    }
    Ok(database.execute_batch("COMMIT")?)
}
