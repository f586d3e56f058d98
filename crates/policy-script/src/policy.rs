//! A compiled script as a policy.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use orchestrator_core::policy::{
    Admission, Again, FailureFacts, Hook, JobFacts, LeastLoaded, Policy, PolicyFailure, QueueFacts, Score,
    WorkerLoad,
};
use rhai::{AST, CallFnOptions, Dynamic, Engine, FuncArgs, Scope};

use crate::answers;
use crate::compile::Defined;
use crate::engine::OUT_OF_OPERATIONS;
use crate::facts::{Failure, Job, Named, Queue, View, Worker};
use crate::failure::of_run;
use crate::memo::Memo;
use crate::watch::{Stop, Watch};

/// A script that compiled.
pub(crate) struct ScriptPolicy {
    name: String,
    ast: AST,
    engine: Arc<Engine>,
    watch: Arc<Watch>,
    /// Which hooks it defines, and where.
    hooks: Defined,
    job: Named<Job>,
    queue: Named<Queue>,
    worker: Named<Worker>,
    failure: Named<Failure>,
    memo: Mutex<(Memo, Vec<u8>)>,
}

impl fmt::Debug for ScriptPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptPolicy").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ScriptPolicy {
    /// A policy of this script, which defines these hooks.
    pub fn new(
        name: &str,
        source: &str,
        ast: AST,
        hooks: Defined,
        engine: Arc<Engine>,
        watch: Arc<Watch>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            ast,
            engine,
            watch,
            hooks,
            job: Named::of(source),
            queue: Named::of(source),
            worker: Named::of(source),
            failure: Named::of(source),
            memo: Mutex::default(),
        }
    }

    /// One answer: its operations are counted from nothing, and the watchdog sees it. A failure
    /// without a place is put where the hook begins.
    fn answer<T>(
        &self,
        hook: Hook,
        give: impl FnOnce() -> Result<T, PolicyFailure>,
    ) -> Result<T, PolicyFailure> {
        self.watch.over(give).map_err(|failure| {
            let position = failure.position.or_else(|| self.hooks.get(&hook).copied());
            PolicyFailure { position, ..failure }
        })
    }

    fn call(&self, hook: Hook, args: impl FuncArgs) -> Result<Dynamic, PolicyFailure> {
        let options = CallFnOptions::new().eval_ast(false);
        self.engine
            .call_fn_with_options::<Dynamic>(options, &mut Scope::new(), &self.ast, hook.name(), args)
            .map_err(|error| of_run(hook, *error))
    }

    fn score_one(
        &self,
        job: &View<Job>,
        worker: &WorkerLoad<'_>,
        known: &mut (Memo, Vec<u8>),
        job_key: usize,
    ) -> Result<Score, PolicyFailure> {
        let (memo, key) = known;
        key.truncate(job_key);
        self.worker.write_key(worker, key);
        if let Some((score, operations)) = memo.get(key) {
            return match self.watch.charge(operations) {
                None | Some(Stop::Watchdog) => Ok(score),
                Some(Stop::Operations) => Err(out_of_operations()),
            };
        }
        let seen = self.worker.view(worker);
        let before = self.watch.spent();
        let score = self.call(Hook::Score, (job.clone(), seen)).and_then(answers::score)?;
        memo.put(key, score, self.watch.spent() - before);
        Ok(score)
    }
}

fn out_of_operations() -> PolicyFailure {
    let token = Dynamic::from(OUT_OF_OPERATIONS);
    of_run(Hook::Score, rhai::EvalAltResult::ErrorTerminated(token, rhai::Position::NONE))
}

impl Policy for ScriptPolicy {
    fn describe(&self) -> &str {
        &self.name
    }

    fn has(&self, hook: Hook) -> bool {
        self.hooks.contains_key(&hook)
    }

    fn admit(&self, job: &JobFacts<'_>, queue: &QueueFacts) -> Result<Admission, PolicyFailure> {
        if !self.has(Hook::Admit) {
            return Ok(Admission::Admit);
        }
        let seen = self.queue.view(queue);
        self.answer(Hook::Admit, || {
            self.call(Hook::Admit, (self.job.view(job), seen)).and_then(answers::admission)
        })
    }

    fn order(&self, job: &JobFacts<'_>) -> Result<i64, PolicyFailure> {
        if !self.has(Hook::Order) {
            return Ok(0);
        }
        self.answer(Hook::Order, || self.call(Hook::Order, (self.job.view(job),)).and_then(answers::order))
    }

    fn score(
        &self,
        job: &JobFacts<'_>,
        workers: &[WorkerLoad<'_>],
        scores: &mut Vec<Score>,
    ) -> Result<(), PolicyFailure> {
        if !self.has(Hook::Score) {
            LeastLoaded::score_all(workers, scores);
            return Ok(());
        }
        scores.clear();
        // The memo is whole between any two calls, so a poisoned lock means nothing.
        let mut known = self.memo.lock().unwrap_or_else(PoisonError::into_inner);
        known.1.clear();
        self.job.write_key(job, &mut known.1);
        let job_key = known.1.len();
        let seen = self.job.view(job);
        self.answer(Hook::Score, || {
            for worker in workers {
                scores.push(self.score_one(&seen, worker, &mut known, job_key)?);
            }
            Ok(())
        })
    }

    fn evict(&self, worker: &WorkerLoad<'_>) -> Result<f64, PolicyFailure> {
        if !self.has(Hook::Evict) {
            return Ok(LeastLoaded::evict_key(worker));
        }
        let seen = self.worker.view(worker);
        self.answer(Hook::Evict, || self.call(Hook::Evict, (seen,)).and_then(answers::evict))
    }

    fn retry(&self, job: &JobFacts<'_>, failure: &FailureFacts<'_>) -> Result<Again, PolicyFailure> {
        if !self.has(Hook::Retry) {
            return Ok(Again::GoOn);
        }
        let seen = self.failure.view(failure);
        self.answer(Hook::Retry, || {
            self.call(Hook::Retry, (self.job.view(job), seen)).and_then(answers::again)
        })
    }
}
