//! Each kind of bad input has its own words: a code, a status, a field where one is wrong, a hint.

use api_types::worker::WorkerFacts;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::worker::{CONTEXT, Worker};

struct Row {
    what: &'static str,
    body: String,
    status: u16,
    code: &'static str,
    field: Option<&'static str>,
    hint: &'static str,
}

fn row(
    what: &'static str,
    body: Value,
    status: u16,
    code: &'static str,
    field: Option<&'static str>,
    hint: &'static str,
) -> Row {
    Row { what, body: body.to_string(), status, code, field, hint }
}

fn rows() -> Vec<Row> {
    let invalid = |what, body, field| row(what, body, 422, "INVALID_FIELD", Some(field), "");
    vec![
        Row {
            what: "not JSON",
            body: "{oops".to_owned(),
            status: 400,
            code: "INVALID_JSON",
            field: None,
            hint: "JSON object",
        },
        Row {
            what: "empty",
            body: String::new(),
            status: 400,
            code: "INVALID_JSON",
            field: None,
            hint: "JSON object",
        },
        Row {
            what: "two objects",
            body: r#"{"prompt":"x"} {}"#.to_owned(),
            status: 400,
            code: "INVALID_JSON",
            field: None,
            hint: "JSON object",
        },
        row("an array", json!([]), 400, "INVALID_JSON", None, "JSON object"),
        row(
            "unknown field",
            json!({ "prompt": "x", "temprature": 1 }),
            422,
            "INVALID_FIELD",
            Some("temprature"),
            "did you mean `temperature`?",
        ),
        row(
            "unknown field deep down",
            json!({ "prompt": "x", "placement": { "pol": "a" } }),
            422,
            "INVALID_FIELD",
            Some("placement.pol"),
            "did you mean `pool`?",
        ),
        invalid("wrong type", json!({ "prompt": "x", "max_tokens": "many" }), "max_tokens"),
        invalid(
            "wrong type deep down",
            json!({ "messages": [{ "role": "user", "content": 7 }] }),
            "messages.0.content",
        ),
        invalid("a negative number", json!({ "prompt": "x", "max_tokens": -1 }), "max_tokens"),
        invalid("max_tokens 0", json!({ "prompt": "x", "max_tokens": 0 }), "max_tokens"),
        invalid("too hot", json!({ "prompt": "x", "temperature": 2.5 }), "temperature"),
        invalid("top_p 0", json!({ "prompt": "x", "top_p": 0 }), "top_p"),
        invalid("empty prompt", json!({ "prompt": "" }), "prompt"),
        invalid("no prompt", json!({}), "prompt"),
        invalid(
            "both",
            json!({ "prompt": "x", "messages": [{ "role": "user", "content": "y" }] }),
            "messages",
        ),
        invalid("no messages", json!({ "messages": [] }), "messages"),
        invalid("NUL", json!({ "prompt": "a\u{0}b" }), "prompt"),
        invalid(
            "NUL in a message",
            json!({ "messages": [{ "role": "user", "content": "\u{0}" }] }),
            "messages.0.content",
        ),
        invalid("empty role", json!({ "messages": [{ "role": "", "content": "x" }] }), "messages.0.role"),
        invalid(
            "a role that nobody has",
            json!({ "messages": [{ "role": "user", "content": "x" }, { "role": "bee", "content": "x" }] }),
            "messages.1.role",
        ),
        invalid("empty stop string", json!({ "prompt": "x", "stop": [""] }), "stop.0"),
        invalid(
            "unknown form",
            json!({ "prompt": "x", "response_format": { "type": "xml" } }),
            "response_format.type",
        ),
        invalid(
            "no schema",
            json!({ "prompt": "x", "response_format": { "type": "json_schema" } }),
            "response_format.json_schema",
        ),
        invalid(
            "a schema that is no object",
            json!({ "prompt": "x", "response_format":
                { "type": "json_schema", "json_schema": { "schema": [1] } } }),
            "response_format.json_schema.schema",
        ),
        invalid(
            "a schema without its type",
            json!({ "prompt": "x", "response_format":
                { "type": "json_object", "json_schema": { "schema": {} } } }),
            "response_format.json_schema",
        ),
        invalid("a grammar", json!({ "prompt": "x", "grammar": "root ::= \"x\"" }), "grammar"),
        invalid("deadline 0", json!({ "prompt": "x", "deadline_ms": 0 }), "deadline_ms"),
        invalid("empty key", json!({ "prompt": "x", "idempotency_key": "" }), "idempotency_key"),
        invalid("bad pool name", json!({ "prompt": "x", "placement": { "pool": "-x" } }), "placement.pool"),
        invalid(
            "too many names",
            json!({ "prompt": "x", "placement": { "avoid": vec!["w"; 33] } }),
            "placement.avoid",
        ),
        invalid(
            "a name too long",
            json!({ "prompt": "x", "placement": { "prefer": ["w1", "x".repeat(129)] } }),
            "placement.prefer.1",
        ),
        invalid(
            "an empty name",
            json!({ "prompt": "x", "placement": { "require": [""] } }),
            "placement.require.0",
        ),
        row(
            "unknown model",
            json!({ "prompt": "x", "model": "scriptd" }),
            404,
            "MODEL_NOT_FOUND",
            Some("model"),
            "",
        ),
    ]
}

