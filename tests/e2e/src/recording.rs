//! What an orchestrator wrote down: the journal of what its brain was told, and what was decided.
//!
//! The journal is given to a brain again, outside of any orchestrator, and every decision that comes
//! of it can be held against the one in the database.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use api_types::{Attempt, JobId};
use orchestrator_core::journal::{Digest, Entry, Segment, entries};
use orchestrator_core::{Action, Orchestrator, Step, Time, Write, replay};
use policy_script::Language;
use rusqlite::{Connection, OpenFlags};
use uuid::Uuid;

/// Decisions by job and try, each as the bytes of its JSON.
pub type Decisions = BTreeMap<(JobId, Attempt), String>;

/// A snapshot of the brain and what it was told after it.
struct Chapter {
    snapshot: Vec<u8>,
    segments: Vec<Segment>,
}

/// All that an orchestrator wrote of its decisions.
pub struct Recording {
    chapters: Vec<Chapter>,
    /// The decisions as they stand in the database.
    pub stored: Decisions,
}

/// What came of a replay.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Inputs that were handled again.
    pub inputs: u64,
    /// Runs that were handed out again, in order, each as `(job, try, worker)`.
    pub placements: Vec<(JobId, Attempt, String)>,
    /// What was decided again.
    pub decisions: Decisions,
    /// Pieces of the journal whose digest of all decisions differs from the recorded one.
    pub digests_differ: u64,
}

impl Recording {
    /// Reads the database of an orchestrator, which may be in use.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(database: &Path) -> anyhow::Result<Self> {
        let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .with_context(|| format!("opening {}", database.display()))?;
        Ok(Self { chapters: read_chapters(&connection)?, stored: read_decisions(&connection)? })
    }

    /// Chapters of the journal: one for each life of the orchestrator, at least.
    pub const fn chapters(&self) -> usize {
        self.chapters.len()
    }

    /// Tells brains everything again, but for what `leave_out` says.
    ///
    /// # Errors
    /// When a piece cannot be read.
    pub fn replay(&self, leave_out: impl Fn(&Entry) -> bool) -> anyhow::Result<Replayed> {
        let mut replayed = Replayed::default();
        for chapter in &self.chapters {
            let mut brain = Orchestrator::restore(&chapter.snapshot)?;
            brain.use_scripts(Arc::new(Language::default()));
            let mut digest = Digest::default();
            for segment in &chapter.segments {
                for entry in entries(&segment.entries) {
                    let entry = entry?;
                    if leave_out(&entry) {
                        continue;
                    }
                    let Some(step) = replay::handle(&mut brain, entry) else { continue };
                    digest.add(&step);
                    replayed.note(&step)?;
                }
                replayed.digests_differ += u64::from(digest != segment.digest);
            }
        }
        Ok(replayed)
    }
}

impl Replayed {
    fn note(&mut self, step: &Step) -> anyhow::Result<()> {
        self.inputs += 1;
        for write in &step.writes {
            if let Write::PutDecision { job_id, attempt, decision } = write {
                self.decisions.insert((*job_id, *attempt), serde_json::to_string(decision)?);
            }
        }
        for action in &step.actions {
            if let Action::OpenStream(open) = action {
                let worker = open.run.worker_id.to_string();
                self.placements.push((open.run.job_id, open.run.attempt, worker));
            }
        }
        Ok(())
    }
}

fn read_chapters(connection: &Connection) -> anyhow::Result<Vec<Chapter>> {
    let mut chapters: Vec<Chapter> = Vec::new();
    let mut statement = connection.prepare("SELECT at, hash, placements, body FROM journal ORDER BY seq")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let at: i64 = row.get(0)?;
        let (hash, placements): (Option<i64>, Option<i64>) = (row.get(1)?, row.get(2)?);
        let body: Vec<u8> = row.get(3)?;
        let Some((hash, placements)) = hash.zip(placements) else {
            chapters.push(Chapter { snapshot: body, segments: Vec::new() });
            continue;
        };
        let digest = Digest { hash: hash.cast_unsigned(), placements: placements.cast_unsigned() };
        let from = Time(at.cast_unsigned() / 1_000);
        let chapter = chapters.last_mut().context("a journal begins with a snapshot")?;
        chapter.segments.push(Segment { from, entries: body, digest });
    }
    Ok(chapters)
}

fn read_decisions(connection: &Connection) -> anyhow::Result<Decisions> {
    let mut statement =
        connection.prepare("SELECT job_id, attempt, decision FROM decisions JOIN jobs USING (number)")?;
    let decision = |row: &rusqlite::Row<'_>| {
        let (id, attempt): ([u8; 16], u32) = (row.get(0)?, row.get(1)?);
        Ok(((JobId::from_uuid(Uuid::from_bytes(id)), Attempt(attempt)), row.get(2)?))
    };
    Ok(statement.query_map([], decision)?.collect::<Result<_, _>>()?)
}
