//! OpenAI's dialect, byte by byte where clients look.

use serde_json::{Value, json};

use api_types::{ErrorCode, ErrorDetail};

use crate::daemon::Daemon;
use crate::worker::Worker;

fn chat(extra: &Value) -> String {
    let mut body = json!({ "model": "scripted", "messages": [{ "role": "user", "content": "Hi" }] });
    for (field, value) in extra.as_object().expect("an object") {
        body[field] = value.clone();
    }
    body.to_string()
}

/// Removes what differs from run to run, after checking its form.
fn steady(mut body: Value) -> Value {
    let id = body["id"].as_str().expect("an id");
    assert!(id.starts_with("chatcmpl-") || id.starts_with("cmpl-"));
    assert!(body["created"].as_i64().expect("seconds") > 1_700_000_000);
    for field in ["id", "created"] {
        body[field] = Value::Null;
    }
    body
}

async fn stream(daemon: &Daemon, path: &str, body: String) -> Vec<String> {
    let answer = daemon.http.post(daemon.url(path)).body(body).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(answer.headers().contains_key("x-rbees-job-id"));
    let text = answer.text().await.expect("a body");
    text.split("\n\n").filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

fn chunks(lines: &[String]) -> Vec<Value> {
    let values = lines.iter().filter(|line| *line != "[DONE]");
    values.map(|line| steady(serde_json::from_str(line).expect("JSON"))).collect()
}

#[tokio::test]
async fn a_chat_completion_has_the_shape_clients_know() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["Hel", "", "lo"]).await;
    let (status, body) = daemon.post("/v1/chat/completions", chat(&json!({ "user": "ignored" }))).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        steady(body),
        json!({
            "id": null, "object": "chat.completion", "created": null, "model": "scripted",
            "choices": [{ "index": 0, "message": { "role": "assistant", "content": "Hello", "refusal": null },
                "logprobs": null, "finish_reason": "stop" }],
            "usage": { "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10 },
        })
    );
    assert_eq!(worker.executed()[0].max_tokens, None, "what the context leaves");
}

#[tokio::test]
async fn a_chat_stream_has_the_shape_clients_know() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["Hel", "", "lo"]).await;
    let body = chat(
        &json!({ "stream": true, "stream_options": { "include_usage": true }, "max_completion_tokens": 2 }),
    );
    let lines = stream(&daemon, "/v1/chat/completions", body).await;
    assert_eq!(lines.last().map(String::as_str), Some("[DONE]"));
    let chunk = |choices: Value, usage: Value| {
        json!({ "id": null, "object": "chat.completion.chunk", "created": null, "model": "scripted",
            "choices": choices, "usage": usage })
    };
    let delta = |delta: Value, finish: Value| {
        chunk(json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]), Value::Null)
    };
    assert_eq!(
        chunks(&lines),
        [
            delta(json!({ "role": "assistant", "content": "" }), Value::Null),
            delta(json!({ "content": "Hel" }), Value::Null),
            delta(json!({}), json!("length")),
            chunk(json!([]), json!({ "prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9 })),
        ]
    );
}

#[tokio::test]
async fn text_completions_come_whole_and_as_a_stream() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    let (status, body) = daemon.post("/v1/completions", json!({ "prompt": ["x"] }).to_string()).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["object"], "text_completion");
    assert_eq!(
        body["choices"][0],
        json!({ "index": 0, "text": "ab", "logprobs": null, "finish_reason": "stop" })
    );
    let lines =
        stream(&daemon, "/v1/completions", json!({ "prompt": "x", "stream": true }).to_string()).await;
    let texts: Vec<_> = chunks(&lines).iter().map(|chunk| chunk["choices"][0]["text"].clone()).collect();
    assert_eq!(texts, ["a", "b", ""]);
    assert!(chunks(&lines).iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn content_parts_are_joined_and_other_parts_refused() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    let parts = json!({ "messages": [{ "role": "user", "content": [
        { "type": "text", "text": "one " }, { "type": "text", "text": "two" }] }] });
    assert_eq!(daemon.post("/v1/chat/completions", chat(&parts)).await.0, 200);
    let messages = worker.executed()[0].messages.clone().expect("messages");
    assert_eq!(messages[0].content, "one two");
    let image = json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "x" } }] }] });
    let (status, body) = daemon.post("/v1/chat/completions", chat(&image)).await;
    assert_eq!((status, body["error"]["param"].as_str()), (400, Some("messages.0.content.0")));
}

#[tokio::test]
async fn what_is_not_built_is_refused_by_name() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    for (field, value) in [
        ("tools", json!([{ "type": "function" }])),
        ("response_format.type", json!({ "type": "grammar" })),
        ("response_format.json_schema", json!({ "type": "json_schema" })),
        ("n", json!(2)),
        ("logprobs", json!(true)),
        ("functions", json!([{}])),
    ] {
        let given = field.split('.').next().expect("a name");
        let (status, body) = daemon.post("/v1/chat/completions", chat(&json!({ given: value }))).await;
        assert_eq!(status, 400, "{field}: {body}");
        assert_eq!(body["error"]["param"], field);
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert!(body["error"]["message"].is_string() && body["error"]["code"].is_string());
    }
    for harmless in
        [json!({ "tools": [] }), json!({ "n": 1 }), json!({ "response_format": { "type": "text" } })]
    {
        assert_eq!(daemon.post("/v1/chat/completions", chat(&harmless)).await.0, 200, "{harmless}");
    }
    assert_eq!(worker.executed().len(), 3);
}

#[tokio::test]
async fn early_failures_have_a_status_in_streams_too() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    worker.refuse(Some(ErrorDetail::new(ErrorCode::ContextOverflow, "too long")));
    let (status, body) = daemon.post("/v1/chat/completions", chat(&json!({ "stream": true }))).await;
    assert_eq!((status, body["error"]["code"].as_str()), (400, Some("context_length_exceeded")), "{body}");
    let (status, body) = daemon.post("/v1/chat/completions", chat(&json!({ "model": "nope" }))).await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("model_not_found")));
    let (status, body) = daemon.get("/v1/nothing").await;
    assert_eq!((status, body["error"]["type"].as_str()), (404, Some("not_found_error")));
}

#[tokio::test]
async fn models_are_listed() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let (_, list) = daemon.get("/v1/models").await;
    assert_eq!(list["object"], "list");
    assert_eq!(
        (list["data"][0]["id"].as_str(), list["data"][0]["object"].as_str()),
        (Some("scripted"), Some("model"))
    );
    assert_eq!(daemon.get("/v1/models/scripted").await.0, 200);
    assert_eq!(daemon.get("/v1/models/nope").await.0, 404);
}
