//! `/v1/chat/completions`.

use api_types::CorrelationId;
use api_types::event::RunEnd;
use api_types::sampling::FieldProblem;
use api_types::task::{ChatMessage, TaskRequest};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::request::{Common, refuse_unbuilt};
use super::run::{Chunks, Run, data, finish_reason, usage};
use crate::http::body::{Body, from_value};
use crate::http::tasks::with_job;
use crate::http::{ApiError, App};

/// The conversation; the other fields are read as [`Common`].
#[derive(Debug, Deserialize)]
struct Chat {
    messages: Vec<Message>,
    max_completion_tokens: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

/// Answers a conversation, as a whole or as a stream.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", request_body = Value,
    responses((status = 200, description = "A completion, or a stream of chunks", body = Value),
        (status = 400, body = Value), (status = 404, body = Value), (status = 429, body = Value)))]
pub async fn create_chat_completion(
    State(app): State<App>,
    Extension(correlation_id): Extension<CorrelationId>,
    Body(body): Body<Value>,
) -> Result<Response, ApiError> {
    refuse_unbuilt(
        &body,
        &[
            ("tools", &[]),
            ("functions", &[]),
            ("tool_choice", &[json!("none"), json!("auto")]),
            ("function_call", &[json!("none"), json!("auto")]),
            ("response_format", &[json!({ "type": "text" })]),
            ("n", &[json!(1)]),
            ("logprobs", &[json!(false)]),
            ("top_logprobs", &[json!(0)]),
            ("audio", &[]),
            ("modalities", &[json!(["text"])]),
            ("prediction", &[]),
            ("web_search_options", &[]),
        ],
    )?;
    let chat: Chat = from_value(&body)?;
    let mut common: Common = from_value(&body)?;
    common.max_tokens = chat.max_completion_tokens.or(common.max_tokens);
    let (stream, with_usage) = common.streaming();
    let messages = chat.messages.into_iter().enumerate().map(|(at, message)| text_message(at, message));
    let request = TaskRequest { messages: Some(messages.collect::<Result<_, _>>()?), ..common.into_task()? };
    let run = Run::start(&app, request, &correlation_id).await?;
    if stream {
        return run.stream(ChatChunks { with_usage }).await;
    }
    let (run, text, end) = run.collect().await?;
    let answer = json!({
        "id": id(&run), "object": "chat.completion", "created": run.created, "model": run.model,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": text, "refusal": null },
            "logprobs": null,
            "finish_reason": finish_reason(end.stop_reason),
        }],
        "usage": usage(&end),
    });
    Ok(with_job(Json(answer).into_response(), run.job_id))
}

fn text_message(at: usize, message: Message) -> Result<ChatMessage, FieldProblem> {
    let content = match message.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => joined(at, parts)?,
    };
    Ok(ChatMessage { role: message.role, content })
}

fn joined(at: usize, parts: Vec<Part>) -> Result<String, FieldProblem> {
    let mut text = String::new();
    for (part_at, part) in parts.into_iter().enumerate() {
        match (part.kind.as_str(), part.text) {
            ("text", Some(part)) => text.push_str(&part),
            (kind, _) => {
                let field = format!("messages.{at}.content.{part_at}");
                let message =
                    format!("content parts of type {kind:?} are not supported; allowed is \"text\"");
                return Err(FieldProblem::new(field, "not_supported", message));
            }
        }
    }
    Ok(text)
}

fn id(run: &Run) -> String {
    format!("chatcmpl-{}", run.job_id.uuid().simple())
}

struct ChatChunks {
    with_usage: bool,
}

impl ChatChunks {
    fn chunk(&self, run: &Run, choices: &Value, usage: &Value) -> Bytes {
        let mut chunk = json!({
            "id": id(run), "object": "chat.completion.chunk", "created": run.created, "model": run.model,
            "choices": choices,
        });
        if let (true, Some(chunk)) = (self.with_usage, chunk.as_object_mut()) {
            chunk.insert("usage".to_owned(), usage.clone());
        }
        data(&chunk)
    }

    fn delta(&self, run: &Run, delta: &Value, finish: Option<&str>) -> Bytes {
        let choices = json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
        self.chunk(run, &choices, &Value::Null)
    }
}

impl Chunks for ChatChunks {
    fn opening(&self, run: &Run) -> Bytes {
        self.delta(run, &json!({ "role": "assistant", "content": "" }), None)
    }

    fn text(&self, run: &Run, text: &str) -> Bytes {
        self.delta(run, &json!({ "content": text }), None)
    }

    fn end(&self, run: &Run, end: &RunEnd) -> Bytes {
        let mut all = self.delta(run, &json!({}), Some(finish_reason(end.stop_reason))).to_vec();
        if self.with_usage {
            all.extend_from_slice(&self.chunk(run, &json!([]), &usage(end)));
        }
        all.extend_from_slice(b"data: [DONE]\n\n");
        all.into()
    }
}
