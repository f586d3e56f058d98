//! What gathers between two commits: rows to write, and everything that waits for them.

use std::collections::HashMap;

use api_types::JobId;
use orchestrator_core::Action;

use super::handle::Question;
use crate::store::Change;

/// Steps that share one commit, in the order in which they were decided.
#[derive(Default)]
pub(super) struct Round {
    /// What to write; an empty place is a row that a later one made superfluous.
    changes: Vec<Option<Change>>,
    /// Where the latest row of a job stands among them.
    rows: HashMap<JobId, usize>,
    /// What to do afterwards.
    pub acts: Vec<Act>,
}

/// One thing that waits for the commit.
#[expect(clippy::large_enum_variant, reason = "nearly all are actions; a box for each would cost more")]
pub(super) enum Act {
    /// The brain asked for it.
    Action(Action),
    /// Somebody wants to look.
    Question(Question),
}

impl Round {
    /// What a commit did not take.
    pub fn from_parts(changes: Vec<Change>, acts: Vec<Act>) -> Self {
        Self { changes: changes.into_iter().map(Some).collect(), rows: HashMap::new(), acts }
    }

    /// Whether nothing waits for a commit.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Steps and questions so far, at least.
    pub fn len(&self) -> usize {
        self.acts.len()
    }

    /// Adds a change. A row that changes again before it was written is written once: a short job
    /// needs no row of its own for having been placed or for running.
    pub fn write(&mut self, change: Change) {
        match change {
            Change::UpdateJob(row) => match self.row_of(row.job_id) {
                Some(Some(Change::InsertJob { row: before, .. } | Change::UpdateJob(before))) => {
                    *before = row
                }
                Some(_) | None => self.push_row(row.job_id, Change::UpdateJob(row)),
            },
            Change::InsertJob { row, request, published } => {
                self.push_row(row.job_id, Change::InsertJob { row, request, published });
            }
            Change::EndJob { row, stream } => {
                let superfluous =
                    self.row_of(row.job_id).filter(|kept| matches!(kept, Some(Change::UpdateJob(_))));
                if let Some(superfluous) = superfluous {
                    *superfluous = None;
                }
                self.rows.remove(&row.job_id);
                self.changes.push(Some(Change::EndJob { row, stream }));
            }
            other => self.changes.push(Some(other)),
        }
    }

    fn row_of(&mut self, job_id: JobId) -> Option<&mut Option<Change>> {
        self.rows.get(&job_id).and_then(|at| self.changes.get_mut(*at))
    }

    fn push_row(&mut self, job_id: JobId, change: Change) {
        self.rows.insert(job_id, self.changes.len());
        self.changes.push(Some(change));
    }

    /// What to write, and what to do then.
    pub fn into_parts(self) -> (Vec<Change>, Vec<Act>) {
        (self.changes.into_iter().flatten().collect(), self.acts)
    }
}
