//! Taking back a job that could not be written down.

use api_types::JobId;

use crate::job::Job;
use crate::orchestrator::Orchestrator;
use crate::turn::Turn;

impl Orchestrator {
    /// Forgets a job whose first commit failed, as if it had never been handed in: its submitter is
    /// told so, its key is free again, and the slot it was given goes to the next. Nothing is
    /// written, because nothing of it is on disk.
    pub(crate) fn withdraw(&mut self, job_id: JobId, turn: &mut Turn) {
        let run = self.jobs.get(&job_id).and_then(Job::run);
        self.take_out(job_id, turn);
        self.memory.withdraw(job_id);
        if let Some(run) = run {
            self.free_slot(&run, turn);
        }
    }
}
