//! What clients were told, and whether it was true.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api_types::TaskEvent;
use api_types::task::{TaskStatus, TaskView};
use e2e::Received;
use serde::Serialize;

use super::percentile;

/// A request that can be made again: which prompt, and how many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    pub prompt: usize,
    pub max_tokens: u32,
}

/// A job whose id a client was given.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    pub request: Request,
    /// The key it was handed in under.
    pub key: Option<String>,
    /// Whether its end was asked for.
    pub cancelled: bool,
}

/// A stream that was read to its end.
#[derive(Debug, Clone)]
pub struct Followed {
    pub job: String,
    pub request: Request,
    pub received: Received,
    /// How long each kill interrupted it, in milliseconds.
    pub gaps_ms: Vec<u64>,
}

/// Everything that clients saw.
#[derive(Debug, Default)]
pub struct History {
    jobs: Mutex<BTreeMap<String, Acknowledged>>,
    streams: Mutex<Vec<Followed>>,
    broken: Mutex<Vec<String>>,
    /// What each request gives when nothing is killed.
    texts: Mutex<HashMap<Request, String>>,
}

/// What became of it all.
#[derive(Debug, Default, Serialize)]
pub struct Verdict {
    acknowledged: usize,
    cancelled: usize,
    lost: usize,
    ran_twice: usize,
    /// Streams that at least one kill interrupted, and how many of them came out token-exact.
    pub streams_resumed: usize,
    streams_exact: usize,
    /// Interruptions that a stream outlived.
    resumes: usize,
    gap_p50_ms: u64,
    pub gap_p95_ms: u64,
    /// Sentences about what was broken.
    pub problems: Vec<String>,
}

impl History {
    /// Notes that a client was given this id. The same key must always give the same one.
    pub fn acknowledge(&self, job: &str, request: Request, key: Option<&str>) {
        let mut jobs = lock(&self.jobs);
        if let Some(key) = key
            && let Some((other, _)) =
                jobs.iter().find(|(other, told)| *other != job && told.key.as_deref() == Some(key))
        {
            lock(&self.broken).push(format!("the key {key} gave {other} and then {job}"));
        }
        let told = Acknowledged { request, key: key.map(str::to_owned), cancelled: false };
        jobs.entry(job.to_owned()).or_insert(told);
    }

    /// Notes that somebody asks for a job's end.
    pub fn cancel(&self, job: &str) {
        if let Some(told) = lock(&self.jobs).get_mut(job) {
            told.cancelled = true;
        }
    }

    /// Notes a stream that ended.
    pub fn follow(&self, followed: Followed) {
        lock(&self.streams).push(followed);
    }

    /// Notes what a request gives when nothing is killed.
    pub fn learn(&self, request: Request, text: String) {
        lock(&self.texts).insert(request, text);
    }

    /// Jobs acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        lock(&self.jobs).len()
    }

    /// Their ids.
    pub fn ids(&self) -> Vec<String> {
        lock(&self.jobs).keys().cloned().collect()
    }

    /// Compares what was promised with what there is: each job as the orchestrator shows it (`None`
    /// when it knows no such job), and how often each run ended by itself in a worker.
    pub fn judge(&self, shown: &BTreeMap<String, Option<TaskView>>, ends: &HashMap<String, u32>) -> Verdict {
        let mut verdict =
            Verdict { problems: std::mem::take(&mut *lock(&self.broken)), ..Verdict::default() };
        let (jobs, texts) = (lock(&self.jobs), lock(&self.texts));
        verdict.acknowledged = jobs.len();
        for (job, told) in jobs.iter() {
            let text = texts.get(&told.request).map(String::as_str);
            verdict.judge_job(job, told, shown.get(job).and_then(Option::as_ref), text);
            if let Some(times) = ends.get(job).filter(|times| **times > 1) {
                verdict.ran_twice += 1;
                verdict.problems.push(format!("{job} ran to an end {times} times"));
            }
        }
        let mut gaps = Vec::new();
        for followed in lock(&self.streams).iter().filter(|followed| !followed.gaps_ms.is_empty()) {
            gaps.extend(&followed.gaps_ms);
            verdict.judge_stream(followed, texts.get(&followed.request).map(String::as_str));
        }
        verdict.resumes = gaps.len();
        verdict.gap_p50_ms = percentile(&mut gaps, 50);
        verdict.gap_p95_ms = percentile(&mut gaps, 95);
        verdict
    }
}

impl Verdict {
    fn judge_job(&mut self, job: &str, told: &Acknowledged, shown: Option<&TaskView>, text: Option<&str>) {
        let Some(view) = shown else {
            self.lost += 1;
            return self.problems.push(format!("{job} was acknowledged and is not known"));
        };
        match view.status {
            TaskStatus::Completed if view.result.as_deref() == text => {}
            TaskStatus::Completed => {
                self.problems.push(format!("{job} has another text than without a kill"))
            }
            TaskStatus::Cancelled if told.cancelled => self.cancelled += 1,
            status => self.problems.push(format!("{job} is {status:?}: {:?}", view.error)),
        }
    }

    fn judge_stream(&mut self, followed: &Followed, text: Option<&str>) {
        self.streams_resumed += 1;
        let events = &followed.received.events;
        let numbered = events.iter().enumerate().all(|(at, (id, _))| *id == at as u64);
        let tokens = followed.received.tokens();
        let counted = tokens.iter().enumerate().all(|(at, (i, _))| usize::try_from(*i) == Ok(at));
        let ended = matches!(followed.received.last(), Some(TaskEvent::End(_)));
        if numbered && counted && ended && Some(followed.received.text().as_str()) == text {
            self.streams_exact += 1;
        } else {
            self.problems.push(format!(
                "the stream of {} is not what it is without a kill: ids in order {numbered}, tokens in order \
                 {counted}, ended {ended}, {} tokens",
                followed.job,
                tokens.len()
            ));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
