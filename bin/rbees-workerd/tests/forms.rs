//! Runs that must keep to a response format, on the fake engine behind the worker's API.

mod common;

use api_types::ErrorCode;
use api_types::event::StopReason;
use api_types::format::{FormatKind, ResponseFormat};
use api_types::worker::{ExecuteRequest, JSON_SCHEMA};
use common::{Worker, request};
use serde_json::{Value, json};

fn with(job_id: &str, format: ResponseFormat) -> ExecuteRequest {
    // The fake model would never end a text by itself: it never says a quote or a bracket.
    let closes = [b'"', b'}', b']'].map(|letter| (u32::from(letter), 83.0));
    ExecuteRequest {
        temperature: Some(1.0),
        logit_bias: closes.into(),
        response_format: Some(format),
        ..request(job_id, "a hive in May", 2000)
    }
}

fn person() -> ResponseFormat {
    ResponseFormat::of_schema(&json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "minLength": 2 },
            "tags": { "type": "array", "minItems": 1, "maxItems": 3, "items": { "enum": ["bee", "hive"] } }
        },
        "required": ["name", "tags"],
        "additionalProperties": false
    }))
}

#[tokio::test]
async fn the_text_follows_the_schema_and_ends_with_it() {
    let worker = Worker::start("fake:bee", &["--slots", "2"]).await;
    let health = worker.client.health().await.expect("healthy");
    assert!(health.facts.capabilities.iter().any(|can| can == JSON_SCHEMA), "{:?}", health.facts);
    for seed in 0..10 {
        let run = ExecuteRequest { seed: Some(seed), ..with(&format!("person-{seed}"), person()) };
        let (text, end) = worker.complete(&run).await;
        assert_eq!(end.stop_reason, StopReason::Eos);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(value["name"].as_str().is_some_and(|name| name.chars().count() >= 2), "{text}");
        let tags = value["tags"].as_array().expect("a list");
        assert!(
            (1..=3).contains(&tags.len()) && tags.iter().all(|tag| tag == "bee" || tag == "hive"),
            "{text}"
        );
        assert_eq!(value.as_object().map(|fields| fields.len()), Some(2), "{text}");
    }
}

#[tokio::test]
async fn an_object_is_an_object_and_text_is_text() {
    let worker = Worker::start("fake:bee", &[]).await;
    let object = ResponseFormat { kind: FormatKind::JsonObject, json_schema: None };
    let (text, _) = worker.complete(&with("object", object)).await;
    assert!(serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok() && text.starts_with('{'), "{text}");
    let free = ExecuteRequest { max_tokens: Some(20), ..with("free", ResponseFormat::default()) };
    let absent = ExecuteRequest { job_id: "absent".into(), response_format: None, ..free.clone() };
    assert_eq!(worker.complete(&free).await.0, worker.complete(&absent).await.0);
}

#[tokio::test]
async fn used_up_tokens_cut_a_text_but_not_a_complete_one() {
    let worker = Worker::start("fake:bee", &[]).await;
    let (whole, end) = worker.complete(&with("whole", person())).await;
    let limited = |name: &str, most: u32| ExecuteRequest { max_tokens: Some(most), ..with(name, person()) };
    let (text, enough) = worker.complete(&limited("enough", end.tokens_out)).await;
    assert_eq!((text.as_str(), enough.stop_reason), (whole.as_str(), StopReason::Eos));
    let (cut, short) = worker.complete(&limited("short", end.tokens_out - 1)).await;
    assert_eq!(short.stop_reason, StopReason::MaxTokens);
    assert!(whole.starts_with(&cut) && cut.len() < whole.len());
}

#[tokio::test]
async fn a_stop_string_cuts_it_too() {
    let worker = Worker::start("fake:bee", &[]).await;
    let stopped = ExecuteRequest { stop: vec!["\"tags\"".into()], ..with("stopped", person()) };
    let (text, end) = worker.complete(&stopped).await;
    assert_eq!(end.stop_reason, StopReason::Stop);
    assert!(text.starts_with('{') && !text.contains("tags"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_before_any_token() {
    let worker = Worker::start("fake:bee", &[]).await;
    let schema = |schema: Value| ResponseFormat::of_schema(&schema);
    for (format, field, word) in [
        (schema(json!({ "type": "strnig" })), "response_format.json_schema.schema", "strnig"),
        (schema(json!({ "uniqueItems": true })), "response_format.json_schema.schema", "uniqueItems"),
        (schema(json!(7)), "response_format.json_schema.schema", "object"),
        (
            ResponseFormat { kind: FormatKind::JsonSchema, json_schema: None },
            "response_format.json_schema",
            "schema",
        ),
    ] {
        let refusal = worker.refusal(&with("refused", format)).await;
        assert_eq!((refusal.code, refusal.field.as_deref()), (ErrorCode::InvalidField, Some(field)));
        assert!(refusal.message.contains(word), "{}", refusal.message);
    }
    assert_eq!(worker.busy().await, 0, "no slot is left taken");
}

#[tokio::test]
async fn several_forms_run_beside_free_text() {
    let worker = Worker::start("fake:bee", &["--slots", "3"]).await;
    let alone = worker.complete(&with("alone", person())).await.0;
    let free = request("free", "a hive in May", 200);
    let (one, two) = (with("one", person()), with("two", person()));
    let (first, second, text) =
        tokio::join!(worker.complete(&one), worker.complete(&two), worker.complete(&free));
    assert_eq!((first.0.as_str(), second.0.as_str()), (alone.as_str(), alone.as_str()));
    let again = ExecuteRequest { job_id: "again".into(), ..free };
    assert_eq!(worker.complete(&again).await.0, text.0);
}
