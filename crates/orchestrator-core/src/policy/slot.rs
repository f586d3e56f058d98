//! The policies in force: the live one, the last good one behind it, and a shadow beside it.
//!
//! The last good one is the latest that never failed while it was live: what failed and is replaced
//! does not take its place. A live policy that fails too often gives way to it by itself.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::breaker::Breaker;
use super::builtin::LeastLoaded;
use super::facts::{FailureFacts, JobFacts, QueueFacts, WorkerLoad};
use super::failure::{FailureKind, Hook, PolicyFailure};
use super::loaded::{Loaded, NoScripts, PolicyText, Scripts};
use super::log::{Failed, PolicyLog, Tally};
use super::{Admission, Again, Policy, Score};

/// A change of the policies in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyChange {
    /// This one decides from now on; the one before becomes the last good one if it never failed.
    Live(PolicyText),
    /// This one decides beside the live one, without effect; `None` ends that.
    Shadow(Option<PolicyText>),
    /// The shadow becomes the live one.
    Promote,
    /// The last good one becomes the live one again, and the other way round if that never failed.
    Rollback,
}

/// Why a change was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSuchPolicy {
    /// There is no shadow to promote.
    Shadow,
    /// There is no good policy behind the live one.
    LastGood,
}

/// What is kept of the policies on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRows {
    /// Decides.
    pub live: PolicyText,
    /// Answers when the live one fails.
    pub last_good: Option<PolicyText>,
    /// Decides beside the live one.
    pub shadow: Option<PolicyText>,
    /// Was live and failed too often; nobody has set another since.
    pub demoted: Option<PolicyText>,
}

impl Default for PolicyRows {
    fn default() -> Self {
        Self { live: PolicyText::built_in(), last_good: None, shadow: None, demoted: None }
    }
}

/// The policies in force with their sums, as `/v2/policy` shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyStanding {
    /// The policies.
    pub rows: PolicyRows,
    /// Sums of the live one since it was set or the orchestrator started.
    pub live: Tally,
    /// Sums of the shadow since then.
    pub shadow: Tally,
    /// Whether the shadow failed too often and is asked no more.
    pub shadow_stopped: bool,
    /// Sums of the demoted one while it was live; empty after a restart.
    pub demoted: Tally,
}

/// A live policy failed too often and gave way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demotion {
    /// The one that failed.
    pub name: String,
    /// The one that decides now.
    pub in_place: String,
    /// Its last failure.
    pub last_failure: Option<PolicyFailure>,
}

/// The policies in force. Asks the live one, and behind it whoever can answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct PolicySlot {
    live: Loaded,
    last_good: Option<Loaded>,
    shadow: Option<Loaded>,
    live_tally: Tally,
    live_breaker: Breaker,
    shadow_tally: Tally,
    shadow_breaker: Breaker,
    /// The policy that failed too often, with its sums.
    demoted: Option<(PolicyText, Tally)>,
    /// Questions of the coming turn that are to end as if the watchdog had cut them, by number.
    #[serde(skip)]
    cut: Vec<u32>,
    #[serde(skip, default = "no_scripts")]
    scripts: Arc<dyn Scripts>,
}

fn no_scripts() -> Arc<dyn Scripts> {
    Arc::new(NoScripts)
}

impl PolicySlot {
    /// The policies as they stand on disk.
    pub fn new(rows: PolicyRows, scripts: Arc<dyn Scripts>) -> Self {
        let load = |text: PolicyText| Loaded::new(text, &*scripts);
        Self {
            live: load(rows.live),
            last_good: rows.last_good.map(load),
            shadow: rows.shadow.map(load),
            live_tally: Tally::default(),
            live_breaker: Breaker::default(),
            shadow_tally: Tally::default(),
            shadow_breaker: Breaker::default(),
            demoted: rows.demoted.map(|text| (text, Tally::default())),
            cut: Vec::new(),
            scripts,
        }
    }

    /// Makes policies of its texts with this language, after it was read from a journal.
    pub fn use_scripts(&mut self, scripts: Arc<dyn Scripts>) {
        let all = [Some(&mut self.live), self.last_good.as_mut(), self.shadow.as_mut()];
        for loaded in all.into_iter().flatten() {
            loaded.load(&*scripts);
        }
        self.scripts = scripts;
    }

    /// The policies and their sums.
    pub fn standing(&self) -> PolicyStanding {
        PolicyStanding {
            rows: self.rows(),
            live: self.live_tally.clone(),
            shadow: self.shadow_tally.clone(),
            shadow_stopped: self.shadow_breaker.is_out(),
            demoted: self.demoted.as_ref().map(|(_, tally)| tally.clone()).unwrap_or_default(),
        }
    }

