//! One number that stands for all decisions so far.

use std::hash::{Hash, Hasher};

use api_types::ErrorDetail;
use api_types::task::Decision;
use siphasher::sip::SipHasher13;

use crate::step::{Action, Answer, Step, Write};

/// A running hash over what the brain decided. Two runs with equal digests placed, ended and
/// refused the same jobs in the same order for the same reasons.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    /// The hash of everything so far.
    pub hash: u64,
    /// Placements so far.
    pub placements: u64,
}

impl Digest {
    /// Takes in what one input led to.
    pub fn add(&mut self, step: &Step) {
        let mut hasher = SipHasher13::new_with_keys(self.hash, self.placements);
        for write in &step.writes {
            if let Write::PutDecision { attempt, decision, .. } = write {
                attempt.hash(&mut hasher);
                hash_decision(decision, &mut hasher);
            }
        }
        for action in &step.actions {
            self.add_action(action, &mut hasher);
        }
        self.hash = hasher.finish();
    }

    fn add_action(&mut self, action: &Action, hasher: &mut SipHasher13) {
        match action {
            Action::OpenStream(open) => {
                self.placements += 1;
                ("open", open.run.job_id, open.run.attempt, &open.run.worker_id).hash(hasher);
                (open.run.incarnation, open.first_event_id, open.time_limit_ms).hash(hasher);
                for seam in open.goes_on.iter().flat_map(|goes_on| &goes_on.seams) {
                    (seam.at, &seam.from_worker, &seam.to_worker, seam.i, seam.exact).hash(hasher);
                }
            }
            Action::ResumeStream { run, delay_ms, passed, .. } => {
                ("resume", run.job_id, run.attempt, &run.worker_id, delay_ms, passed).hash(hasher);
            }
            Action::StopRun { run, .. } => ("stop", run.job_id, run.attempt).hash(hasher),
            Action::Salvage(run) => ("salvage", run.job_id, run.attempt).hash(hasher),
            Action::DropStream(run) => ("drop", run.job_id, run.attempt).hash(hasher),
            Action::EndJob { job_id, release_held, last_event } => {
                ("end", job_id, release_held, last_event.name()).hash(hasher);
            }
            Action::Answer { answer, .. } => hash_answer(answer, hasher),
            Action::SpawnWorker { pool, worker_id, model } => {
                ("spawn", &pool.pool_id, worker_id, model).hash(hasher);
            }
            Action::StopWorker { worker_id, .. } => ("unload", worker_id).hash(hasher),
            Action::AskPool { .. }
            | Action::Publish { .. }
            | Action::PublishLive { .. }
            | Action::PassStream(_)
            | Action::AckRun { .. }
            | Action::ProbeWorker { .. }
            | Action::Notify(_) => {}
        }
    }
}

fn hash_answer(answer: &Answer, hasher: &mut SipHasher13) {
    match answer {
        Answer::Accepted { job_id, queue_position, replayed, .. } => {
            ("accepted", job_id, queue_position, replayed).hash(hasher);
        }
        Answer::Refused(ErrorDetail { code, .. }) => ("refused", code.as_str()).hash(hasher),
        Answer::Cancelled { .. } | Answer::Registered { .. } | Answer::Heartbeat { .. } | Answer::Done => {}
    }
}

fn hash_decision(decision: &Decision, hasher: &mut SipHasher13) {
    (&decision.at, &decision.policy, decision.queue_depth, decision.waited_ms, &decision.picked).hash(hasher);
    for candidate in &decision.candidates {
        (&candidate.worker_id, candidate.feasible, candidate.slots_free, candidate.slots).hash(hasher);
        candidate.score.map(f64::to_bits).hash(hasher);
    }
}
