//! Every life of the orchestrator is recorded, and replayed when it is over: the same inputs must
//! give the same decisions.

use orchestrator_core::journal::{Recorder, Segment, Unreadable};
use orchestrator_core::replay::verify;
use orchestrator_core::{Event, Orchestrator, Step, Time};

use crate::bugs::Bug;
use crate::scripts;

/// Inputs after which a journal begins anew with a snapshot.
const INPUTS_A_SNAPSHOT: u32 = 150;

/// The journal of one life.
#[derive(Debug)]
pub struct Journal {
    snapshot: Vec<u8>,
    segments: Vec<Segment>,
    recorder: Recorder,
    inputs: u32,
    bug: Option<Bug>,
}

impl Journal {
    /// Begins with the brain as it is now.
    pub fn new(brain: &Orchestrator, bug: Option<Bug>) -> Self {
        let mut journal = Self {
            snapshot: Vec::new(),
            segments: Vec::new(),
            recorder: Recorder::default(),
            inputs: 0,
            bug,
        };
        journal.begin(brain);
        journal
    }

    fn begin(&mut self, brain: &Orchestrator) {
        if self.bug != Some(Bug::StaleSnapshot) || self.snapshot.is_empty() {
            self.snapshot = brain.snapshot().unwrap_or_default();
        }
        self.segments.clear();
        self.recorder.begin();
        self.inputs = 0;
    }

    /// Notes an event, before it is handled.
    pub fn event(&mut self, event: &Event, now: Time) {
        if self.recorder.event(event, now).is_err() {
            self.snapshot.clear();
        }
    }

    /// Notes a timeout, before it is handled.
    pub fn timeout(&mut self, now: Time) {
        if self.bug != Some(Bug::TimeoutNotJournaled) && self.recorder.timeout(now).is_err() {
            self.snapshot.clear();
        }
    }

    /// Notes what came of the last input. The digests of what was recorded are compared before the
    /// journal begins anew. Tells what is wrong with it, if anything.
    pub fn decided(&mut self, brain: &Orchestrator, step: &Step) -> Option<String> {
        if self.record(step).is_err() {
            self.snapshot.clear();
        }
        self.segments.extend(self.recorder.take());
        self.inputs += 1;
        if self.inputs < INPUTS_A_SNAPSHOT {
            return None;
        }
        let wrong = self.replay();
        self.begin(brain);
        wrong
    }

    fn record(&mut self, step: &Step) -> Result<(), Unreadable> {
        if self.bug == Some(Bug::WatchdogNotJournaled) {
            return self.recorder.decided(&Step { interrupted: Vec::new(), ..step.clone() });
        }
        self.recorder.decided(step)
    }

    /// Replays what was recorded since the last snapshot. Tells what is wrong, if anything.
    pub fn replay(&self) -> Option<String> {
        let mut brain = match Orchestrator::restore(&self.snapshot) {
            Ok(brain) => brain,
            Err(error) => return Some(error.to_string()),
        };
        brain.use_scripts(scripts::language());
        match verify(brain, &self.segments) {
            Ok(found) => found.differs_at.map(|at| format!("the replay differs from {} ms on", at.0)),
            Err(error) => Some(error.to_string()),
        }
    }
}
