//! The frames of an answer, in our dialect and in OpenAI's.

use std::fmt::Write as _;

use api_types::event::{RunEnd, StopReason, TaskEvent};
use api_types::id::{Attempt, WorkerId};
use api_types::sse;
use bytes::Bytes;

use crate::machine;

/// Who is spoken to.
pub enum Speech {
    /// An orchestrator: numbered events.
    Worker {
        /// The job as `/execute` named it.
        job_id: String,
        /// The try.
        attempt: u32,
        /// The number of the first event.
        first_event_id: u64,
        /// Our own id.
        worker_id: WorkerId,
    },
    /// A proxy of OpenAI's API.
    OpenAi,
}

/// The text of a token: a stamp that a reader finds again in any dialect.
pub fn token_text() -> String {
    format!("@t{} ", machine::monotonic_ns())
}

impl Speech {
    /// What goes before the first token.
    pub fn start(&self) -> Bytes {
        match self {
            Self::Worker { job_id, attempt, first_event_id, worker_id } => sse::encode_event(
                Some(*first_event_id),
                &TaskEvent::Started {
                    job_id: job_id.clone(),
                    model: super::server::MODEL.into(),
                    worker_id: worker_id.clone(),
                    attempt: Attempt(*attempt),
                    started_at: "2026-01-01T00:00:00Z".into(),
                },
            ),
            Self::OpenAi => chunk(r#"{"role":"assistant","content":""}"#, "null"),
        }
    }

    /// Token number `i`.
    pub fn token(&self, i: u32) -> Bytes {
        match self {
            Self::Worker { first_event_id, .. } => {
                let event = TaskEvent::Token { t: token_text(), i, k: None };
                sse::encode_event(Some(first_event_id + 1 + u64::from(i)), &event)
            }
            Self::OpenAi => chunk(&format!(r#"{{"content":"{}"}}"#, token_text()), "null"),
        }
    }

    /// What goes after the last of `tokens` tokens.
    pub fn end(&self, tokens: u32, stop_reason: StopReason) -> Bytes {
        match self {
            Self::Worker { first_event_id, .. } => {
                let end = RunEnd {
                    tokens_in: 8,
                    tokens_out: tokens,
                    queue_time_ms: 0,
                    prefill_time_ms: 0,
                    decode_time_ms: 0,
                    stop_reason,
                    seed: Some(0),
                    tokens_cached: None,
                };
                sse::encode_event(Some(first_event_id + 1 + u64::from(tokens)), &TaskEvent::End(end))
            }
            Self::OpenAi => {
                let mut last = chunk("{}", r#""length""#).to_vec();
                last.extend_from_slice(b"data: [DONE]\n\n");
                last.into()
            }
        }
    }
}

fn chunk(delta: &str, finish_reason: &str) -> Bytes {
    let mut out = String::with_capacity(200);
    let _ = write!(
        out,
        r#"data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"{}","choices":[{{"index":0,"delta":{delta},"finish_reason":{finish_reason}}}]}}"#,
        super::server::MODEL
    );
    out.push_str("\n\n");
    out.into()
}
