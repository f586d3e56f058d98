//! Policies that people write, with a watchdog that cuts one of their answers now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use orchestrator_core::policy::{
    Admission, Again, FailureFacts, FailureKind, Hook, JobFacts, Policy, PolicyChange, PolicyFailure,
    PolicyText, QueueFacts, Score, Scripts, WorkerLoad,
};
use policy_script::Language;

use crate::rng::Rng;

/// Holds some jobs back for a while, refuses some, fails with every other answer about eviction, and
/// gives up early.
const MOODY: &str = r#"
fn admit(job, queue) {
    if queue.waiting % 5 == 3 { return 1500; }
    if queue.waiting > 8 { return "too many wait"; }
    true
}
fn order(job) { 100 / (job.tries_failed - 1) }
fn score(job, worker) {
    if worker.slots_free == 1 { throw "not today"; }
    10.0 * to_float(worker.slots_free)
}
fn evict(worker) { if worker.idle_ms % 2 == 0 { throw "ask another day"; } 0 - worker.idle_ms }
fn retry(job, failure) { job.tries_failed < 2 }
"#;
/// Takes only workers that do nothing else.
const LONELY: &str = r"
fn score(job, worker) { if worker.slots_free < worker.slots { return (); } 5.0 }
";
/// Never comes to an end where it is asked about a retry.
const ENDLESS: &str = r"
fn retry(job, failure) { let n = 0; loop { n += 1; } }
fn evict(worker) { worker.idle_ms }
";
/// Is no script.
const BROKEN: &str = "fn score(job, worker) { 1.0 +";

/// Every policy that the operator may choose.
const TEXTS: [(&str, &str); 9] = [
    ("default", policy_script::DEFAULT_SCRIPT),
    ("least-loaded", include_str!("../../../policies/least-loaded.rhai")),
    ("cheapest-watts", include_str!("../../../policies/cheapest-watts.rhai")),
    ("fair-team", include_str!("../../../policies/fair-team.rhai")),
    ("keep-gpu-0-free-for-games", include_str!("../../../policies/keep-gpu-0-free-for-games.rhai")),
    ("moody", MOODY),
    ("lonely", LONELY),
    ("endless", ENDLESS),
    ("broken", BROKEN),
];

/// A change of the policies in force.
pub fn draw_change(rng: &mut Rng) -> PolicyChange {
    match rng.between(0, 9) {
        0..=4 => PolicyChange::Live(draw_text(rng)),
        5 => PolicyChange::Live(PolicyText::built_in()),
        6..=7 => PolicyChange::Shadow(rng.chance(80).then(|| draw_text(rng))),
        8 => PolicyChange::Promote,
        _ => PolicyChange::Rollback,
    }
}

fn draw_text(rng: &mut Rng) -> PolicyText {
    let (name, source) = TEXTS[rng.next() as usize % TEXTS.len()];
    // What the text is called by its hash is nothing to the brain.
    PolicyText { name: name.to_owned(), source: Some(source.into()), sha256: format!("{:064x}", name.len()) }
}

thread_local! {
    static LANGUAGE: Arc<Language> = Arc::default();
}

/// The language alone: as a replay has it.
pub fn language() -> Arc<dyn Scripts> {
    LANGUAGE.with(Arc::<Language>::clone)
}

/// The language under a watchdog, as an orchestrator has it.
#[derive(Debug)]
pub struct Watched {
    language: Arc<dyn Scripts>,
    answers: Arc<AtomicU64>,
    cut_every: Option<u64>,
    /// The planted bug: scores depend on how often somebody asked.
    restless: bool,
}

impl Watched {
    /// A language of which one in `cut_every` answers is cut.
    pub fn new(cut_every: Option<u64>, restless: bool) -> Self {
        Self { language: language(), answers: Arc::default(), cut_every, restless }
    }
}

impl Scripts for Watched {
    fn compile(&self, name: &str, source: &str) -> Result<Arc<dyn Policy>, PolicyFailure> {
        let inner = self.language.compile(name, source)?;
        let answers = Arc::clone(&self.answers);
        Ok(Arc::new(WatchedPolicy { inner, answers, cut_every: self.cut_every, restless: self.restless }))
    }
}

#[derive(Debug)]
struct WatchedPolicy {
    inner: Arc<dyn Policy>,
    answers: Arc<AtomicU64>,
    cut_every: Option<u64>,
    restless: bool,
}

impl WatchedPolicy {
    /// The number of this answer, unless the watchdog cuts it.
    fn answer(&self, hook: Hook) -> Result<u64, PolicyFailure> {
        let number = self.answers.fetch_add(1, Ordering::Relaxed) + 1;
        if self.cut_every.is_some_and(|every| number.is_multiple_of(every)) {
            let message = "the watchdog stopped it".to_owned();
            return Err(PolicyFailure {
                hook: Some(hook),
                kind: FailureKind::Interrupted,
                message,
                position: None,
            });
        }
        Ok(number)
    }
}

impl Policy for WatchedPolicy {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn has(&self, hook: Hook) -> bool {
        self.inner.has(hook)
    }

    fn admit(&self, job: &JobFacts<'_>, queue: &QueueFacts) -> Result<Admission, PolicyFailure> {
        self.answer(Hook::Admit)?;
        self.inner.admit(job, queue)
    }

    fn order(&self, job: &JobFacts<'_>) -> Result<i64, PolicyFailure> {
        self.answer(Hook::Order)?;
        self.inner.order(job)
    }

    fn score(
        &self,
        job: &JobFacts<'_>,
        workers: &[WorkerLoad<'_>],
        scores: &mut Vec<Score>,
    ) -> Result<(), PolicyFailure> {
        let number = self.answer(Hook::Score)?;
        self.inner.score(job, workers, scores)?;
        if self.restless {
            let turned = number as usize % scores.len().max(1);
            scores.get_mut(turned).into_iter().for_each(|score| *score = Score::Points(900.0));
        }
        Ok(())
    }

    fn evict(&self, worker: &WorkerLoad<'_>) -> Result<f64, PolicyFailure> {
        self.answer(Hook::Evict)?;
        self.inner.evict(worker)
    }

    fn retry(&self, job: &JobFacts<'_>, failure: &FailureFacts<'_>) -> Result<Again, PolicyFailure> {
        self.answer(Hook::Retry)?;
        self.inner.retry(job, failure)
    }
}
