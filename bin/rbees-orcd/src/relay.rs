//! Token bytes from a worker to a job's log.
//!
//! Frames are kept and sent on as they came; the brain hears only of the first token and of the
//! end. Dropping a relay leaves the run alone: a run ends by itself or by `/cancel`.

use std::sync::Arc;
use std::time::Duration;

use api_types::sse::{Frame, FrameDecoder, MAX_FRAME_BYTES};
use api_types::{Attempt, ErrorCode, ErrorDetail, TaskEvent};
use bytes::Bytes;
use clients::{ClientError, EventStream, WorkerClient};
use orchestrator_core::{BrokenCause, Event, RunKey};

use crate::metrics::Metrics;
use crate::silence::Silence;
use crate::subscribers::{Appended, JobLog};

/// How long a worker may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StallLimits {
    /// Before the first token; progress events count as a sign of life.
    pub first_token: Duration,
    /// Between two events after it.
    pub between_events: Duration,
}

/// Where the events come from.
#[derive(Debug)]
pub enum Source {
    /// A new run: the JSON of its request, in two parts.
    Execute(Vec<u8>, Bytes),
    /// The log of a run that a worker holds, from the event with the id `from` on.
    Resume {
        /// The job.
        job: String,
        /// The try.
        attempt: Attempt,
        /// Id of the first event that is missing.
        from: u64,
    },
}

/// One run's way from its worker to its job's log.
#[derive(Debug)]
pub struct Relay {
    /// Which run.
    pub run: RunKey,
    /// Where its events go.
    pub log: Arc<JobLog>,
    /// The right to write there.
    pub writer: u64,
    /// When to give up on a silent worker.
    pub limits: StallLimits,
    /// Whether the run has shown a token already, to a relay before this one.
    pub had_token: bool,
    /// What is counted.
    pub metrics: Metrics,
}

/// What ended a relay.
#[derive(Debug)]
enum Ending {
    /// The brain is to be told.
    Report(Box<Event>),
    /// Another relay took over; nobody waits for this one.
    Superseded,
}

impl Relay {
    /// Relays until the run's last event or a failure; `report` is told of the first token and of
    /// what ended it.
    pub async fn run(self, worker: WorkerClient, source: Source, report: impl Fn(Event)) {
        // On the heap: what it takes to open a stream is not held as long as the stream is open.
        let ending = match Box::pin(open(worker, source)).await {
            Ok(stream) => self.relay_events(stream, &report).await,
            Err(error) => Ending::Report(Box::new(self.not_opened(&error))),
        };
        if let Ending::Report(event) = ending {
            report(*event);
        }
    }

    async fn relay_events(&self, mut stream: EventStream, report: &impl Fn(Event)) -> Ending {
        let mut decoder = FrameDecoder::with_limit(MAX_FRAME_BYTES);
        let mut had_token = self.had_token;
        let limits = self.limits;
        let mut silence = Silence::new(if had_token { limits.between_events } else { limits.first_token });
        loop {
            let next = tokio::select! {
                biased;
                next = stream.next() => next,
                () = silence.too_long() => return self.broken(BrokenCause::Stalled),
            };
            let chunk = match next {
                None => return self.broken(BrokenCause::Unreachable),
                Some(Err(error)) => return self.broken(cause_of(&error)),
                Some(Ok(chunk)) => chunk,
            };
            decoder.push(&chunk);
            let mut first_token = false;
            loop {
                let frame = match decoder.next_frame() {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(_) => return self.broken(BrokenCause::Protocol),
                };
                if frame.event == "token" && !had_token {
                    (had_token, first_token) = (true, true);
                    silence.limit_to(self.limits.between_events);
                }
                if let Some(ending) = self.take(&frame) {
                    // A run that is over with the bytes that brought its first token was never seen
                    // running: one commit instead of two.
                    return ending;
                }
                silence.is_broken();
            }
            if first_token {
                report(Event::FirstToken(self.run.clone()));
            }
        }
    }

    /// Puts one frame where it belongs; gives what ends the relay, if it does.
    fn take(&self, frame: &Frame) -> Option<Ending> {
        let Some(id) = frame.id else {
            self.log.append_live(self.writer, frame.raw.clone());
            return None;
        };
        match &*frame.event {
            "end" | "error" => Some(self.last_event(frame)),
            name => {
                if name == "token" {
                    self.metrics.tokens_relayed.inc();
                }
                self.append(id, frame)
            }
        }
    }

    fn append(&self, id: u64, frame: &Frame) -> Option<Ending> {
        match self.log.append(self.writer, id, &frame.raw) {
            Appended::Kept | Appended::Known => None,
            Appended::Stale => Some(Ending::Superseded),
            Appended::Gap { .. } | Appended::TooLarge => Some(self.broken(BrokenCause::Protocol)),
        }
    }

    /// The last event is not passed on: the brain fills in what only it knows, and commits first.
    fn last_event(&self, frame: &Frame) -> Ending {
        let event = match frame.task_event() {
            Ok(TaskEvent::End(end)) => Event::StreamEnded { run: self.run.clone(), end },
            Ok(TaskEvent::Error { code, message, retriable, details }) => {
                let mut error = ErrorDetail::new(code, message);
                error.retriable = retriable;
                error.details = details;
                Event::StreamFailed { run: self.run.clone(), error }
            }
            _ => return self.broken(BrokenCause::Protocol),
        };
        Ending::Report(Box::new(event))
    }

    fn broken(&self, cause: BrokenCause) -> Ending {
        Ending::Report(Box::new(Event::StreamBroken { run: self.run.clone(), cause }))
    }

    /// The worker could not be asked, or refused.
    fn not_opened(&self, error: &ClientError) -> Event {
        let run = self.run.clone();
        match error {
            ClientError::Answered { error, .. } if !means_run_unknown(error.code) => {
                Event::StreamFailed { run, error: (**error).clone() }
            }
            _ => Event::StreamBroken { run, cause: cause_of(error) },
        }
    }
}

async fn open(worker: WorkerClient, source: Source) -> Result<EventStream, ClientError> {
    match source {
        Source::Execute(front, tail) => worker.execute_json(&front, tail).await,
        Source::Resume { job, attempt, from } => worker.events(&job, attempt, from).await,
    }
}

/// Whether a worker that answers so knows nothing of the run, or is not the one we meant.
const fn means_run_unknown(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::JobNotFound | ErrorCode::AttemptGone | ErrorCode::StaleIncarnation | ErrorCode::NotFound
    )
}

const fn cause_of(error: &ClientError) -> BrokenCause {
    match error {
        ClientError::Refused { .. } => BrokenCause::Refused,
        ClientError::Unreachable { .. } | ClientError::TimedOut { .. } => BrokenCause::Unreachable,
        ClientError::Answered { .. } => BrokenCause::RunUnknown,
        ClientError::Protocol { .. } => BrokenCause::Protocol,
    }
}
