//! `/v1/completions`.

use api_types::CorrelationId;
use api_types::event::RunEnd;
use api_types::sampling::FieldProblem;
use api_types::task::TaskRequest;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde_json::{Value, json};

use super::IdempotencyKey;
use super::request::{Common, refuse_unbuilt};
use super::run::{Chunks, Run, data, finish_reason, usage};
use crate::http::body::{Body, from_value};
use crate::http::tasks::with_job;
use crate::http::{ApiError, App};

/// Continues a text, as a whole or as a stream.
#[utoipa::path(post, path = "/v1/completions", tag = "openai", request_body = Value,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key with the same request is the same job and gives its answer, unless that job ended only because its connection closed")),
    responses((status = 200, description = "A completion, or a stream of chunks", body = Value),
        (status = 400, body = Value), (status = 404, body = Value), (status = 409, body = Value),
        (status = 429, body = Value)))]
pub async fn create_completion(
    State(app): State<App>,
    Extension(correlation_id): Extension<CorrelationId>,
    key: IdempotencyKey,
    Body(body): Body<Value>,
) -> Result<Response, ApiError> {
    refuse_unbuilt(
        &body,
        &[
            ("suffix", &[json!("")]),
            ("echo", &[json!(false)]),
            ("n", &[json!(1)]),
            ("best_of", &[json!(1)]),
            ("logprobs", &[]),
            ("response_format", &[json!({ "type": "text" })]),
        ],
    )?;
    let common: Common = from_value(&body)?;
    let (stream, with_usage) = common.streaming();
    let request = TaskRequest { prompt: Some(prompt(&body)?), ..common.into_task()? };
    let run = Run::start(&app, request, key, &correlation_id).await?;
    if stream {
        return run.stream(TextChunks { with_usage }).await;
    }
    let (run, text, end) = run.collect().await?;
    let choices = choices(&text, Some(finish_reason(end.stop_reason)));
    let mut answer = completion(&run, &choices);
    if let Some(answer) = answer.as_object_mut() {
        answer.insert("usage".to_owned(), json!(usage(&end)));
    }
    Ok(with_job(Json(answer).into_response(), run.job_id))
}

/// The one text to continue.
fn prompt(body: &Value) -> Result<String, FieldProblem> {
    let refused = |reason, message: &str| Err(FieldProblem::new("prompt", reason, message));
    match body.get("prompt") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(texts)) => match texts.as_slice() {
            [Value::String(text)] => Ok(text.clone()),
            _ => refused("not_supported", "prompt is a list; one text per request is supported"),
        },
        None | Some(Value::Null) => refused("missing", "prompt is missing; give a text"),
        Some(_) => refused("wrong_type", "prompt has the wrong type; allowed is a text"),
    }
}

fn choices(text: &str, finish: Option<&str>) -> Value {
    json!([{ "index": 0, "text": text, "logprobs": null, "finish_reason": finish }])
}

fn completion(run: &Run, choices: &Value) -> Value {
    json!({
        "id": format!("cmpl-{}", run.job_id.uuid().simple()), "object": "text_completion",
        "created": run.created, "model": run.model, "choices": choices,
    })
}

struct TextChunks {
    with_usage: bool,
}

impl TextChunks {
    fn chunk(&self, run: &Run, choices: &Value, usage: &Value) -> Bytes {
        let mut chunk = completion(run, choices);
        if let (true, Some(chunk)) = (self.with_usage, chunk.as_object_mut()) {
            chunk.insert("usage".to_owned(), usage.clone());
        }
        data(&chunk)
    }
}

impl Chunks for TextChunks {
    fn opening(&self, _: &Run) -> Bytes {
        Bytes::new()
    }

    fn text(&self, run: &Run, json: &str) -> Bytes {
        let text: String = serde_json::from_str(json).unwrap_or_default();
        self.chunk(run, &choices(&text, None), &Value::Null)
    }

    fn end(&self, run: &Run, end: &RunEnd) -> Bytes {
        let last = choices("", Some(finish_reason(end.stop_reason)));
        let mut all = self.chunk(run, &last, &Value::Null).to_vec();
        if self.with_usage {
            all.extend_from_slice(&self.chunk(run, &json!([]), &json!(usage(end))));
        }
        all.extend_from_slice(b"data: [DONE]\n\n");
        all.into()
    }
}
