//! The policies that the default is measured against, decided by the same brain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use orchestrator_core::policy::{
    Hook, JobFacts, Label, LeastLoaded, Policy, PolicyFailure, PolicyText, Score, Scripts, WorkerLoad,
};

/// The label that gives a worker its place in the round.
pub const SEAT: &str = "seat";

/// How jobs find their workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// The built-in policy.
    Default,
    /// Each worker with a free slot in turn.
    RoundRobin,
    /// The largest share of free slots, then the most free memory.
    LeastLoaded,
}

impl Routing {
    /// As the report calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::RoundRobin => "round robin",
            Self::LeastLoaded => "least loaded",
        }
    }

    /// What the brain is started with.
    pub fn text(self) -> PolicyText {
        match self {
            Self::Default => PolicyText::built_in(),
            Self::RoundRobin | Self::LeastLoaded => PolicyText {
                name: self.name().to_owned(),
                source: Some(self.name().into()),
                sha256: String::new(),
            },
        }
    }
}

/// Makes the policies of this bench of their names.
#[derive(Debug)]
pub struct Native;

impl Scripts for Native {
    fn compile(&self, _name: &str, source: &str) -> Result<Arc<dyn Policy>, PolicyFailure> {
        Ok(if source == Routing::RoundRobin.name() { Arc::new(InTurn::default()) } else { Arc::new(ByLoad) })
    }
}

/// Round robin over the workers that are free.
#[derive(Debug, Default)]
struct InTurn {
    next: AtomicU64,
}

impl Policy for InTurn {
    fn describe(&self) -> &str {
        "round robin"
    }

    fn has(&self, hook: Hook) -> bool {
        hook == Hook::Score
    }

    fn score(
        &self,
        _job: &JobFacts<'_>,
        workers: &[WorkerLoad<'_>],
        scores: &mut Vec<Score>,
    ) -> Result<(), PolicyFailure> {
        let next = self.next.load(Ordering::Relaxed);
        let seat = |worker: &WorkerLoad<'_>| match worker.labels.get(SEAT) {
            Some(Label::Integer(seat)) => seat.unsigned_abs(),
            _ => 0,
        };
        // Seats at and after the next one come first, then the round begins anew.
        let turn = |seat: u64| if seat >= next { seat - next } else { seat + 500 };
        scores.clear();
        scores.extend(workers.iter().map(|worker| Score::Points(999.0 - turn(seat(worker)) as f64)));
        if let Some(taken) = workers.iter().map(seat).min_by_key(|seat| turn(*seat)) {
            self.next.store(taken + 1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The built-in policy without affinity.
#[derive(Debug)]
struct ByLoad;

impl Policy for ByLoad {
    fn describe(&self) -> &str {
        "least loaded"
    }

    fn has(&self, hook: Hook) -> bool {
        hook == Hook::Score
    }

    fn score(
        &self,
        _job: &JobFacts<'_>,
        workers: &[WorkerLoad<'_>],
        scores: &mut Vec<Score>,
    ) -> Result<(), PolicyFailure> {
        let points = |w: &WorkerLoad<'_>| LeastLoaded::base(w.slots_free, w.slots, w.free_memory_bytes);
        scores.clear();
        scores.extend(workers.iter().map(|worker| Score::Points(points(worker))));
        Ok(())
    }
}
