//! `/v1/chat/completions`.

use std::fmt;
use std::fmt::Write as _;

use api_types::CorrelationId;
use api_types::event::RunEnd;
use api_types::format::ResponseFormat;
use api_types::sampling::FieldProblem;
use api_types::task::{ChatMessage, TaskRequest};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::IdempotencyKey;
use super::request::{Common, refuse_unbuilt};
use super::run::{Chunks, Run, Usage, finish_reason, usage};
use crate::http::body::{Raw, from_value, parse, starts_object};
use crate::http::tasks::with_job;
use crate::http::{ApiError, App};

/// The conversation; the other fields are read as [`Common`].
#[derive(Debug, Deserialize)]
struct Chat {
    messages: Vec<Message>,
    max_completion_tokens: Option<u32>,
    #[serde(skip)]
    response_format: Option<ResponseFormat>,
}

/// Read from the text of the body: the order of a schema's properties means something.
#[derive(Debug, Deserialize)]
struct Formed {
    response_format: Option<ResponseFormat>,
}

/// All of a request that asks for nothing unusual, read in one pass. What is odd about any other is
/// found out, and named, by reading it field by field.
#[derive(Debug, Deserialize)]
struct Plain {
    messages: Vec<Message>,
    max_completion_tokens: Option<u32>,
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    unusual: Unusual,
}

/// Fields of which any value but `null` is looked at closely.
#[derive(Debug, Deserialize)]
struct Unusual {
    tools: Option<IgnoredAny>,
    functions: Option<IgnoredAny>,
    tool_choice: Option<IgnoredAny>,
    function_call: Option<IgnoredAny>,
    response_format: Option<IgnoredAny>,
    n: Option<IgnoredAny>,
    logprobs: Option<IgnoredAny>,
    top_logprobs: Option<IgnoredAny>,
    audio: Option<IgnoredAny>,
    modalities: Option<IgnoredAny>,
    prediction: Option<IgnoredAny>,
    web_search_options: Option<IgnoredAny>,
}

impl Unusual {
    const fn is_absent(&self) -> bool {
        let Self {
            tools: None,
            functions: None,
            tool_choice: None,
            function_call: None,
            response_format: None,
            n: None,
            logprobs: None,
            top_logprobs: None,
            audio: None,
            modalities: None,
            prediction: None,
            web_search_options: None,
        } = self
        else {
            return false;
        };
        true
    }
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Debug)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// Written out: serde would hold a long text twice to find out which of the two it is.
impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrParts;
        impl<'de> Visitor<'de> for TextOrParts {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Content, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(parts)).map(Content::Parts)
            }
        }
        deserializer.deserialize_any(TextOrParts)
    }
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
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key with the same request is the same job and gives its answer, unless that job ended only because its connection closed")),
    responses((status = 200, description = "A completion, or a stream of chunks", body = Value),
        (status = 400, body = Value), (status = 404, body = Value), (status = 409, body = Value),
        (status = 429, body = Value)))]
pub async fn create_chat_completion(
    State(app): State<App>,
    Extension(correlation_id): Extension<CorrelationId>,
    key: IdempotencyKey,
    Raw(bytes): Raw,
) -> Result<Response, ApiError> {
    let (chat, mut common) = read(&bytes)?;
    common.max_tokens = chat.max_completion_tokens.or(common.max_tokens);
    let (stream, with_usage) = common.streaming();
    let messages = chat.messages.into_iter().enumerate().map(|(at, message)| text_message(at, message));
    let request = TaskRequest {
        messages: Some(messages.collect::<Result<_, _>>()?),
        response_format: chat.response_format,
        ..common.into_task()?
    };
    drop(bytes);
    let run = Run::start(&app, request, key, &correlation_id).await?;
    if stream {
        return run.stream(ChatChunks { with_usage }).await;
    }
    let (run, text, end) = run.collect().await?;
    let answer = Answer {
        id: id(&run),
        object: "chat.completion",
        created: run.created,
        model: &run.model,
        choices: [Choice {
            index: 0,
            message: Said { role: "assistant", content: &text, refusal: None },
            logprobs: None,
            finish_reason: finish_reason(end.stop_reason),
        }],
        usage: usage(&end),
    };
    Ok(with_job(Json(answer).into_response(), run.job_id))
}

