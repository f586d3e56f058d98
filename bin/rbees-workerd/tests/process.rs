//! The process around the runs: start, bad input, guards, registration, drain.

mod common;

use std::net::TcpListener;
use std::process::Stdio;

use api_types::worker::{ExecuteRequest, RunRef};
use api_types::worker::{
    FailedCall, HeartbeatCall, HeartbeatReply, ReadyCall, ReadyReply, WorkerCapabilities, WorkerReport,
    WorkerStatus,
};
use api_types::{Attempt, ErrorCode, ErrorDetail, Incarnation};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use common::{Stream, Worker, command, finished, request, until};
use serde_json::json;
use std::sync::{Arc, Mutex};

#[tokio::test]
async fn every_bad_input_has_its_code_and_field() {
    let worker = Worker::start("fake:bee", &[]).await;
    let huge = format!(r#"{{"job_id":"j","prompt":"{}"}}"#, "x".repeat(17 * 1024 * 1024));
    let nested = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let table = [
        ("{", 400, "INVALID_JSON", None),
        (nested.as_str(), 422, "INVALID_FIELD", None),
        (r#"{"job_id":"j","prompt":"x","temprature":1}"#, 422, "INVALID_FIELD", Some("temprature")),
        (r#"{"job_id":"j","prompt":7}"#, 422, "INVALID_FIELD", Some("prompt")),
        (r#"{"prompt":"x"}"#, 422, "INVALID_FIELD", Some("job_id")),
        (r#"{"job_id":"","prompt":"x"}"#, 422, "INVALID_FIELD", Some("job_id")),
        (r#"{"job_id":"j"}"#, 422, "INVALID_FIELD", Some("prompt")),
        (r#"{"job_id":"j","prompt":""}"#, 422, "INVALID_FIELD", Some("prompt")),
        (r#"{"job_id":"j","prompt":"x","messages":[]}"#, 422, "INVALID_FIELD", Some("prompt")),
        (r#"{"job_id":"j","messages":[]}"#, 422, "INVALID_FIELD", Some("messages")),
        ("{\"job_id\":\"j\",\"prompt\":\"a\\u0000b\"}", 422, "INVALID_FIELD", Some("prompt")),
        (r#"{"job_id":"j","prompt":"x","max_tokens":0}"#, 422, "INVALID_FIELD", Some("max_tokens")),
        (r#"{"job_id":"j","prompt":"x","max_tokens":-1}"#, 422, "INVALID_FIELD", Some("max_tokens")),
        (r#"{"job_id":"j","prompt":"x","temperature":3}"#, 422, "INVALID_FIELD", Some("temperature")),
        (r#"{"job_id":"j","prompt":"x","attempt":0}"#, 422, "INVALID_FIELD", Some("attempt")),
        (r#"{"job_id":"j","prompt":"x","stop":[""]}"#, 422, "INVALID_FIELD", Some("stop.0")),
        (
            r#"{"job_id":"j","prompt":"x","first_event_id":18446744073709551615}"#,
            422,
            "INVALID_FIELD",
            Some("first_event_id"),
        ),
        (r#"{"job_id":"j","prompt":"x","time_limit_ms":0}"#, 422, "INVALID_FIELD", Some("time_limit_ms")),
        (r#"{"job_id":"j","prompt":"x","model":"other"}"#, 404, "MODEL_NOT_FOUND", Some("model")),
        (r#"{"job_id":"j","prompt":"x","incarnation":1}"#, 409, "STALE_INCARNATION", None),
        (huge.as_str(), 413, "BODY_TOO_LARGE", None),
    ];
    for (body, status, code, field) in table {
        let (got, answer) = worker.post("/execute", body).await;
        let shown = &body[..body.len().min(80)];
        assert_eq!((got, answer["error"]["code"].as_str()), (status, Some(code)), "{shown}: {answer}");
        if field.is_some() {
            assert_eq!(answer["error"]["field"].as_str(), field, "{shown}");
        }
        assert!(answer["error"]["correlation_id"].is_string(), "{shown}");
    }
    assert_eq!(worker.post("/nothing", "").await.0, 404);
    assert_eq!(worker.post("/health", "").await.0, 405);
    assert_eq!(worker.post("/tokenize", r#"{"text":"a","messages":[]}"#).await.0, 422);
    assert_eq!(worker.busy().await, 0);
}

#[tokio::test]
async fn hosts_origins_and_secrets_are_checked() {
    let secret = "a-secret-of-some-length";
    let worker = Worker::spawn("fake:bee", &[], Some(secret)).await;
    worker.wait_for(WorkerStatus::Ready).await;
    let metrics = |header: &'static str, value: &'static str| {
        worker.http.get(format!("{}/metrics", worker.uri)).bearer_auth(secret).header(header, value).send()
    };
    assert_eq!(metrics("host", "localhost").await.expect("answer").status().as_u16(), 200);
    assert_eq!(metrics("host", "evil.example").await.expect("answer").status().as_u16(), 421);
    assert_eq!(metrics("origin", "http://evil.example").await.expect("answer").status().as_u16(), 403);
    assert_eq!(metrics("sec-fetch-site", "cross-site").await.expect("answer").status().as_u16(), 403);
    let bare = worker.http.get(format!("{}/metrics", worker.uri)).send().await.expect("answer");
    assert_eq!(bare.status().as_u16(), 401);
    let open = worker.http.get(format!("{}/health", worker.uri)).send().await.expect("answer");
    assert_eq!(open.status().as_u16(), 200);
    worker.complete(&request("j", "hello", 3)).await;
}

#[tokio::test]
async fn health_and_report_show_loading_then_ready() {
    let worker = Worker::spawn("fake:bee?load_ms=1500", &["--model-name", "bee-1"], None).await;
    let loading = worker.client.health().await.expect("answers while loading");
    assert_eq!(loading.status, WorkerStatus::Loading);
    let refused = worker.refusal(&request("j", "hello", 3)).await;
    assert_eq!(refused.code, ErrorCode::WorkerLoading);
    until("progress is shown", || async {
        let share = worker.client.health().await.ok()?.load_progress?;
        (share > 0.0).then_some(())
    })
    .await;
    let ready = worker.wait_for(WorkerStatus::Ready).await;
    assert_eq!(
        (ready.facts.model.as_str(), ready.facts.devices.as_slice()),
        ("bee-1", &["fake".to_owned()][..])
    );
    until("the report says ready", || async {
        (worker.report().health.status == WorkerStatus::Ready).then_some(())
    })
    .await;
}

/// Starts a worker that ends by itself; gives its exit code, its last report and what it printed.
fn end_of(model: &str, flags: &[&str]) -> (Option<i32>, Option<WorkerReport>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.json");
    let output = command(model, flags, None)
        .arg("--report")
        .arg(&report)
        .stderr(Stdio::piped())
        .output()
        .expect("it runs");
    let report = std::fs::read(report).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    (output.status.code(), report, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_load_that_fails_is_reported_and_ends_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let damaged = folder.path().join("damaged.gguf");
    std::fs::write(&damaged, b"GGUF\x09\0\0\0").expect("written");
    let damaged = damaged.display().to_string();
    for (model, flags, wanted) in [
        ("fake:bee?refuse=because", &[][..], ErrorCode::ModelLoadFailed),
        ("fake:bee?speed=9", &[], ErrorCode::InvalidConfig),
        ("fake:bee", &["--backend", "cpu"], ErrorCode::InvalidConfig),
        (damaged.as_str(), &[], ErrorCode::CorruptModel),
        ("no-such-file.gguf", &[], ErrorCode::ModelLoadFailed),
    ] {
        let (code, report, _) = end_of(model, &[&["--port", "0"], flags].concat());
        let health = report.expect("a report").health;
        assert_eq!((code, health.status), (Some(1), WorkerStatus::Failed), "{model}");
        let error = health.error.expect("a reason");
        assert_eq!(error.code, wanted, "{model}");
        if wanted == ErrorCode::CorruptModel {
            assert_eq!(error.details.expect("details"), json!({ "offset": 4, "reason": "unknown_version" }));
        }
    }
}

#[test]
fn a_taken_port_is_told_with_a_way_out() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("free");
    let port = taken.local_addr().expect("bound").port().to_string();
    let (code, report, printed) = end_of("fake:bee", &["--port", &port]);
    let error = report.expect("a report").health.error.expect("a reason");
    assert_eq!((code, error.code), (Some(1), ErrorCode::PortTaken));
    assert!(error.hint.is_some_and(|hint| hint.contains("--port")));
    assert!(printed.contains("PORT_TAKEN"), "{printed}");
}

#[test]
fn an_open_address_without_a_secret_is_refused() {
    let (code, _, printed) = end_of("fake:bee", &["--bind", "0.0.0.0", "--port", "0"]);
    assert_eq!(code, Some(2));
    assert!(printed.contains("RBEES_WORKER_SECRET"), "{printed}");
}

#[test]
fn capabilities_are_printed_without_loading() {
    let output = command("fake:bee", &["--capabilities", "--json"], None).output().expect("it runs");
    let can: WorkerCapabilities = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(can.backends.contains(&"fake".to_owned()));
    assert_eq!(can.backends.contains(&"cpu".to_owned()), cfg!(feature = "llama_cpp"));
    assert_eq!(can.protocol, api_types::PROTOCOL);
}

#[test]
fn the_kept_openapi_document_is_the_one_that_the_code_makes() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_rbees-workerd")).arg("openapi").output();
    let made = String::from_utf8(output.expect("it runs").stdout).expect("text");
    let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/worker.json"));
    assert!(made == kept.expect("kept"), "renew it: rbees-workerd openapi > openapi/worker.json");
}

#[tokio::test]
async fn sigterm_lets_runs_end_and_takes_no_new_ones() {
    let mut worker = Worker::start("fake:bee?pace_ms=20", &[]).await;
    let mut stream = Stream::of(worker.client.execute(&request("j", "hello", 40)).await.expect("accepted"));
    stream.first_token().await;
    worker.terminate();
    worker.wait_for(WorkerStatus::Draining).await;
    assert_eq!(worker.refusal(&request("k", "hello", 3)).await.code, ErrorCode::WorkerDraining);
    let again = Stream::of(worker.client.events("j", Attempt(1), 0).await.expect("kept")).rest().await;
    assert_eq!(finished(&again).1.tokens_out, 40);
    drop(stream);
    assert_eq!(worker.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_sigterm_does_not_wait() {
    let mut worker = Worker::start("fake:bee?pace_ms=20", &[]).await;
    let mut stream = Stream::of(worker.client.execute(&request("j", "hello", 4000)).await.expect("accepted"));
    stream.first_token().await;
    worker.terminate();
    worker.wait_for(WorkerStatus::Draining).await;
    worker.terminate();
    let last = stream.rest().await.pop().expect("a last event").1;
    assert!(last.is_last(), "{last:?}");
    assert_eq!(worker.exit().await.code(), Some(0));
}

/// An orchestrator that does what the test says and remembers what it heard.
#[derive(Clone, Default)]
struct Orchestrator {
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
struct Heard {
    ready: Vec<ReadyCall>,
    heartbeats: Vec<HeartbeatCall>,
    failed: Vec<FailedCall>,
    refuse_ready: u32,
    forget: bool,
    drop_runs: Vec<RunRef>,
    drain: bool,
    credential: Option<String>,
}

impl Orchestrator {
    async fn start() -> (Self, String) {
        let this = Self::default();
        let router = Router::new()
            .route("/v2/workers/ready", post(ready))
            .route("/v2/workers/{id}/heartbeat", post(heartbeat))
            .route("/v2/workers/{id}/failed", post(failed))
            .with_state(this.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("free");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (this, url)
    }

    fn look<T>(&self, at: impl FnOnce(&mut Heard) -> T) -> T {
        at(&mut self.heard.lock().expect("not poisoned"))
    }
}

async fn ready(
    State(this): State<Orchestrator>,
    headers: axum::http::HeaderMap,
    Json(call): Json<ReadyCall>,
) -> Response {
    let credential = headers.get("authorization").and_then(|value| value.to_str().ok());
    this.look(|heard| {
        heard.credential = credential.map(str::to_owned);
        if heard.refuse_ready > 0 {
            heard.refuse_ready -= 1;
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        heard.ready.push(call);
        let incarnation = Incarnation(heard.ready.len() as u64 * 10);
        Json(ReadyReply { incarnation, heartbeat_ms: 100, drop_runs: Vec::new() }).into_response()
    })
}

async fn heartbeat(
    State(this): State<Orchestrator>,
    Path(_): Path<String>,
    Json(call): Json<HeartbeatCall>,
) -> Response {
    this.look(|heard| {
        heard.heartbeats.push(call);
        if std::mem::take(&mut heard.forget) {
            let error = ErrorDetail::new(ErrorCode::StaleIncarnation, "who?");
            return (StatusCode::CONFLICT, Json(error.into_body())).into_response();
        }
        Json(HeartbeatReply { drop_runs: std::mem::take(&mut heard.drop_runs), drain: heard.drain })
            .into_response()
    })
}

async fn failed(
    State(this): State<Orchestrator>,
    Path(_): Path<String>,
    Json(call): Json<FailedCall>,
) -> Json<()> {
    this.look(|heard| heard.failed.push(call));
    Json(())
}

#[tokio::test]
async fn a_worker_registers_beats_and_registers_again_when_forgotten() {
    let (orchestrator, url) = Orchestrator::start().await;
    orchestrator.look(|heard| heard.refuse_ready = 2);
    let worker = Worker::start("fake:bee?pace_ms=20", &["--orchestrator-url", &url]).await;
    let known = |number: u64| {
        let client = worker.client.clone();
        async move {
            until("the incarnation is known", || async {
                (client.health().await.ok()?.incarnation == Some(Incarnation(number))).then_some(())
            })
            .await;
        }
    };
    known(10).await;
    let asked = ExecuteRequest { incarnation: Some(Incarnation(10)), ..request("j", "hello", 4000) };
    let mut stream = Stream::of(worker.client.execute(&asked).await.expect("accepted"));
    stream.first_token().await;
    until("a heartbeat lists the run", || async {
        orchestrator
            .look(|heard| heard.heartbeats.last().is_some_and(|beat| beat.runs.len() == 1))
            .then_some(())
    })
    .await;

    orchestrator.look(|heard| heard.forget = true);
    known(20).await;
    let again = orchestrator.look(|heard| heard.ready.last().expect("a call").clone());
    assert_eq!(again.runs, [RunRef { job_id: "j".into(), attempt: Attempt(1), ended: false }]);
    let late = ExecuteRequest { incarnation: Some(Incarnation(10)), ..request("k", "hello", 3) };
    assert_eq!(worker.refusal(&late).await.code, ErrorCode::StaleIncarnation);

    orchestrator.look(|heard| heard.drop_runs = again.runs.clone());
    until("the run was dropped", || async { (worker.busy().await == 0).then_some(()) }).await;
    assert!(worker.client.events("j", Attempt(1), 0).await.is_err());
}

#[tokio::test]
async fn a_drain_in_the_reply_ends_the_worker_in_order() {
    let (orchestrator, url) = Orchestrator::start().await;
    let mut worker = Worker::start("fake:bee", &["--orchestrator", &url]).await;
    orchestrator.look(|heard| heard.drain = true);
    assert_eq!(worker.exit().await.code(), Some(0));
    let said = orchestrator.look(|heard| heard.failed.pop()).expect("a goodbye");
    assert_eq!(said.error.code, ErrorCode::ShuttingDown);
}

#[tokio::test]
async fn the_orchestrator_gets_the_token_of_the_file() {
    let (orchestrator, url) = Orchestrator::start().await;
    let token = "a token that is long enough".replace(' ', "-");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{token}\n")).expect("written");
    let file = file.to_str().expect("UTF-8");
    let worker =
        Worker::start("fake:bee", &["--orchestrator", &url, "--orchestrator-token-file", file]).await;
    until("it has registered", || async { worker.client.health().await.ok()?.incarnation }).await;
    assert_eq!(orchestrator.look(|heard| heard.credential.clone()), Some(format!("Bearer {token}")));
}

#[tokio::test]
async fn a_failed_load_is_told_to_the_orchestrator() {
    let (orchestrator, url) = Orchestrator::start().await;
    let mut worker = Worker::spawn("fake:bee?refuse=because", &["--orchestrator", &url], None).await;
    assert_eq!(worker.exit().await.code(), Some(1));
    let failed = orchestrator.look(|heard| heard.failed.pop()).expect("told");
    assert_eq!(failed.error.code, ErrorCode::ModelLoadFailed);
}

#[tokio::test]
async fn the_callback_is_tried_until_it_is_taken() {
    let (orchestrator, url) = Orchestrator::start().await;
    orchestrator.look(|heard| heard.refuse_ready = 2);
    let callback = format!("{url}/v2/workers/ready");
    let worker = Worker::start("fake:bee", &["--callback-url", &callback, "--pool-id", "mac"]).await;
    let call = until("the callback arrives", || async { orchestrator.look(|heard| heard.ready.pop()) }).await;
    assert_eq!((call.status, call.facts.uri), (WorkerStatus::Ready, worker.uri.clone()));
    assert_eq!(call.facts.pool_id.map(|id| id.to_string()).as_deref(), Some("mac"));
}

#[tokio::test]
async fn an_orphan_ends_only_where_it_was_told_to_and_after_its_runs() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", nobody.local_addr().expect("bound"));
    drop(nobody);
    let flags = ["--orchestrator", url.as_str(), "--orphaned-after-ms", "1000"];
    let stays = Worker::start("fake:bee", &flags).await;
    let mut goes =
        Worker::start("fake:bee?pace_ms=20", &[&flags[..], &["--exit-when-orphaned"]].concat()).await;
    let request = request("j", "hello", 150);
    let mut stream = Stream::of(goes.client.execute(&request).await.expect("accepted"));
    goes.wait_for(WorkerStatus::Draining).await;
    let (_, end) = finished(&stream.rest().await);
    assert_eq!(end.tokens_out, 150, "the run went on to its end");
    assert!(goes.exit().await.success());
    assert_eq!(stays.client.health().await.expect("alive").status, WorkerStatus::Ready);
}
