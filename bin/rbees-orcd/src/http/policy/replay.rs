//! Recorded traffic, decided again: by the policies that were in force, and by another.

use std::collections::BTreeMap;
use std::sync::Arc;

use api_types::policy::PutPolicy;
use api_types::replay::{ReplayReport, ReplayRequest, WhatIfReport};
use api_types::{ErrorBody, ErrorCode, ErrorDetail, JobId};
use axum::Json;
use axum::extract::State;
use orchestrator_core::journal::Unreadable;
use orchestrator_core::policy::{PolicyChange, PolicyText};
use orchestrator_core::replay::{Compared, Replayed, report, verify, what_if};
use orchestrator_core::{Orchestrator, Time};
use policy_script::Language;
use tokio::sync::OwnedSemaphorePermit;

use super::{blocking, compiled};
use crate::http::body::Body;
use crate::http::{ApiError, App};
use crate::store::journal::Chapter;

/// Decides recorded traffic again. Nothing that runs is touched; one replay at a time.
#[utoipa::path(post, path = "/v2/policy/replay", tag = "policy", request_body = ReplayRequest,
    responses((status = 200, body = ReplayReport), (status = 404, body = ErrorBody),
              (status = 422, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub async fn replay_policy(
    State(app): State<App>,
    Body(request): Body<ReplayRequest>,
) -> Result<Json<ReplayReport>, ApiError> {
    let turn = Arc::clone(&app.replays).try_acquire_owned().map_err(|_| busy())?;
    let name = request.name.clone().unwrap_or_else(|| "unnamed".to_owned());
    let other = match request.source {
        Some(source) => Some(compiled(PutPolicy { name, source: Some(source) }).await?),
        None => None,
    };
    app.driver.flush_journal().await?;
    let now = app.driver.read(|_, now| now).await?;
    let since = Time(request.since_ms.map_or(0, |ms| now.0.saturating_sub(ms)));
    let chapters = app.history.chapters(since).await?;
    let Some(from) = chapters.first().map(|chapter| chapter.at) else { return Err(no_journal().into()) };
    let mut replay = Replay { _turn: turn, live: Replayed::default(), other: other.map(Other::new) };
    for start in chapters {
        // One is in memory at a time.
        let Some(chapter) = app.history.chapter(start).await? else { continue };
        let replayed = blocking(move || replay.with(&chapter)).await?;
        replay = replayed.map_err(unreadable)?;
    }
    Ok(Json(replay.report(from, since)))
}

/// A replay under way.
struct Replay {
    /// Held for as long as the work goes on, also when nobody waits for it any more.
    _turn: OwnedSemaphorePermit,
    live: Replayed,
    other: Option<Other>,
}

/// What another policy would have made of it so far.
struct Other {
    text: PolicyText,
    jobs: BTreeMap<JobId, Compared>,
    policy_failures: u64,
}

impl Replay {
    /// Takes one more chapter: by the policies that were in force, up to the first difference, and by
    /// the other one.
    fn with(mut self, chapter: &Chapter) -> Result<Self, Unreadable> {
        if self.live.is_identical() {
            let found = verify(restore(chapter)?, &chapter.segments)?;
            self.live.inputs += found.inputs;
            self.live.placements += found.placements;
            self.live.differs_at = found.differs_at;
        }
        if let Some(other) = &mut self.other {
            other.take(chapter)?;
        }
        Ok(self)
    }

    fn report(self, from: Time, since: Time) -> ReplayReport {
        ReplayReport {
            from: from.rfc3339(),
            inputs: self.live.inputs,
            placements: self.live.placements,
            identical: self.live.is_identical(),
            differs_at: self.live.differs_at.map(Time::rfc3339),
            what_if: self.other.map(|other| other.report(since)),
        }
    }
}

impl Other {
    const fn new(text: PolicyText) -> Self {
        Self { text, jobs: BTreeMap::new(), policy_failures: 0 }
    }

    /// A job that lived in two chapters counts where it began.
    fn take(&mut self, chapter: &Chapter) -> Result<(), Unreadable> {
        let change = PolicyChange::Live(self.text.clone());
        let found = what_if(|| restore(chapter), &chapter.segments, change)?;
        self.policy_failures += found.policy_failures;
        for job in found.jobs {
            self.jobs.entry(job.job_id).or_insert(job);
        }
        Ok(())
    }

    fn report(self, since: Time) -> WhatIfReport {
        let jobs: Vec<Compared> = self.jobs.into_values().filter(|job| counts(job, since)).collect();
        WhatIfReport {
            policy: self.text.name,
            moved: report::moved(&jobs),
            policy_failures: self.policy_failures,
            groups: report::groups(&jobs),
            jobs: report::worst(&jobs),
        }
    }
}

fn restore(chapter: &Chapter) -> Result<Orchestrator, Unreadable> {
    let mut brain = Orchestrator::restore(&chapter.snapshot)?;
    brain.use_scripts(Arc::new(Language::default()));
    Ok(brain)
}

/// Whether a job came in the time asked for and its record is whole: who still waited when the record
/// ended has no wait to compare.
fn counts(job: &Compared, since: Time) -> bool {
    let came = job.before.as_ref().or(job.after.as_ref()).is_some_and(|life| life.submitted_at >= since);
    came && job.before.as_ref().is_none_or(|life| life.ended.is_some() || life.dispatched_at.is_some())
}

fn busy() -> ApiError {
    ErrorDetail::new(ErrorCode::TooManyRequests, "another replay is at work; one at a time is")
        .with_retry_after_ms(2_000)
        .into()
}

fn no_journal() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::NotFound, "the journal is empty: nothing was decided yet")
        .with_hint("submit a few jobs first")
}

fn unreadable(error: Unreadable) -> ApiError {
    ErrorDetail::new(ErrorCode::Internal, error.to_string())
        .with_hint("a journal of another version cannot be replayed; `since_ms` leaves older chapters out")
        .into()
}