#[tokio::test]
async fn bad_tasks_are_refused_in_their_own_words() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    for row in rows() {
        let (status, body) = daemon.post("/v2/tasks", row.body).await;
        let error = &body["error"];
        assert_eq!((status, error["code"].as_str()), (row.status, Some(row.code)), "{}: {body}", row.what);
        assert_eq!(error["field"].as_str(), row.field, "{}: {body}", row.what);
        let hint = error["hint"].as_str().unwrap_or("");
        assert!(!hint.is_empty() && hint.contains(row.hint), "{}: {body}", row.what);
        assert!(error["correlation_id"].is_string(), "{}: {body}", row.what);
    }
    assert!(worker.executed().is_empty());
}

#[tokio::test]
async fn what_is_not_json_is_refused_with_the_reason() {
    let daemon = Daemon::start().await;
    let deep = format!(r#"{{"prompt":"x","stop":{}"#, "[".repeat(1_000));
    for (body, words) in [
        (b"{\"prompt\":\"a\xffb\"}".to_vec(), "not UTF-8 at byte 12"),
        (br#"{"prompt":"\ud800 "}"#.to_vec(), "hex escape"),
        (br#"{"prompt":"x","temperature":1e400}"#.to_vec(), "number out of range"),
        (br#"{"prompt":"x",}"#.to_vec(), "trailing comma"),
        (br#"{"prompt":"x" "#.to_vec(), "EOF"),
        (deep.into_bytes(), "EOF"),
    ] {
        let text = String::from_utf8_lossy(&body).into_owned();
        let (status, answer) = daemon.post("/v2/tasks", body).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.contains(words) && message.contains("line 1"), "{text}: {answer}");
    }
}

#[tokio::test]
async fn a_field_given_twice_is_named_and_far_names_are_not_suggested() {
    let daemon = Daemon::start().await;
    let twice = r#"{"prompt":"x","prompt":"y"}"#;
    let (status, answer) = daemon.post("/v2/tasks", twice).await;
    let error = &answer["error"];
    assert_eq!((status, error["field"].as_str()), (422, Some("prompt")), "{answer}");
    assert_eq!(error["message"], "prompt is given twice; give it once");
    for name in ["kind", "tools", "user"] {
        let (_, answer) = daemon.post("/v2/tasks", json!({ "prompt": "x", name: 1 }).to_string()).await;
        let hint = answer["error"]["hint"].as_str().unwrap_or_default();
        assert!(!hint.is_empty() && !hint.contains("did you mean"), "{name}: {hint}");
    }
}

#[tokio::test]
async fn a_placement_that_names_nothing_is_refused_for_a_pool_and_warned_of_for_a_worker() {
    let daemon = Daemon::start().await;
    let _worker = Worker::start(&daemon.url(""), &["a"]).await;
    let nowhere = json!({ "prompt": "x", "placement": { "pool": "mars" } }).to_string();
    let (status, body) = daemon.post("/v2/tasks", nowhere).await;
    assert_eq!((status, body["error"]["field"].as_str()), (422, Some("placement.pool")), "{body}");
    assert!(body["error"]["hint"].as_str().is_some_and(|hint| hint.contains("rbees pool list")), "{body}");
    let warned = async |worker: &str| {
        let body = json!({ "prompt": "x", "placement": { "worker": worker } }).to_string();
        let (status, body) = daemon.post("/v2/tasks", body).await;
        assert_eq!(status, 202, "a worker may still come: {body}");
        body["warnings"].to_string()
    };
    assert!(warned("worker-nobody").await.contains("worker-nobody"));
    assert_eq!(warned("worker-fake-0123456789ab").await, "null");
}

#[tokio::test]
async fn errors_never_repeat_the_prompt() {
    let daemon = Daemon::start().await;
    for body in [
        json!({ "prompt": "s3cret", "max_tokens": "s3cret" }),
        json!({ "prompt": ["s3cret"] }),
        json!({ "messages": "s3cret" }),
        json!({ "messages": [{ "role": "user", "content": { "s3cret": 1 } }] }),
    ] {
        let (status, answer) = daemon.post("/v2/tasks", body.to_string()).await;
        assert_eq!(status, 422);
        assert!(!answer.to_string().contains("s3cret"), "{answer}");
    }
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_refused_with_both_counts() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    let prompt = "x".repeat(CONTEXT as usize);
    let (status, body) = daemon.post("/v2/tasks", json!({ "prompt": prompt }).to_string()).await;
    assert_eq!((status, body["error"]["code"].as_str()), (422, Some("CONTEXT_OVERFLOW")), "{body}");
    assert_eq!(body["error"]["details"], json!({ "prompt_tokens": CONTEXT, "context_length": CONTEXT }));
    assert!(worker.executed().is_empty());
    let prompt = "x".repeat(CONTEXT as usize - 1);
    daemon.submit(json!({ "prompt": prompt })).await;
}

#[tokio::test]
async fn a_long_prompt_goes_to_the_larger_context_and_is_refused_where_only_the_smaller_may_run_it() {
    let daemon = Daemon::start().await;
    let change = |facts: &mut WorkerFacts| {
        facts.worker_id = "a-small-one".parse().expect("an id");
        facts.context_length = 1_000;
    };
    let small = Worker::start_with(&daemon.url(""), &["a"], change).await;
    let large = Worker::start(&daemon.url(""), &["a"]).await;
    let prompt = "x".repeat(2_000);
    let job = daemon.submit(json!({ "prompt": prompt })).await;
    daemon.until_status(&job, "completed").await;
    assert_eq!((small.executed().len(), large.executed().len()), (0, 1));
    let (_, why) = daemon.get(&format!("/v2/tasks/{job}/why")).await;
    let text = why.to_string();
    assert!(text.contains("its context holds 1000 tokens, and the job brings at least 1920"), "{text}");
    for placement in [json!({ "worker": "a-small-one" }), json!({ "avoid": ["worker-fake-0123456789ab"] })] {
        let body = json!({ "prompt": prompt, "placement": placement }).to_string();
        let (status, body) = daemon.post("/v2/tasks", body).await;
        assert_eq!((status, body["error"]["code"].as_str()), (422, Some("CONTEXT_OVERFLOW")), "{body}");
        assert_eq!(body["error"]["details"], json!({ "prompt_tokens": 2_000, "context_length": 1_000 }));
    }
}

#[tokio::test]
async fn a_huge_body_is_refused_with_and_without_its_length() {
    let daemon = Daemon::start_with(|config| config.limits.body_bytes = 2_048).await;
    let body = json!({ "prompt": "x".repeat(4_096) }).to_string();
    let (status, answer) = daemon.post("/v2/tasks", body.clone()).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (413, Some("BODY_TOO_LARGE")));
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>(body)]);
    let (status, answer) = daemon.post("/v2/tasks", reqwest::Body::wrap_stream(chunks)).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (413, Some("BODY_TOO_LARGE")));
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up() {
    let change = |config: &mut rbees_orcd::config::Config| {
        config.limits.body_time = std::time::Duration::from_millis(50);
    };
    let daemon = Daemon::start_with(change).await;
    let never = futures_util::stream::pending::<Result<String, std::io::Error>>();
    let (status, answer) = daemon.post("/v2/tasks", reqwest::Body::wrap_stream(never)).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (408, Some("REQUEST_TIMEOUT")));
}

