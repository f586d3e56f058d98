//! Bodies: a whole answer at once, or a stream with its pace.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use api_types::event::StopReason;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::mock::speech::Speech;

/// What every route answers with.
pub type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A JSON answer.
pub fn json(status: u16, body: impl Into<Bytes>) -> Answer {
    whole(status, "application/json", body.into())
}

fn whole(status: u16, content_type: &'static str, body: Bytes) -> Answer {
    with_type(status, content_type, Full::new(body).boxed_unsync())
}

fn with_type(status: u16, content_type: &'static str, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() =
        http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert("content-type", http::HeaderValue::from_static(content_type));
    answer
}

/// A stream of `tokens` tokens, one each `gap`.
pub struct Script {
    /// In which dialect.
    pub speech: Speech,
    /// How many.
    pub tokens: u32,
    /// Time between two of them; at zero all go out in one write.
    pub gap: Duration,
    /// Fires when the stream is to end early.
    pub stop: Arc<Notify>,
    /// Called once all of it was written.
    pub ended: Box<dyn FnOnce() + Send>,
}

enum Step {
    Token(u32),
    Over,
}

impl Script {
    /// The answer that plays it.
    pub fn play(self) -> Answer {
        if self.gap.is_zero() { self.at_once() } else { self.paced() }
    }

    fn at_once(self) -> Answer {
        let mut out = self.speech.start().to_vec();
        for i in 0..self.tokens {
            out.extend_from_slice(&self.speech.token(i));
        }
        out.extend_from_slice(&self.speech.end(self.tokens, StopReason::MaxTokens));
        (self.ended)();
        whole(200, "text/event-stream", out.into())
    }

    fn paced(self) -> Answer {
        let start = Instant::now();
        let Self { speech, tokens, gap, stop, ended } = self;
        let state = (speech, stop, ended, Step::Token(0));
        let frames = stream::unfold(state, move |(speech, stop, ended, step)| async move {
            let Step::Token(i) = step else { return None };
            let cancelled = i > 0
                && tokio::select! {
                    () = tokio::time::sleep_until(start + gap * i) => false,
                    () = stop.notified() => true,
                };
            if cancelled || i == tokens {
                let reason = if cancelled { StopReason::Cancelled } else { StopReason::MaxTokens };
                let last = speech.end(i, reason);
                ended();
                return Some((
                    frame(last),
                    (speech, stop, Box::new(|| ()) as Box<dyn FnOnce() + Send>, Step::Over),
                ));
            }
            let mut bytes = if i == 0 { speech.start().to_vec() } else { Vec::new() };
            bytes.extend_from_slice(&speech.token(i));
            Some((frame(bytes.into()), (speech, stop, ended, Step::Token(i + 1))))
        });
        with_type(200, "text/event-stream", StreamBody::new(frames).boxed_unsync())
    }
}

fn frame(bytes: Bytes) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(bytes))
}
