//! Tries a script before it decides anything: does it compile, what does it say, does it fail.

use api_types::policy::{HookCheck, PolicyCheck, PolicyError};
use orchestrator_core::policy::{
    Admission, Again, FailureKind, Hook, Hour, MAX_SCORED, Policy, PolicyFailure, QueueFacts, SampleWorker,
    Score, WorkerLoad,
};

use crate::compile::Language;
use crate::samples::{self, Sample};

/// Answers of one hook that a report shows.
const ANSWERS_SHOWN: usize = 12;
/// Errors that a report shows.
const ERRORS_SHOWN: usize = 20;

/// Compiles a script and asks every hook about sample jobs, on these workers or, where there are
/// none, on made-up ones.
pub fn check(name: &str, source: &str, workers: &[SampleWorker]) -> PolicyCheck {
    let policy = match Language::default().compile(name, source) {
        Ok(policy) => policy,
        Err(failure) => {
            return PolicyCheck { errors: vec![error_view(&failure)], ..PolicyCheck::default() };
        }
    };
    let home = if workers.is_empty() { samples::home() } else { Vec::new() };
    let fleet: Vec<&SampleWorker> = workers.iter().chain(&home).take(MAX_SCORED).collect();
    let mut trial = Trial::new(&*policy);
    for sample in samples::jobs() {
        trial.ask(&sample, &fleet);
    }
    for (when, hour) in samples::HOURS {
        trial.ask_whom_to_evict(when, hour, &fleet);
    }
    trial.report()
}

/// A failure on the wire.
pub fn error_view(failure: &PolicyFailure) -> PolicyError {
    let (kind, limit) = match &failure.kind {
        FailureKind::Syntax => ("syntax", None),
        FailureKind::Limit(limit) => ("limit", Some(limit.clone())),
        FailureKind::Runtime => ("runtime", None),
        FailureKind::WrongAnswer => ("wrong_answer", None),
        FailureKind::Interrupted => ("interrupted", None),
    };
    PolicyError {
        hook: failure.hook.map(|hook| hook.name().to_owned()),
        kind: kind.to_owned(),
        limit,
        message: failure.message.clone(),
        line: failure.position.map(|(line, _)| line),
        column: failure.position.map(|(_, column)| column),
    }
}

/// A failure in one line: `score, line 3:7: limit of operations: more than ...`.
pub fn in_words(error: &PolicyError) -> String {
    let hook = error.hook.as_deref().unwrap_or("script");
    let place = match (error.line, error.column) {
        (Some(line), Some(column)) => format!(", line {line}:{column}"),
        _ => String::new(),
    };
    let limit = error.limit.as_ref().map(|limit| format!("limit of {limit}: ")).unwrap_or_default();
    format!("{hook}{place}: {limit}{}", error.message)
}

struct Trial<'a> {
    policy: &'a dyn Policy,
    hooks: Vec<(Hook, HookCheck)>,
    errors: Vec<PolicyError>,
}

impl<'a> Trial<'a> {
    fn new(policy: &'a dyn Policy) -> Self {
        let hook = |hook: Hook| {
            let defined = policy.has(hook);
            (hook, HookCheck { hook: hook.name().to_owned(), defined, ..HookCheck::default() })
        };
        Self { policy, hooks: Hook::ALL.map(hook).into(), errors: Vec::new() }
    }

    fn ask(&mut self, sample: &Sample, fleet: &[&SampleWorker]) {
        let (policy, Sample { about, job, failure, .. }) = (self.policy, sample);
        let queue = QueueFacts { workers: fleet.len() as u64, ..sample.queue };
        self.note(
            Hook::Admit,
            policy.admit(job, &queue).map(|said| vec![format!("{about}: {}", admission(said))]),
        );
        self.note(Hook::Order, policy.order(job).map(|key| vec![format!("{about}: {key}")]));
        let mut loads: Vec<WorkerLoad<'_>> = fleet.iter().map(|worker| worker.load(job.hour)).collect();
        if let Some(first) = loads.first_mut() {
            (first.prefix_share, first.session_here) = (sample.prefix_share, job.session.is_some());
        }
        let mut scores = Vec::new();
        let scored = policy.score(job, &loads, &mut scores);
        self.note(Hook::Score, scored.map(|()| vec![format!("{about}: {}", ranking(fleet, &scores))]));
        let again = policy.retry(job, failure).map(|again| match again {
            Again::GoOn => vec![format!("{about}: another attempt")],
            Again::GiveUp => vec![format!("{about}: give up")],
        });
        self.note(Hook::Retry, again);
    }

    fn ask_whom_to_evict(&mut self, when: &str, hour: Hour, fleet: &[&SampleWorker]) {
        for worker in fleet {
            let said = self.policy.evict(&worker.load(hour));
            self.note(Hook::Evict, said.map(|key| vec![format!("{} at {when}: {key}", worker.id())]));
        }
    }

    fn note(&mut self, hook: Hook, said: Result<Vec<String>, PolicyFailure>) {
        let Some((_, check)) = self.hooks.iter_mut().find(|(known, _)| *known == hook) else { return };
        if !check.defined {
            return;
        }
        check.asked += 1;
        match said {
            Ok(answers) => {
                let room = ANSWERS_SHOWN.saturating_sub(check.answers.len());
                check.answers.extend(answers.into_iter().take(room));
            }
            Err(failure) => {
                let error = error_view(&failure);
                if !self.errors.contains(&error) && self.errors.len() < ERRORS_SHOWN {
                    self.errors.push(error);
                }
            }
        }
    }

    fn report(self) -> PolicyCheck {
        let hooks: Vec<HookCheck> = self.hooks.into_iter().map(|(_, check)| check).collect();
        let missing = hooks.iter().filter(|hook| !hook.defined);
        let warnings =
            missing.map(|hook| format!("`{}` is not defined: the built-in answer holds", hook.hook));
        PolicyCheck { ok: self.errors.is_empty(), warnings: warnings.collect(), errors: self.errors, hooks }
    }
}

fn admission(said: Admission) -> String {
    match said {
        Admission::Admit => "let in".to_owned(),
        Admission::Hold(ms) => format!("let in, held for {ms} ms"),
        Admission::Refuse(reason) => format!("refused: {reason}"),
    }
}

/// Workers with their scores, best first.
fn ranking(fleet: &[&SampleWorker], scores: &[Score]) -> String {
    let mut ranked: Vec<_> = fleet.iter().map(|worker| worker.id()).zip(scores).collect();
    let points = |score: &Score| match score {
        Score::Points(points) => *points,
        Score::KeepFree => -1.0,
    };
    ranked.sort_by(|(a_id, a), (b_id, b)| points(b).total_cmp(&points(a)).then(a_id.cmp(b_id)));
    let one = |(id, score): (&api_types::WorkerId, &Score)| match score {
        Score::Points(points) => format!("{id} {points:.1}"),
        Score::KeepFree => format!("{id} kept free"),
    };
    ranked.into_iter().map(one).collect::<Vec<_>>().join(", ")
}