/// A completion as it stands on the wire.
#[derive(Serialize)]
struct Answer<'a> {
    id: String,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: [Choice<'a>; 1],
    usage: Usage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Said<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Said<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

/// The conversation and what else is asked for.
fn read(bytes: &[u8]) -> Result<(Chat, Common), ApiError> {
    if let Ok(Plain { messages, max_completion_tokens, common, unusual }) = serde_json::from_slice(bytes)
        && unusual.is_absent()
        && starts_object(bytes)
    {
        return Ok((Chat { messages, max_completion_tokens, response_format: None }, common));
    }
    let body: Value = parse(bytes)?;
    refuse_unbuilt(
        &body,
        &[
            ("tools", &[]),
            ("functions", &[]),
            ("tool_choice", &[json!("none"), json!("auto")]),
            ("function_call", &[json!("none"), json!("auto")]),
            ("n", &[json!(1)]),
            ("logprobs", &[json!(false)]),
            ("top_logprobs", &[json!(0)]),
            ("audio", &[]),
            ("modalities", &[json!(["text"])]),
            ("prediction", &[]),
            ("web_search_options", &[]),
        ],
    )?;
    let Formed { response_format } = parse(bytes)?;
    Ok((Chat { response_format, ..from_value(&body)? }, from_value(&body)?))
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
    /// A chunk whose choices are the JSON given.
    fn chunk(&self, run: &Run, choices: fmt::Arguments<'_>, usage: Option<Usage>) -> Bytes {
        let mut out = String::with_capacity(320);
        // Writing to a String cannot fail, and a text always has a JSON form.
        let model = serde_json::to_string(&run.model).unwrap_or_default();
        let _ = write!(
            out,
            r#"data: {{"id":"{}","object":"chat.completion.chunk","created":{},"model":{model},"choices":[{choices}]"#,
            id(run),
            run.created,
        );
        if self.with_usage {
            let usage = serde_json::to_string(&usage).unwrap_or_default();
            let _ = write!(out, r#","usage":{usage}"#);
        }
        out.push_str("}\n\n");
        out.into()
    }

    fn delta(&self, run: &Run, delta: fmt::Arguments<'_>, finish: Option<&str>) -> Bytes {
        let finish = serde_json::to_string(&finish).unwrap_or_default();
        let choice =
            format_args!(r#"{{"index":0,"delta":{{{delta}}},"logprobs":null,"finish_reason":{finish}}}"#);
        self.chunk(run, choice, None)
    }
}

impl Chunks for ChatChunks {
    fn opening(&self, run: &Run) -> Bytes {
        self.delta(run, format_args!(r#""role":"assistant","content":"""#), None)
    }

    fn text(&self, run: &Run, json: &str) -> Bytes {
        self.delta(run, format_args!(r#""content":{json}"#), None)
    }

    fn end(&self, run: &Run, end: &RunEnd) -> Bytes {
        let mut all = self.delta(run, format_args!(""), Some(finish_reason(end.stop_reason))).to_vec();
        if self.with_usage {
            all.extend_from_slice(&self.chunk(run, format_args!(""), Some(usage(end))));
        }
        all.extend_from_slice(b"data: [DONE]\n\n");
        all.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_way_and_the_long_read_the_same() {
        for body in [
            r#"{"model":"m","messages":[{"role":"user","content":"a\u00e9\n"},{"role":"x"}],"max_tokens":3,"stop":["a"],"stream":true,"seed":-1,"tools":null,"user":"u"}"#,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],"stream_options":{"include_usage":true},"logit_bias":{"7":1.5},"durability":"memory"}"#,
        ] {
            let plain: Plain = serde_json::from_str(body).expect("plain");
            assert!(plain.unusual.is_absent());
            let value: Value = serde_json::from_str(body).expect("JSON");
            let (chat, common): (Chat, Common) =
                (from_value(&value).expect("a chat"), from_value(&value).expect("fields"));
            assert_eq!(
                format!("{:?}", (plain.messages, plain.common)),
                format!("{:?}", (chat.messages, common))
            );
        }
    }

    #[test]
    fn what_is_unusual_goes_the_long_way() {
        let plain: Plain = serde_json::from_str(r#"{"messages":[],"n":2}"#).expect("plain");
        assert!(!plain.unusual.is_absent());
        assert!(read(br#"{"messages":[],"n":2}"#).is_err());
        assert!(read(br#"{"messages":[],"n":1,"tools":[]}"#).is_ok());
    }
}
