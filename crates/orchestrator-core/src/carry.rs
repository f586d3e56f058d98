//! What goes on of a job whose worker was lost after its first token: the tokens in its log, and
//! the seams that tell where it changed hands.

use api_types::task::TaskStatus;
use api_types::worker::{EXACT_REPLAY, Seam, WorkerFacts};
use api_types::{ErrorCode, ErrorDetail, WorkerId};
use serde::{Deserialize, Serialize};

use crate::event::{Kept, RunKey};
use crate::job::{FIRST_EVENT_ID, Job};
use crate::orchestrator::Orchestrator;
use crate::turn::Turn;

/// What earlier attempts of a job have sent to its readers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Events in the job's log; the first of the next attempt has this id.
    pub events: u64,
    /// Tokens among them.
    pub tokens: u32,
    /// Tokens beyond these that a reader may have had. They are made again, under the ids they
    /// had, and the next seam stands behind them.
    pub unsure: u32,
    /// Who made the last of them.
    pub from_worker: WorkerId,
    /// The build and device of that worker, as [`build_of`] told when it got the job; `None` when an
    /// older orchestrator handed it out.
    pub build: Option<String>,
    /// Seams in the log.
    pub seams_logged: u32,
    /// Seams that the next attempt is to log; the last is its own once it is handed out.
    pub seams: Vec<Seam>,
}

impl Carried {
    /// What is carried on after another run has put `kept` into the log.
    fn after(before: Option<&Self>, run: &RunKey, kept: &Kept, build: Option<String>) -> Self {
        let logged_before = before.map_or(0, |before| before.seams_logged);
        let newly_logged = usize::try_from(kept.seams.saturating_sub(logged_before)).unwrap_or(usize::MAX);
        let seams = before.map(|before| before.seams.as_slice()).unwrap_or_default();
        Self {
            events: kept.events,
            tokens: kept.tokens,
            unsure: kept.unsure,
            from_worker: run.worker_id.clone(),
            build,
            seams_logged: kept.seams,
            seams: seams.iter().skip(newly_logged).cloned().collect(),
        }
    }

    /// The seam to a worker that takes over now.
    fn seam_to(&self, worker: &WorkerFacts) -> Seam {
        let one_by_one = usize::try_from(self.tokens).is_ok_and(|tokens| tokens <= EXACT_REPLAY);
        Seam {
            at: self.tokens.saturating_add(self.unsure),
            from_worker: self.from_worker.clone(),
            to_worker: worker.worker_id.clone(),
            i: self.tokens,
            exact: one_by_one && self.build.as_ref() == Some(&build_of(worker)),
        }
    }
}

/// What two workers must have in common for the same steps to lead to the same state. Processors
/// differ in their instructions and so in their last digits, hence the host counts for them.
pub(crate) fn build_of(facts: &WorkerFacts) -> String {
    let host = if facts.backend == "cpu" { host_of(&facts.uri) } else { "" };
    let parts: [&str; 8] = [
        &facts.version,
        &facts.engine,
        &facts.backend,
        &facts.devices.join("+"),
        &facts.model,
        facts.model_ref.as_deref().unwrap_or_default(),
        facts.quantization.as_deref().unwrap_or_default(),
        host,
    ];
    parts.join("|")
}

/// The host in `http://host:port`.
fn host_of(uri: &str) -> &str {
    let address = uri.split_once("://").map_or(uri, |(_, address)| address);
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

impl Job {
    /// Notes on a new attempt which seam it begins with, where it goes on with earlier tokens.
    pub fn begin_seam(&mut self, worker: &WorkerFacts) {
        if let Some(carried) = &mut self.row.carried {
            let seam = carried.seam_to(worker);
            carried.seams.push(seam);
        }
    }

    /// Takes back the seam of an attempt that showed nothing.
    pub fn undo_seam(&mut self) {
        if self.row.status == TaskStatus::Dispatched
            && let Some(carried) = &mut self.row.carried
        {
            carried.seams.pop();
        }
    }
}

impl Orchestrator {
    /// What a lost run left in its job's log; the next attempt goes on from there, or the job ends with
    /// that.
    pub(crate) fn salvaged(&mut self, run: &RunKey, kept: &Kept, turn: &mut Turn) {
        let job = self.jobs.get(&run.job_id).filter(|job| job.ending.is_some());
        if job.is_some_and(|job| job.last_run().as_ref() == Some(run)) {
            return self.shown_counted(run.job_id, kept.tokens, turn);
        }
        let waits = |job: &&mut Box<Job>| job.is_queued() && job.last_run().as_ref() == Some(run);
        let Some(job) = self.jobs.get_mut(&run.job_id).filter(waits) else {
            return turn.drop_stale("salvaged");
        };
        if !kept.ids_known {
            job.shown = kept.tokens;
            return self.fail_job(run.job_id, without_ids(run), turn);
        }
        if kept.events <= FIRST_EVENT_ID && job.row.carried.is_none() {
            // What it said was held back: the next attempt begins at the beginning.
            return;
        }
        let build = job.row.attempt.as_ref().and_then(|attempt| attempt.build.clone());
        job.row.carried = Some(Box::new(Carried::after(job.row.carried.as_deref(), run, kept, build)));
        turn.save_job(job);
    }
}

fn without_ids(run: &RunKey) -> ErrorDetail {
    let message = format!(
        "The worker `{}` was lost after tokens were sent, and it did not tell their ids, so no other worker \
         can go on from them.",
        run.worker_id
    );
    ErrorDetail::new(ErrorCode::WorkerLost, message)
}
