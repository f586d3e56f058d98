//! The events of one job, over as many connections as it takes.

use std::pin::Pin;
use std::task::{Context, Poll};

use api_types::sse::{Frame, FrameDecoder};
use api_types::{ErrorCode, JobId, TaskEvent};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use reqwest::{Method, Response};

use crate::error::Error;
use crate::position::{Position, Verdict};
use crate::send::{Carrier, Failure, chain};
use crate::sleep::{backoff, sleep};

/// How often a broken stream is taken up again without a new event before it is given up; with
/// the pauses between, a little over a minute.
const TRIES: u32 = 40;

type Body = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// One event of a job, with its number where it has one.
#[derive(Debug, Clone, PartialEq)]
pub struct JobEvent {
    /// Its sequence number in the job, from 0; absent for what only a live reader sees.
    pub id: Option<u64>,
    /// What happened.
    pub event: TaskEvent,
}

/// All events of one job up to its `end` or `error`. Yields an `Err` only when the stream broke
/// for good; a job that failed yields [`TaskEvent::Error`].
pub struct JobEvents {
    job_id: JobId,
    events: Pin<Box<dyn Stream<Item = Result<JobEvent, Error>> + Send>>,
}

impl std::fmt::Debug for JobEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobEvents").field("job_id", &self.job_id).finish_non_exhaustive()
    }
}

impl JobEvents {
    /// The job.
    pub fn job_id(&self) -> JobId {
        self.job_id
    }

    /// The next event; `None` behind the last.
    ///
    /// # Errors
    /// When the stream broke and could not be taken up again.
    pub async fn try_next(&mut self) -> Result<Option<JobEvent>, Error> {
        self.events.next().await.transpose()
    }

    /// Reads what a submission answered with.
    pub(crate) fn of_response(carrier: Carrier, job_id: JobId, response: Response) -> Self {
        let reader = Reader::new(carrier, job_id, Position::behind(None), Some(response));
        Self::of_reader(reader)
    }

    /// Opens the stream of a job that was handed in before.
    pub(crate) async fn open(carrier: Carrier, job_id: JobId, after: Option<u64>) -> Result<Self, Error> {
        let position = Position::behind(after);
        let response = connect(&carrier, job_id, position).await.map_err(Failure::into_error)?;
        Ok(Self::of_reader(Reader::new(carrier, job_id, position, Some(response))))
    }

    fn of_reader(reader: Reader) -> Self {
        let job_id = reader.job_id;
        let events = stream::unfold(Some(reader), |reader| async {
            let mut reader = reader?;
            match reader.next_event().await {
                Ok(event) => {
                    let rest = (!event.event.is_last()).then_some(reader);
                    Some((Ok(event), rest))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        Self { job_id, events: Box::pin(events) }
    }
}

impl Stream for JobEvents {
    type Item = Result<JobEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.as_mut().poll_next(context)
    }
}

async fn connect(carrier: &Carrier, job_id: JobId, position: Position) -> Result<Response, Failure> {
    let request = carrier.request(Method::GET, &format!("/v2/tasks/{job_id}/events"));
    let request = match position.last_id {
        Some(id) => request.header("last-event-id", id.to_string()),
        None => request,
    };
    carrier.send_once(request).await
}

/// Reads frames and takes the stream up again when it breaks.
struct Reader {
    carrier: Carrier,
    job_id: JobId,
    position: Position,
    body: Option<Body>,
    decoder: FrameDecoder,
    /// Tries since the last event.
    tries: u32,
}

/// Why no frame came.
struct Broken(String);

impl Reader {
    fn new(carrier: Carrier, job_id: JobId, position: Position, response: Option<Response>) -> Self {
        let body = response.map(into_body);
        Self { carrier, job_id, position, body, decoder: FrameDecoder::default(), tries: 0 }
    }

    async fn next_event(&mut self) -> Result<JobEvent, Error> {
        loop {
            match self.next_frame().await {
                Ok(frame) if is_cut(&frame) => {
                    self.take_up_again("the orchestrator cut the stream: nothing was taken".into()).await?;
                }
                Ok(frame) => {
                    if let Some(event) = self.take(&frame)? {
                        self.tries = 0;
                        return Ok(event);
                    }
                }
                Err(Broken(reason)) => self.take_up_again(reason).await?,
            }
        }
    }

    async fn next_frame(&mut self) -> Result<Frame, Broken> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(Broken(error.to_string())),
            }
            let body = self.body.as_mut().ok_or_else(|| Broken("not connected".into()))?;
            match body.next().await {
                Some(Ok(bytes)) => self.decoder.push(&bytes),
                Some(Err(error)) => return Err(Broken(chain(&error))),
                None => return Err(Broken("the connection ended before the job".into())),
            }
        }
    }

    /// The event in the frame, unless it was seen before or is of a kind made later than this.
    fn take(&mut self, frame: &Frame) -> Result<Option<JobEvent>, Error> {
        match self.position.judge_id(frame.id) {
            Verdict::Take => {}
            Verdict::Drop => return Ok(None),
            Verdict::Gap(reason) => return Err(self.carrier.protocol(reason)),
        }
        let event = match frame.task_event() {
            Ok(event) => event,
            Err(_) if !is_known(&frame.event) => return Ok(None),
            Err(error) => return Err(self.carrier.protocol(format!("an event cannot be read: {error}"))),
        };
        match self.position.judge_token(&event) {
            Verdict::Gap(reason) => Err(self.carrier.protocol(reason)),
            Verdict::Take | Verdict::Drop => Ok(Some(JobEvent { id: frame.id, event })),
        }
    }

    /// Connects again behind the last event, with a pause that grows while nothing new comes.
    async fn take_up_again(&mut self, mut reason: String) -> Result<(), Error> {
        self.body = None;
        self.decoder = FrameDecoder::default();
        while self.tries < TRIES {
            self.tries += 1;
            sleep(backoff(self.tries)).await;
            match connect(&self.carrier, self.job_id, self.position).await {
                Ok(response) => {
                    self.body = Some(into_body(response));
                    return Ok(());
                }
                Err(Failure::Final(error @ Error::Api(_))) if !error.code().retriable() => return Err(error),
                Err(failure) => reason = failure.into_error().to_string(),
            }
        }
        Err(Error::Lost { job_id: self.job_id, reason })
    }
}

fn into_body(response: Response) -> Body {
    Box::pin(response.bytes_stream())
}

/// Whether this is about the connection and not about the job: we have read nothing for too long.
fn is_cut(frame: &Frame) -> bool {
    let is_cut = |event| matches!(event, TaskEvent::Error { code: ErrorCode::ClientCut, .. });
    frame.event == "error" && frame.task_event().is_ok_and(is_cut)
}

fn is_known(name: &str) -> bool {
    ["queued", "started", "token", "metrics", "seam", "end", "error"].contains(&name)
}