#[tokio::test]
async fn unknown_routes_and_methods_have_our_error_shape() {
    let daemon = Daemon::start().await;
    let (status, body) = daemon.get("/v2/nothing").await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("NOT_FOUND")));
    let answer = daemon.http.put(daemon.url("/v2/tasks")).send().await.expect("an answer");
    assert_eq!(answer.status(), 405);
    assert!(answer.headers().contains_key("allow"));
    let (status, body) = daemon.get("/v2/tasks?limit=0").await;
    assert_eq!((status, body["error"]["field"].as_str()), (422, Some("limit")));
    let request = daemon.http.get(daemon.url("/v2/tasks/job_01901234-5678-7abc-8def-0123456789ab/events"));
    let (status, body) = crate::daemon::answer(request.header("last-event-id", "x")).await;
    assert_eq!((status, body["error"]["code"].as_str()), (400, Some("INVALID_HEADER")));
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let daemon = Daemon::start_with(|config| config.settings.queue_capacity = Some(0)).await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    worker.allow(0);
    let mut refused = None;
    for _ in 0..6 {
        let request = daemon.http.post(daemon.url("/v2/tasks")).body(json!({ "prompt": "x" }).to_string());
        let answer = request.send().await.expect("an answer");
        if answer.status() == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("four slots and no queue do not hold six jobs");
    assert!(refused.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn who_still_sends_a_huge_body_gets_to_read_the_answer() {
    let daemon = Daemon::start().await;
    let (status, answer) = daemon.post("/v2/tasks", vec![b'x'; 40 << 20]).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (413, Some("BODY_TOO_LARGE")));
}

#[tokio::test]
async fn a_path_that_is_no_utf8_has_our_error_shape_on_every_route() {
    let daemon = Daemon::start().await;
    let document = rbees_orcd::http::openapi::text().expect("JSON");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let Some((before, rest)) = path.split_once('{') else { continue };
        let bad = format!("{before}%ff{}", rest.split_once('}').expect("a closed name").1);
        for method in methods.as_object().expect("methods").keys() {
            let method = method.to_uppercase().parse().expect("a method");
            let request = daemon.http.request(method, daemon.url(&bad)).body(r#"{"model":"m"}"#);
            let (status, body) = crate::daemon::answer(request).await;
            let error = &body["error"];
            if path.starts_with("/v1/") {
                assert_eq!((status, error["code"].as_str()), (400, Some("invalid_field")), "{path}: {body}");
            } else {
                assert_eq!((status, error["code"].as_str()), (422, Some("INVALID_FIELD")), "{path}: {body}");
                assert!(error["field"].is_string() && error["correlation_id"].is_string(), "{path}: {body}");
            }
            asked += 1;
        }
    }
    assert!(asked >= 20, "{asked} routes have a name in their path");
}