    /// What is kept on disk.
    pub fn rows(&self) -> PolicyRows {
        let text = |loaded: &Loaded| loaded.text.clone();
        PolicyRows {
            live: text(&self.live),
            last_good: self.last_good.as_ref().map(text),
            shadow: self.shadow.as_ref().map(text),
            demoted: self.demoted.as_ref().map(|(text, _)| text.clone()),
        }
    }

    /// The name of the live policy.
    pub fn live_name(&self) -> &str {
        &self.live.text.name
    }

    /// Whether the built-in policy decides and no shadow looks on, so that an index which gives the
    /// built-in order may answer in its place.
    pub const fn is_built_in(&self) -> bool {
        self.live.text.source.is_none() && self.shadow.is_none()
    }

    /// Whether any policy in force answers this hook in its own way. Where none does, the facts for
    /// the question need not be gathered, and the built-in answer holds.
    pub fn asks(&self, hook: Hook) -> bool {
        let all = [Some(&self.live), self.last_good.as_ref(), self.shadow.as_ref()];
        all.into_iter().flatten().any(|loaded| loaded.policy.has(hook))
    }

    /// Makes a change.
    ///
    /// # Errors
    /// When there is no shadow to promote or nothing to go back to; nothing is changed then.
    pub fn change(&mut self, change: PolicyChange) -> Result<(), NoSuchPolicy> {
        match change {
            PolicyChange::Live(text) => self.set_live(Loaded::new(text, &*self.scripts)),
            PolicyChange::Shadow(text) => {
                let shadow = text.map(|text| Loaded::new(text, &*self.scripts));
                self.set_shadow(shadow);
            }
            PolicyChange::Promote => {
                let shadow = self.shadow.take().ok_or(NoSuchPolicy::Shadow)?;
                self.set_shadow(None);
                self.set_live(shadow);
            }
            PolicyChange::Rollback => {
                let last_good = self.last_good.take().ok_or(NoSuchPolicy::LastGood)?;
                self.set_live(last_good);
            }
        }
        Ok(())
    }

    fn set_live(&mut self, loaded: Loaded) {
        let tally = std::mem::take(&mut self.live_tally);
        self.live_breaker = Breaker::default();
        self.demoted = None;
        if loaded.text == self.live.text {
            return;
        }
        let outgoing = std::mem::replace(&mut self.live, loaded);
        if tally.last_failure.is_none() {
            self.last_good = Some(outgoing);
        }
    }

    fn set_shadow(&mut self, shadow: Option<Loaded>) {
        self.shadow = shadow;
        self.shadow_tally = Tally::default();
        self.shadow_breaker = Breaker::default();
    }

    /// Puts the last good policy, or else the built-in one, in the place of a live one that failed too
    /// often.
    fn demote(&mut self) -> Option<Demotion> {
        if !self.live_breaker.is_out() {
            return None;
        }
        let next = self.last_good.take().unwrap_or_default();
        let failed = std::mem::replace(&mut self.live, next);
        let tally = std::mem::take(&mut self.live_tally);
        self.live_breaker = Breaker::default();
        let demotion = Demotion {
            name: failed.text.name.clone(),
            in_place: self.live.text.name.clone(),
            last_failure: tally.last_failure.clone(),
        };
        self.demoted = Some((failed.text, tally));
        Some(demotion)
    }

    /// Cuts questions of the next turn as the watchdog did when the turn was recorded, so that a
    /// replay takes the same branch.
    pub fn cut_next(&mut self, interrupted: Vec<u32>) {
        self.cut = interrupted;
    }

    /// Adds up what a turn noted. Some: the live policy failed too often with it, and another is live
    /// from the next turn on.
    #[must_use]
    pub fn take_log(&mut self, log: PolicyLog) -> Option<Demotion> {
        self.cut.clear();
        for failed in log.failures.into_iter().filter(|failed| failed.live) {
            self.live_tally.fail(failed.failure);
        }
        for shadowed in log.shadowed {
            self.shadow_tally.compare(shadowed);
        }
        for failure in log.shadow_failures {
            self.shadow_tally.fail(failure);
        }
        self.live_breaker.take(&log.live);
        self.shadow_breaker.take(&log.shadow);
        self.demote()
    }

    /// Whether a new job is let in. `about` names it in reports.
    pub fn admit(
        &self,
        about: &dyn fmt::Display,
        job: &JobFacts<'_>,
        queue: &QueueFacts,
        log: &mut PolicyLog,
    ) -> Admission {
        let (answer, _) = self.ask(Hook::Admit, log, |policy| policy.admit(job, queue), || Admission::Admit);
        self.shadow_beside(Hook::Admit, about, &answer, log, |policy| policy.admit(job, queue));
        answer
    }

    /// The key that orders a job within its flow, lowest first.
    pub fn order(&self, about: &dyn fmt::Display, job: &JobFacts<'_>, log: &mut PolicyLog) -> i64 {
        let (answer, _) = self.ask(Hook::Order, log, |policy| policy.order(job), || 0);
        self.shadow_beside(Hook::Order, about, &answer, log, |policy| policy.order(job));
        answer
    }

