//! Jobs whose text must have a form go only to workers that keep to it.

use api_types::ErrorDetail;
use api_types::sampling::FieldProblem;
use api_types::worker::JSON_SCHEMA;
use serde_json::{Value, json};

use crate::daemon::{Daemon, until};
use crate::worker::Worker;

/// As text: the order of the properties must arrive.
const SCHEMA: &str = r#"{"type":"object","properties":{"z":{"type":"integer"},"a":{"const":"x  y"}}}"#;
const ABLE: [&str; 3] = ["chat", "completion", JSON_SCHEMA];

fn task() -> String {
    format!(
        r#"{{"prompt":"x","response_format":{{"type":"json_schema","json_schema":{{"name":"n","strict":true,"schema": {SCHEMA} }}}}}}"#
    )
}

async fn submit(daemon: &Daemon, body: String) -> String {
    let (status, accepted) = daemon.post("/v2/tasks", body).await;
    assert_eq!(status, 202, "{accepted}");
    accepted["job_id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_form_waits_for_a_worker_that_keeps_to_it() {
    let daemon = Daemon::start().await;
    let plain = Worker::start(&daemon.url(""), &["a"]).await;
    let job = submit(&daemon, task()).await;
    let free =
        submit(&daemon, json!({ "prompt": "x", "response_format": { "type": "text" } }).to_string()).await;
    daemon.until_status(&free, "completed").await;
    let (_, why) = daemon.get(&format!("/v2/tasks/{job}/why")).await;
    assert_eq!(why["status"], "queued");
    assert!(why.to_string().contains(JSON_SCHEMA), "{why}");

    let able = Worker::able(&daemon.url(""), &["{}"], &ABLE).await;
    daemon.until_status(&job, "completed").await;
    assert_eq!((plain.executed().len(), able.executed().len()), (1, 1));
    let format = able.executed()[0].response_format.clone().expect("a form");
    assert_eq!(format.schema().as_deref(), Some(SCHEMA));
}

#[tokio::test]
async fn the_workers_reason_against_a_schema_reaches_the_client() {
    let daemon = Daemon::start().await;
    let worker = Worker::able(&daemon.url(""), &["a"], &ABLE).await;
    let reason = "the schema cannot be enforced: Unimplemented keys: [\"uniqueItems\"]";
    let problem = FieldProblem::new("response_format.json_schema.schema", "not_supported", reason);
    worker.refuse(Some(ErrorDetail::from(problem)));
    let job = submit(&daemon, task()).await;
    let view = daemon.until_status(&job, "failed").await;
    assert_eq!(view["error"]["code"], "INVALID_FIELD");
    assert_eq!(view["error"]["message"], reason);
    assert_eq!(view["attempt"], 1, "another worker would say the same");
    let chat = json!({ "messages": [{ "role": "user", "content": "x" }], "response_format": { "type": "json_object" } });
    let (status, body) = daemon.post("/v1/chat/completions", chat.to_string()).await;
    assert_eq!(status, 400, "{body}");
    assert!(body["error"]["message"].as_str().is_some_and(|message| message.starts_with(reason)), "{body}");
}

#[tokio::test]
async fn openais_shape_is_ours() {
    let daemon = Daemon::start().await;
    let worker = Worker::able(&daemon.url(""), &["{}"], &ABLE).await;
    let with = |format: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"x"}}],"response_format":{format}}}"#)
    };
    let schema = format!(
        r#"{{"type":"json_schema","json_schema":{{"name":"n","strict":true,"description":"d","schema":{SCHEMA}}}}}"#
    );
    for (format, wanted) in [
        (schema.as_str(), Some(SCHEMA)),
        (r#"{"type":"json_object"}"#, Some(r#"{"type":"object"}"#)),
        (r#"{"type":"text"}"#, None),
        ("null", None),
    ] {
        let (status, body) = daemon.post("/v1/chat/completions", with(format)).await;
        assert_eq!(status, 200, "{format}: {body}");
        let asked = worker.executed().last().expect("it ran").response_format.clone();
        assert_eq!(asked.as_ref().and_then(|format| format.schema()).as_deref(), wanted, "{format}");
    }
    let text = json!({ "prompt": "x", "response_format": { "type": "json_object" } });
    let (status, body) = daemon.post("/v1/completions", text.to_string()).await;
    assert_eq!((status, &body["error"]["param"]), (400, &Value::from("response_format")));
}

#[tokio::test]
async fn white_space_in_a_schema_makes_no_other_request() {
    let daemon = Daemon::start().await;
    let worker = Worker::able(&daemon.url(""), &["{}"], &ABLE).await;
    let keyed = |schema: &str| {
        format!(
            r#"{{"prompt":"x","idempotency_key":"k","response_format":{{"type":"json_schema","json_schema":{{"schema":{schema}}}}}}}"#
        )
    };
    let first = submit(&daemon, keyed(SCHEMA)).await;
    let spaced = SCHEMA.replace(',', " ,\n ");
    assert_eq!(submit(&daemon, keyed(&spaced)).await, first);
    let (status, body) = daemon.post("/v2/tasks", keyed(r#"{"type":"array"}"#)).await;
    assert_eq!((status, &body["error"]["code"]), (409, &Value::from("IDEMPOTENCY_CONFLICT")));
    until("it ran once", || async { (worker.executed().len() == 1).then_some(()) }).await;
}
