//! A job's stream on the screen: its text to standard output, all the rest to standard error.

use std::time::{Duration, Instant};

use api_types::event::{Eta, RunEnd};
use api_types::{ErrorDetail, JobId, TaskEvent};
use cli_kit::{ExitStatus, Printer, human_duration};
use llama_orch_sdk::{Client, JobEvents};

use crate::detail;
use crate::signals::asked_to_stop;

/// What Ctrl-C does to the job that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInterrupt {
    /// It is cancelled: whoever stops waiting handed it in.
    Cancel,
    /// It goes on: somebody else handed it in.
    Leave,
}

/// How a watched job went.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The job.
    pub job_id: JobId,
    /// Its figures; absent when the reader of standard output left early.
    pub end: Option<RunEnd>,
    /// From its submission to the first token; absent where somebody else handed it in.
    pub first_token: Option<Duration>,
    /// The whole text.
    pub text: String,
}

/// How much is told beside the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// Queue, worker and figures.
    All,
    /// Nothing; the caller tells its own.
    Nothing,
}

/// Shows a job to its end. `began` is when it was handed in, where the caller did that.
///
/// # Errors
/// When the job failed, the stream broke for good, or somebody pressed Ctrl-C.
pub async fn show(
    printer: &Printer,
    client: &Client,
    events: JobEvents,
    began: Option<Instant>,
    telling: Telling,
    on_interrupt: OnInterrupt,
) -> Result<Watched, ErrorDetail> {
    let job_id = events.job_id();
    let mut screen = Screen::new(printer, job_id, began, telling);
    let outcome = tokio::select! {
        outcome = screen.follow(events) => Some(outcome),
        () = asked_to_stop() => None,
    };
    screen.end_line();
    let left = printer.is_closed() && screen.watched.end.is_none();
    if on_interrupt == OnInterrupt::Cancel && (outcome.is_none() || left) {
        let _ = tokio::time::timeout(Duration::from_secs(3), client.cancel(job_id)).await;
    }
    match outcome {
        Some(outcome) => outcome.map(|()| screen.watched),
        None => Err(interrupted(job_id, on_interrupt)),
    }
}

fn interrupted(job_id: JobId, on_interrupt: OnInterrupt) -> ErrorDetail {
    let next = match on_interrupt {
        OnInterrupt::Cancel => format!("the job was cancelled: rbees jobs show {job_id}"),
        OnInterrupt::Leave => format!("the job goes on: rbees jobs watch {job_id}"),
    };
    detail::interrupted().with_hint(next)
}

struct Screen<'a> {
    printer: &'a Printer,
    telling: Telling,
    began: Option<Instant>,
    watched: Watched,
    /// Jobs before this one, as last told.
    position: Option<u64>,
}

impl<'a> Screen<'a> {
    fn new(printer: &'a Printer, job_id: JobId, began: Option<Instant>, telling: Telling) -> Self {
        let watched = Watched { job_id, end: None, first_token: None, text: String::new() };
        Self { printer, telling, began, watched, position: None }
    }

    async fn follow(&mut self, mut events: JobEvents) -> Result<(), ErrorDetail> {
        while let Some(event) = events.try_next().await.map_err(llama_orch_sdk::Error::into_detail)? {
            if self.printer.is_closed() {
                return Ok(());
            }
            if self.printer.is_json() && self.telling == Telling::All {
                self.printer.json_line(&event.event);
            }
            self.take(event.event)?;
        }
        Ok(())
    }

    fn take(&mut self, event: TaskEvent) -> Result<(), ErrorDetail> {
        match event {
            TaskEvent::Queued { job_id, queue_position, eta_ms } => {
                self.queued(job_id, queue_position, eta_ms);
            }
            TaskEvent::Started { worker_id, model, attempt, .. } => {
                // It may have ended long ago.
                let job_id = self.watched.job_id;
                self.tell(&format!("{job_id} started {model} on {worker_id}, attempt {attempt}"));
            }
            TaskEvent::Token { t, .. } => self.token(&t),
            TaskEvent::Seam { from_worker, to_worker, .. } => {
                self.tell(&format!("{from_worker} was lost; {to_worker} goes on"));
            }
            TaskEvent::End(end) => {
                self.end_line();
                self.tell(&figures(&end, self.watched.first_token));
                self.watched.end = Some(end);
            }
            TaskEvent::Error { code, message, retriable, details } => {
                let hint = format!("rbees jobs why {}", self.watched.job_id);
                let error = ErrorDetail::new(code, message).with_hint(hint);
                return Err(ErrorDetail { retriable, details, ..error });
            }
            TaskEvent::Metrics(_) => {}
        }
        Ok(())
    }