    /// Scores of workers, in their order, and who gave them.
    pub fn score(
        &self,
        job: &JobFacts<'_>,
        workers: &[WorkerLoad<'_>],
        log: &mut PolicyLog,
    ) -> (Vec<Score>, &str) {
        let by = |policy: &dyn Policy| {
            let mut scores = Vec::with_capacity(workers.len());
            policy.score(job, workers, &mut scores).map(|()| scores)
        };
        let built_in = || {
            let mut scores = Vec::with_capacity(workers.len());
            LeastLoaded::score_all(workers, &mut scores);
            scores
        };
        self.ask(Hook::Score, log, by, built_in)
    }

    /// The shadow's scores of the same workers; `None` without a shadow or when it fails, which is
    /// noted. The caller picks by them as it picks by the live scores and notes both with
    /// [`PolicyLog::compare`].
    pub fn shadow_score(
        &self,
        job: &JobFacts<'_>,
        workers: &[WorkerLoad<'_>],
        log: &mut PolicyLog,
    ) -> Option<Vec<Score>> {
        let shadow = self.asked_shadow()?;
        let mut scores = Vec::with_capacity(workers.len());
        match shadow.policy.score(job, workers, &mut scores) {
            Ok(()) => {
                log.shadow.note(Hook::Score, true);
                Some(scores)
            }
            Err(failure) => {
                log.shadow_failed(Hook::Score, failure);
                None
            }
        }
    }

    /// How readily an idle worker is given up; the highest goes first.
    pub fn evict(&self, about: &dyn fmt::Display, worker: &WorkerLoad<'_>, log: &mut PolicyLog) -> f64 {
        let (answer, _) =
            self.ask(Hook::Evict, log, |policy| policy.evict(worker), || LeastLoaded::evict_key(worker));
        self.shadow_beside(Hook::Evict, about, &answer, log, |policy| policy.evict(worker));
        answer
    }

    /// Whether a failed job is tried again.
    pub fn retry(
        &self,
        about: &dyn fmt::Display,
        job: &JobFacts<'_>,
        failure: &FailureFacts<'_>,
        log: &mut PolicyLog,
    ) -> Again {
        let (answer, _) = self.ask(Hook::Retry, log, |policy| policy.retry(job, failure), || Again::GoOn);
        self.shadow_beside(Hook::Retry, about, &answer, log, |policy| policy.retry(job, failure));
        answer
    }

    /// The first answer of the live policy, the last good one, the built-in one, and whose it is.
    fn ask<T>(
        &self,
        hook: Hook,
        log: &mut PolicyLog,
        question: impl Fn(&dyn Policy) -> Result<T, PolicyFailure>,
        built_in: impl FnOnce() -> T,
    ) -> (T, &str) {
        for (loaded, live) in [(Some(&self.live), true), (self.last_good.as_ref(), false)] {
            let Some(loaded) = loaded else { continue };
            let number = log.ask();
            let cut = self.cut.contains(&number);
            let answer = if cut { Err(cut_by_watchdog(hook)) } else { question(&*loaded.policy) };
            // The built-in policy cannot fail, so nothing is weighed.
            if live && loaded.text.source.is_some() {
                log.live.note(hook, answer.is_ok());
            }
            match answer {
                Ok(answer) => return (answer, loaded.policy.describe()),
                Err(failure) => {
                    let name = loaded.text.name.clone();
                    log.fail(number, Failed { name, live, failure });
                }
            }
        }
        (built_in(), LeastLoaded.describe())
    }

    /// Asks the shadow the same and notes both answers.
    fn shadow_beside<T: fmt::Debug>(
        &self,
        hook: Hook,
        about: &dyn fmt::Display,
        live: &T,
        log: &mut PolicyLog,
        question: impl Fn(&dyn Policy) -> Result<T, PolicyFailure>,
    ) {
        let Some(shadow) = self.asked_shadow() else { return };
        match question(&*shadow.policy) {
            Ok(answer) => {
                log.shadow.note(hook, true);
                log.compare(hook, &about.to_string(), format!("{live:?}"), format!("{answer:?}"));
            }
            Err(failure) => log.shadow_failed(hook, failure),
        }
    }

    /// The shadow, unless it failed too often.
    fn asked_shadow(&self) -> Option<&Loaded> {
        self.shadow.as_ref().filter(|_| !self.shadow_breaker.is_out())
    }
}

/// As a policy fails that the watchdog cut.
fn cut_by_watchdog(hook: Hook) -> PolicyFailure {
    PolicyFailure {
        hook: Some(hook),
        kind: FailureKind::Interrupted,
        message: "the watchdog stopped it".to_owned(),
        position: None,
    }
}
