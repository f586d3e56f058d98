//! Recorded traffic, decided again: by the policies that were in force, and by another.

use std::sync::Arc;

use api_types::policy::PutPolicy;
use api_types::replay::{ReplayReport, ReplayRequest, WhatIfReport};
use api_types::{ErrorBody, ErrorCode, ErrorDetail};
use axum::Json;
use axum::extract::State;
use orchestrator_core::journal::Unreadable;
use orchestrator_core::policy::{PolicyChange, PolicyText};
use orchestrator_core::replay::{Chapters, Replayed, Unfinished, report, verify, what_if};
use orchestrator_core::{Orchestrator, Time};
use policy_script::Language;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

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
    // Ends with the daemon, and with the client: who hangs up drops this.
    let stop = app.closing.child_token();
    let _hung_up = stop.clone().drop_guard();
    let other = other.map(|text| Other { text, chapters: Chapters::default() });
    let mut replay = Replay { _turn: turn, stop, live: Replayed::default(), other };
    for start in chapters {
        // One is in memory at a time.
        let Some(chapter) = app.history.chapter(start).await? else { continue };
        let replayed = blocking(move || replay.with(&chapter)).await?;
        replay = replayed.map_err(unfinished)?;
    }
    Ok(Json(replay.report(from, since)))
}

/// A replay under way.
struct Replay {
    /// Held for as long as the work goes on, also when nobody waits for it any more.
    _turn: OwnedSemaphorePermit,
    /// Set when nobody waits for it any more.
    stop: CancellationToken,
    live: Replayed,
    other: Option<Other>,
}

/// What another policy would have made of it so far.
struct Other {
    text: PolicyText,
    chapters: Chapters,
}

impl Replay {
    /// Takes one more chapter: by the policies that were in force, up to the first difference, and by
    /// the other one.
    fn with(mut self, chapter: &Chapter) -> Result<Self, Unfinished> {
        if self.live.is_identical() {
            let wanted = chapter.segments.iter().take_while(|_| !self.stop.is_cancelled());
            let found = verify(restore(chapter)?, wanted)?;
            self.live.inputs += found.inputs;
            self.live.placements += found.placements;
            self.live.differs_at = found.differs_at;
        }
        if let Some(other) = &mut self.other {
            other.take(chapter, &self.stop)?;
        }
        if self.stop.is_cancelled() { Err(Unfinished::Stopped) } else { Ok(self) }
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
    fn take(&mut self, chapter: &Chapter, stop: &CancellationToken) -> Result<(), Unfinished> {
        let change = PolicyChange::Live(self.text.clone());
        let go_on = || !stop.is_cancelled();
        self.chapters.add(what_if(|| restore(chapter), &chapter.segments, change, go_on)?);
        Ok(())
    }

    fn report(self, since: Time) -> WhatIfReport {
        let found = self.chapters.since(since);
        WhatIfReport {
            policy: self.text.name,
            moved: report::moved(&found.jobs),
            policy_failures: found.policy_failures,
            left_out: found.left_out,
            groups: report::groups(&found.jobs),
            jobs: report::worst(&found.jobs),
        }
    }
}

fn restore(chapter: &Chapter) -> Result<Orchestrator, Unreadable> {
    let mut brain = Orchestrator::restore(&chapter.snapshot)?;
    brain.use_scripts(Arc::new(Language::default()));
    Ok(brain)
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

fn unfinished(error: Unfinished) -> ApiError {
    match error {
        Unfinished::Unreadable(error) => unreadable(error),
        Unfinished::Stopped => ApiError::new(ErrorCode::ShuttingDown, "the replay was stopped"),
    }
}

fn unreadable(error: Unreadable) -> ApiError {
    ErrorDetail::new(ErrorCode::Internal, error.to_string())
        .with_hint("a journal of another version cannot be replayed; `since_ms` leaves older chapters out")
        .into()
}

#[cfg(test)]
mod tests {
    use orchestrator_core::{Rows, Settings};
    use tokio::sync::Semaphore;

    use super::*;

    fn replay(stop: &CancellationToken) -> Replay {
        let turn = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("nobody else is there");
        let other = Other { text: PolicyText::built_in(), chapters: Chapters::default() };
        Replay { _turn: turn, stop: stop.clone(), live: Replayed::default(), other: Some(other) }
    }

    #[test]
    fn a_replay_that_nobody_waits_for_ends() {
        let (brain, _) = Orchestrator::recover(Settings::default(), Rows::default(), Time(1_000));
        let snapshot = brain.snapshot().expect("written");
        let chapter = Chapter { at: Time(1_000), snapshot, segments: Vec::new() };
        let stop = CancellationToken::new();
        let wanted = replay(&stop).with(&chapter).map(|replay| replay.live.is_identical());
        assert_eq!(wanted, Ok(true));
        stop.cancel();
        let unwanted = replay(&stop).with(&chapter).map(|replay| replay.live.is_identical());
        assert_eq!(unwanted, Err(Unfinished::Stopped));
    }
}