    /// Tells where the job stands; again when half of those before it are gone.
    fn queued(&mut self, job_id: JobId, position: u64, eta: Option<Eta>) {
        if self.position.is_some_and(|told| position > told / 2 || told == 0) {
            return;
        }
        self.position = Some(position);
        let expected = eta.map(expected);
        match (position, expected) {
            (0, None) => {}
            (0, Some(expected)) => self.tell(&format!("{job_id} {expected}")),
            (_, None) => self.tell(&format!("{job_id} waits behind {position}")),
            (_, Some(expected)) => self.tell(&format!("{job_id} waits behind {position} and {expected}")),
        }
    }

    fn token(&mut self, text: &str) {
        if let Some(began) = self.began {
            self.watched.first_token.get_or_insert_with(|| began.elapsed());
        }
        self.watched.text.push_str(text);
        if !self.printer.is_json() {
            self.printer.text(text);
        }
    }

    /// Ends the text's last line, so that what follows starts on its own.
    fn end_line(&self) {
        let open =
            self.watched.end.is_none() && !self.watched.text.is_empty() && !self.watched.text.ends_with('\n');
        if open && !self.printer.is_json() {
            self.printer.text("\n");
        }
    }

    fn tell(&self, text: &str) {
        if self.telling == Telling::All && !self.printer.is_json() {
            self.printer.note(text);
        }
    }
}

/// When a job may end, in words.
pub fn expected(eta: Eta) -> String {
    let span = |ms| human_duration(Duration::from_millis(ms));
    format!("may end in {} (nine in ten: within {})", span(eta.p50), span(eta.p90))
}

/// One line of figures; `first_token` is what a reader of the stream saw.
pub fn figures(end: &RunEnd, first_token: Option<Duration>) -> String {
    let first = first_token
        .map_or_else(String::new, |span| format!(", {:.2} s to the first token", span.as_secs_f64()));
    let rate = rate(end).map_or_else(String::new, |rate| format!(", {rate:.1} tokens/s"));
    let stop = serde_json::to_value(end.stop_reason).ok().and_then(|word| word.as_str().map(str::to_owned));
    format!(
        "{} tokens in, {} out{first}{rate}, stopped by {}",
        end.tokens_in,
        end.tokens_out,
        stop.unwrap_or_default()
    )
}

/// Tokens per second of the decode phase, where there are two tokens to measure between.
pub fn rate(end: &RunEnd) -> Option<f64> {
    let intervals = end.tokens_out.checked_sub(1).filter(|count| *count > 0)?;
    (end.decode_time_ms > 0).then(|| f64::from(intervals) * 1000.0 / end.decode_time_ms as f64)
}

/// The exit status of a job that was watched to its end.
pub fn status(watched: &Watched) -> ExitStatus {
    use api_types::StopReason;
    match watched.end.as_ref().map(|end| end.stop_reason) {
        Some(StopReason::Cancelled) => ExitStatus::Failed,
        Some(StopReason::Eos | StopReason::Stop | StopReason::MaxTokens | StopReason::ToolCall) | None => {
            ExitStatus::Ok
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_the_first_token_is_told_only_by_who_handed_the_job_in() {
        let printer = Printer::new(cli_kit::Format::Json);
        let job_id = "job_01901234-5678-7abc-8def-0123456789ab".parse().expect("an id");
        let first_token = |began| {
            let mut screen = Screen::new(&printer, job_id, began, Telling::Nothing);
            screen.token("");
            screen.watched.first_token
        };
        assert_eq!(first_token(None), None);
        assert!(first_token(Some(Instant::now())).is_some());
    }
}
