//! The short ways to read a job: its start, tokens and end, or nothing but its text.

use std::pin::Pin;
use std::task::{Context, Poll};

use api_types::event::RunEnd;
use api_types::{Attempt, ErrorDetail, JobId, StopReason, TaskEvent, WorkerId};
use futures_util::{Stream, StreamExt};

use crate::error::Error;
use crate::events::{JobEvent, JobEvents};

/// What most readers of a job want to know.
#[derive(Debug, Clone, PartialEq)]
pub enum InferenceEvent {
    /// A worker generates.
    Started {
        /// The job.
        job_id: JobId,
        /// The model that answers.
        model: String,
        /// The worker that runs it.
        worker_id: WorkerId,
        /// Which try this is.
        attempt: Attempt,
        /// RFC 3339, UTC.
        started_at: String,
    },
    /// One token.
    Token {
        /// Its text; may be empty inside a character of several tokens.
        t: String,
        /// Its index in the completion, from 0.
        i: u32,
    },
    /// The job completed or was cancelled. A job that failed has no such event.
    End {
        /// Prompt tokens, template included.
        tokens_in: u32,
        /// Tokens generated.
        tokens_out: u32,
        /// From submission to dispatch.
        queue_time_ms: u64,
        /// From dispatch to the first token.
        prefill_time_ms: u64,
        /// From the first token to the last.
        decode_time_ms: u64,
        /// Why it stopped.
        stop_reason: StopReason,
    },
}

/// A job's start, tokens and end.
///
/// [`InferenceStream::try_next`] tells failures as they happen. [`InferenceStream::next`] and the
/// `Stream` end early instead; [`InferenceStream::finish`] and [`InferenceStream::error`] then say why.
#[derive(Debug)]
pub struct InferenceStream {
    events: JobEvents,
    outcome: Option<Result<RunEnd, Error>>,
}

impl InferenceStream {
    pub(crate) fn new(events: JobEvents) -> Self {
        Self { events, outcome: None }
    }

    /// The job.
    pub fn job_id(&self) -> JobId {
        self.events.job_id()
    }

    /// The next event; `None` behind the last one, and when the job or the stream failed.
    pub async fn next(&mut self) -> Option<InferenceEvent> {
        StreamExt::next(self).await
    }

    /// The next event; `None` behind the last one.
    ///
    /// # Errors
    /// When the job failed, or its stream broke for good.
    pub async fn try_next(&mut self) -> Result<Option<InferenceEvent>, Error> {
        let event = self.next().await;
        match (&event, &self.outcome) {
            (None, Some(Err(error))) => Err(error.clone()),
            _ => Ok(event),
        }
    }

    /// Why the stream ended early, once it has.
    pub fn error(&self) -> Option<&Error> {
        self.outcome.as_ref().and_then(|outcome| outcome.as_ref().err())
    }

    /// Reads to the end and gives the figures of the job.
    ///
    /// # Errors
    /// When the job failed, or its stream broke for good.
    pub async fn finish(mut self) -> Result<RunEnd, Error> {
        while self.next().await.is_some() {}
        let job_id = self.job_id();
        self.outcome
            .take()
            .unwrap_or_else(|| Err(Error::Lost { job_id, reason: "the stream ended before the job".into() }))
    }

    /// What is worth telling of an event.
    fn tell(&mut self, event: Result<JobEvent, Error>) -> Option<InferenceEvent> {
        let job_id = self.job_id();
        match event.map(|event| event.event) {
            Ok(TaskEvent::Started { model, worker_id, attempt, started_at, .. }) => {
                Some(InferenceEvent::Started { job_id, model, worker_id, attempt, started_at })
            }
            Ok(TaskEvent::Token { t, i, .. }) => Some(InferenceEvent::Token { t, i }),
            Ok(TaskEvent::End(end)) => {
                let told = end_event(&end);
                self.outcome = Some(Ok(end));
                Some(told)
            }
            Ok(TaskEvent::Error { code, message, retriable, details }) => {
                let detail = ErrorDetail { retriable, details, ..ErrorDetail::new(code, message) };
                self.outcome = Some(Err(detail.into()));
                None
            }
            Err(error) => {
                self.outcome = Some(Err(error));
                None
            }
            Ok(TaskEvent::Queued { .. } | TaskEvent::Metrics(_) | TaskEvent::Seam { .. }) => None,
        }
    }
}

impl Stream for InferenceStream {
    type Item = InferenceEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<InferenceEvent>> {
        loop {
            let Some(event) = std::task::ready!(self.events.poll_next_unpin(context)) else {
                return Poll::Ready(None);
            };
            if let Some(told) = self.tell(event) {
                return Poll::Ready(Some(told));
            }
        }
    }
}

fn end_event(end: &RunEnd) -> InferenceEvent {
    InferenceEvent::End {
        tokens_in: end.tokens_in,
        tokens_out: end.tokens_out,
        queue_time_ms: end.queue_time_ms,
        prefill_time_ms: end.prefill_time_ms,
        decode_time_ms: end.decode_time_ms,
        stop_reason: end.stop_reason,
    }
}

/// One piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextChunk {
    /// Its text, whole UTF-8, never empty.
    pub text: String,
}

/// Nothing but the text of an answer, piece by piece. Failures are told as by [`InferenceStream`].
#[derive(Debug)]
pub struct TextStream {
    events: InferenceStream,
}

impl TextStream {
    pub(crate) fn new(events: InferenceStream) -> Self {
        Self { events }
    }

    /// The job.
    pub fn job_id(&self) -> JobId {
        self.events.job_id()
    }

    /// The next piece; `None` behind the last one, and when the job or the stream failed.
    pub async fn next(&mut self) -> Option<TextChunk> {
        StreamExt::next(self).await
    }

    /// The next piece; `None` behind the last one.
    ///
    /// # Errors
    /// When the job failed, or its stream broke for good.
    pub async fn try_next(&mut self) -> Result<Option<TextChunk>, Error> {
        let chunk = self.next().await;
        match (&chunk, self.error()) {
            (None, Some(error)) => Err(error.clone()),
            _ => Ok(chunk),
        }
    }

    /// Why the stream ended early, once it has.
    pub fn error(&self) -> Option<&Error> {
        self.events.error()
    }

    /// Reads to the end and gives the figures of the job.
    ///
    /// # Errors
    /// When the job failed, or its stream broke for good.
    pub async fn finish(self) -> Result<RunEnd, Error> {
        self.events.finish().await
    }
}

impl Stream for TextStream {
    type Item = TextChunk;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TextChunk>> {
        loop {
            match std::task::ready!(self.events.poll_next_unpin(context)) {
                Some(InferenceEvent::Token { t, .. }) if !t.is_empty() => {
                    return Poll::Ready(Some(TextChunk { text: t }));
                }
                Some(_) => {}
                None => return Poll::Ready(None),
            }
        }
    }
}
