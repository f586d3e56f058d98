//! Taking back a job that could not be written down.

use api_types::JobId;

use crate::orchestrator::Orchestrator;
use crate::turn::Turn;

impl Orchestrator {
    /// Forgets a job whose first commit failed, as if it had never been handed in: its submitter is
    /// told so, its key is free again, what was booked for it is released, and the slot it was given
    /// goes to the next. Nothing is written, because nothing of it is on disk.
    pub(crate) fn withdraw(&mut self, job_id: JobId, turn: &mut Turn) {
        self.memory.withdraw(job_id);
        let Some(job) = self.take_out(job_id, turn) else { return };
        self.release_tokens(&job, 0, turn);
        if let Some(run) = job.run() {
            self.free_slot(&run, turn);
        }
    }
}
