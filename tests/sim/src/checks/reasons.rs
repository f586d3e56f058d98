//! What is written down of a placement leads to the same choice by itself.

use api_types::JobId;
use api_types::task::Decision;
use orchestrator_core::{Action, OpenStream, Orchestrator, RunKey, Step, Write, reproduce};
use serde::Serialize;

use crate::world::World;

/// The longest record of a placement, in bytes of JSON.
const RECORD_BYTES: usize = 4_096;

/// How often jobs were placed, and on which grounds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reasons {
    /// Placements.
    pub placements: u64,
    /// Of these, what was written down led to the choice by itself.
    pub reproduced: u64,
    /// Of these, a policy that is a script scored.
    pub by_script: u64,
    /// Of these, the job belonged to a session.
    pub of_sessions: u64,
    /// Of these, some worker held a part of the prompt or had served the session.
    pub with_affinity: u64,
    /// Of these, the policy kept a worker free.
    pub kept_free: u64,
    /// Jobs that a policy held back when they came.
    pub held: u64,
    /// Jobs that waited when they were looked at, and what was said of where they would go agreed.
    pub waiting: u64,
}

impl Reasons {
    /// Adds another world's.
    pub const fn add(&mut self, other: &Self) {
        self.placements += other.placements;
        self.reproduced += other.reproduced;
        self.by_script += other.by_script;
        self.of_sessions += other.of_sessions;
        self.with_affinity += other.with_affinity;
        self.kept_free += other.kept_free;
        self.held += other.held;
        self.waiting += other.waiting;
    }

    fn note(&mut self, decision: &Decision, in_session: bool) {
        let mut candidates = decision.candidates.iter();
        let scripted = candidates.clone().filter_map(|candidate| candidate.terms).all(|terms| {
            // The built-in policy says what its points are made of.
            (terms.affinity, terms.load, terms.memory) == (0.0, 0.0, 0.0)
        });
        let near =
            |terms: Option<api_types::why::ScoreTerms>| terms.is_some_and(|terms| terms.affinity > 0.0);
        self.placements += 1;
        self.by_script += u64::from(scripted);
        self.of_sessions += u64::from(in_session);
        self.with_affinity += u64::from(
            candidates
                .clone()
                .any(|candidate| candidate.prompt_bytes_held.is_some() || near(candidate.terms)),
        );
        let is_kept_free =
            |because: &api_types::why::RuledOut| matches!(because, api_types::why::RuledOut::KeptFree { .. });
        self.kept_free +=
            u64::from(candidates.any(|candidate| candidate.because.as_ref().is_some_and(is_kept_free)));
    }
}

impl World {
    /// Why: the reasons of every placement of a step lead to its choice.
    pub fn check_reasons(&mut self, step: &Step) {
        let Some(daemon) = &self.daemon else { return };
        for write in &step.writes {
            if let Write::InsertJob(row) = write {
                self.reasons.held += u64::from(row.not_before.is_some());
            }
        }
        let begun = step.actions.iter().filter_map(|action| match action {
            Action::OpenStream(OpenStream { run, .. }) => Some(run),
            _ => None,
        });
        for run in begun {
            if self.checks.knows_run(run) {
                continue;
            }
            let Some(decision) = recorded(step, run).or_else(|| remembered(&daemon.brain, run)) else {
                if is_living(&daemon.brain, run.job_id) {
                    self.checks.fail("why", format!("{run:?} is handed out and nothing says why"));
                }
                continue;
            };
            let row = daemon.brain.job_row(run.job_id);
            self.reasons.note(decision, row.is_some_and(|row| row.session_id.is_some()));
            match contradiction(decision, run) {
                None => self.reasons.reproduced += 1,
                Some(wrong) => self.checks.fail("why", wrong),
            }
        }
    }

    /// Why: what is said of waiting jobs agrees with itself, too.
    pub fn check_waiting_reasons(&mut self) {
        let Some(daemon) = &self.daemon else { return };
        let now = self.time();
        for job_id in self.clients.iter().filter_map(|client| client.job) {
            let Some(decision) = daemon.brain.waiting_decision(job_id, now) else { continue };
            if reproduce(&decision) == decision.picked {
                self.reasons.waiting += 1;
            } else {
                self.checks.fail("why", format!("{job_id} waits, and {decision:?} contradicts itself"));
            }
        }
    }
}

/// What a step writes down of a run that it begins.
fn recorded<'a>(step: &'a Step, run: &RunKey) -> Option<&'a Decision> {
    step.writes.iter().find_map(|write| match write {
        Write::PutDecision { job_id, attempt, decision } => {
            ((*job_id, *attempt) == (run.job_id, run.attempt)).then_some(decision)
        }
        _ => None,
    })
}

/// What the brain remembers of it: a job that is in memory only has no more.
fn remembered<'a>(brain: &'a Orchestrator, run: &RunKey) -> Option<&'a Decision> {
    brain.decisions(run.job_id).iter().rev().find(|decision| decision.attempt == run.attempt.0)
}

fn is_living(brain: &Orchestrator, job_id: JobId) -> bool {
    brain.job_row(job_id).is_some_and(|row| !row.status.is_terminal())
}

/// What is wrong with the reasons of a run, if anything.
fn contradiction(decision: &Decision, run: &RunKey) -> Option<String> {
    let text = serde_json::to_string(decision).unwrap_or_default();
    if text.len() >= RECORD_BYTES {
        return Some(format!("what is written down of {run:?} takes {} bytes", text.len()));
    }
    let read: Decision = match serde_json::from_str(&text) {
        Ok(read) => read,
        Err(error) => return Some(format!("what is written down of {run:?} cannot be read: {error}")),
    };
    let chosen = Some(&run.worker_id);
    let agrees = read == *decision
        && read.attempt == run.attempt.0
        && read.picked.as_ref() == chosen
        && reproduce(&read).as_ref() == chosen;
    (!agrees).then(|| format!("{run:?} does not follow from {text}"))
}
