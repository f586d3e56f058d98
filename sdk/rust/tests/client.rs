//! The client against a server that cuts, turns away and fails as scripted.

mod server;

use api_types::event::RunEnd;
use api_types::{Attempt, ErrorCode, JobId, StopReason, TaskEvent};
use llama_orch_sdk::{Client, EnqueueRequest, Error, InferenceEvent, InferenceRequest, TaskRequest};
use server::{Server, frames, json, stream};

const JOB: &str = "job_01901234-5678-7abc-8def-0123456789ab";

fn job() -> JobId {
    JOB.parse().expect("a job id")
}

fn end(tokens_out: u32) -> TaskEvent {
    TaskEvent::End(RunEnd {
        tokens_in: 4,
        tokens_out,
        queue_time_ms: 1,
        prefill_time_ms: 2,
        decode_time_ms: 3,
        stop_reason: StopReason::MaxTokens,
        seed: Some(1),
        tokens_cached: None,
    })
}

/// `queued`, `started`, `count` tokens, `end`: ids 0 to count + 2.
fn run(count: u32) -> Vec<TaskEvent> {
    let mut events = vec![
        TaskEvent::Queued { job_id: job(), queue_position: 0, eta_ms: None },
        TaskEvent::Started {
            job_id: JOB.into(),
            model: "m".into(),
            worker_id: "worker-fake-1".parse().expect("an id"),
            attempt: Attempt::FIRST,
            started_at: "2026-01-01T00:00:00Z".into(),
        },
    ];
    events.extend((0..count).map(|i| TaskEvent::Token { t: format!("{i} "), i, k: None }));
    events.push(end(count));
    events
}

fn cut(bytes: &[u8], portion: usize) -> &[u8] {
    &bytes[..portion.min(bytes.len())]
}

fn prompt(text: &str) -> TaskRequest {
    TaskRequest { prompt: Some(text.into()), ..TaskRequest::default() }
}

/// Serves a run of `count` tokens, `portion` bytes a connection, whatever frame that cuts.
async fn cutting_server(count: u32, portion: usize) -> Server {
    Server::start(move |_, request| {
        let from = request.header("last-event-id").map_or(0, |id| id.parse::<usize>().expect("a number") + 1);
        let body = frames(&run(count), from);
        stream(JOB, cut(&body, portion))
    })
    .await
}

#[tokio::test]
async fn a_stream_that_is_cut_anywhere_loses_and_doubles_nothing() {
    // Every connection carries at least one whole frame, so that each one gets further.
    let longest =
        run(40).iter().map(|event| api_types::sse::encode_event(Some(99), event).len()).max().expect("some");
    for portion in [longest, longest + 1, longest + 57, 2 * longest, 100_000] {
        let server = cutting_server(40, portion).await;
        let mut events = Client::new(&server.url).submit(prompt("x")).await.expect("accepted");
        let mut read = Vec::new();
        while let Some(event) = events.try_next().await.expect("taken up again") {
            assert_eq!(event.id, Some(read.len() as u64));
            read.push(event.event);
        }
        assert_eq!(read, run(40), "portions of {portion}");
        let requests = server.requests();
        assert_eq!(requests.iter().filter(|request| request.line.starts_with("POST")).count(), 1);
        assert_eq!(requests.len() > 1, portion < 2000, "cut where it should be");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_for_want_of_a_reader_is_taken_up_again() {
    let server = Server::start(|n, request| {
        let from = request.header("last-event-id").map_or(0, |id| id.parse::<usize>().expect("a number") + 1);
        if n > 0 {
            return stream(JOB, &frames(&run(9), from));
        }
        let mut body = frames(&run(9)[..4], from);
        let event = TaskEvent::Error {
            code: ErrorCode::ClientCut,
            message: "nothing was taken".into(),
            retriable: true,
            details: None,
        };
        body.extend_from_slice(&api_types::sse::encode_event(None, &event));
        stream(JOB, &body)
    })
    .await;
    let mut events = Client::new(&server.url).submit(prompt("x")).await.expect("accepted");
    let mut read = Vec::new();
    while let Some(event) = events.try_next().await.expect("taken up again") {
        read.push(event.event);
    }
    assert_eq!(read, run(9));
}

#[tokio::test]
async fn events_seen_before_are_dropped_and_missing_ones_noticed() {
    // A server that ignores Last-Event-ID and sends everything again.
    let server =
        Server::start(|n, _| stream(JOB, cut(&frames(&run(9), 0), if n == 0 { 700 } else { 100_000 }))).await;
    let mut events = Client::new(&server.url).submit(prompt("x")).await.expect("accepted");
    let mut read = Vec::new();
    while let Some(event) = events.try_next().await.expect("taken up again") {
        read.push(event.event);
    }
    assert_eq!(read, run(9));

    // A server that forgets an event.
    let server = Server::start(|_, request| {
        let from = request.header("last-event-id").map_or(0, |id| id.parse::<usize>().expect("a number") + 2);
        stream(JOB, cut(&frames(&run(9), from), if from == 0 { 700 } else { 200 }))
    })
    .await;
    let mut events = Client::new(&server.url).submit(prompt("x")).await.expect("accepted");
    let error = loop {
        match events.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a gap went unnoticed"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn a_stream_outlives_an_orchestrator_that_turns_it_away_for_a_while() {
    let server = Server::start(|n, request| match n {
        0 => stream(JOB, &frames(&run(5), 0)[..500]),
        1 => json(
            "503 Service Unavailable",
            "",
            r#"{"error":{"code":"SHUTTING_DOWN","message":"stopping","retriable":true}}"#,
        ),
        2 => Vec::new(),
        _ => {
            let from =
                request.header("last-event-id").expect("where to go on").parse::<usize>().expect("a number");
            stream(JOB, &frames(&run(5), from + 1))
        }
    })
    .await;
    let text = {
        let mut text = String::new();
        let mut stream = Client::new(&server.url).enqueue_stream(prompt("x")).await.expect("accepted");
        while let Some(chunk) = stream.try_next().await.expect("taken up again") {
            text.push_str(&chunk.text);
        }
        text
    };
    assert_eq!(text, "0 1 2 3 4 ");
}

#[tokio::test]
async fn a_job_that_failed_is_an_error_with_its_code_and_not_an_end() {
    let server = Server::start(|_, _| {
        let mut events = run(2);
        events.pop();
        events.push(TaskEvent::Error {
            code: ErrorCode::WorkerLost,
            message: "gone".into(),
            retriable: true,
            details: None,
        });
        stream(JOB, &frames(&events, 0))
    })
    .await;
    let client = Client::new(&server.url);
    let mut stream = client.stream(prompt("x")).await.expect("accepted");
    let mut seen = Vec::new();
    let error = loop {
        match stream.try_next().await {
            Ok(Some(event)) => seen.push(event),
            Ok(None) => panic!("the failure went unnoticed"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), ErrorCode::WorkerLost);
    assert!(!seen.iter().any(|event| matches!(event, InferenceEvent::End { .. })));
    let finished = client.stream(prompt("x")).await.expect("accepted").finish().await;
    assert_eq!(finished.expect_err("failed").code(), ErrorCode::WorkerLost);
}

#[tokio::test]
async fn a_request_to_wait_is_honoured_and_the_job_is_handed_in_once() {
    let server = Server::start(|n, _| match n {
        0 => json(
            "429 Too Many Requests",
            "retry-after: 1\r\n",
            r#"{"error":{"code":"QUEUE_FULL","message":"full","retriable":true,"retry_after_ms":1000}}"#,
        ),
        // The line breaks before the answer: nobody knows whether the job was taken.
        1 => Vec::new(),
        _ => json("202 Accepted", "", &format!(
            r#"{{"job_id":"{JOB}","status":"queued","queue_position":0,"events_url":"/v2/tasks/{JOB}/events","correlation_id":"c","durability":"durable"}}"#
        )),
    })
    .await;
    let began = std::time::Instant::now();
    let accepted = Client::new(&server.url).enqueue(prompt("x")).await.expect("accepted in the end");
    assert!(began.elapsed() >= std::time::Duration::from_secs(1), "it did not wait");
    assert_eq!(accepted.job_id, job());
    let bodies: Vec<String> = server.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies.len(), 3);
    assert!(bodies[0].contains("idempotency_key") && bodies.iter().all(|body| *body == bodies[0]));
}

#[tokio::test]
async fn refusals_are_told_at_once_with_their_code_and_hint() {
    let server = Server::start(|_, _| {
        json(
            "404 Not Found",
            "",
            r#"{"error":{"code":"MODEL_NOT_FOUND","message":"no such model","hint":"rbees models","retriable":false}}"#,
        )
    })
    .await;
    let error = Client::new(&server.url).enqueue(prompt("x")).await.expect_err("refused").into_detail();
    assert_eq!((error.code, error.hint.as_deref()), (ErrorCode::ModelNotFound, Some("rbees models")));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn an_orchestrator_that_is_not_there_is_told_apart() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let error = Client::new(url).health().await.expect_err("nobody there");
    assert_eq!(error.code(), ErrorCode::OrchestratorUnreachable);
    let error = Client::new("localhost:8080").health().await.expect_err("no address");
    assert_eq!(error.code(), ErrorCode::InvalidConfig);
}

#[tokio::test]
async fn the_credential_travels_as_a_bearer_token() {
    let server = Server::start(|_, _| json("200 OK", "", r#"{"models":[]}"#)).await;
    let client = Client::new(&server.url).with_token("rbk_secret");
    assert!(!format!("{client:?}").contains("rbk_secret"));
    client.models().await.expect("an answer");
    assert_eq!(server.requests()[0].header("authorization"), Some("bearer rbk_secret"));
}

/// The two ways of use that applications were promised, to the letter.
#[tokio::test]
async fn the_promised_snippets_compile_and_run() -> Result<(), Error> {
    let server = cutting_server(3, 100_000).await;
    let client = Client::new(&server.url);

    let request = EnqueueRequest { prompt: "Hello", model: "llama3", max_tokens: 100 };
    let mut said = String::new();
    let mut stream = client.enqueue_stream(request).await?;
    while let Some(event) = stream.next().await {
        said += &event.text;
    }
    assert_eq!(said, "0 1 2 ");

    let request = InferenceRequest {
        prompt: "Once upon a time",
        max_tokens: 100,
        temperature: 0.7,
        model: Some("qwen-0.5b".to_string()),
    };
    let mut told = Vec::new();
    let mut stream = client.stream(request).await?;
    while let Some(event) = stream.next().await {
        match event {
            InferenceEvent::Started { job_id, model, .. } => {
                told.push(format!("Started: {job_id} on {model}"))
            }
            InferenceEvent::Token { t, i } => told.push(format!("{i}: {t}")),
            InferenceEvent::End { tokens_out, .. } => told.push(format!("Generated {tokens_out} tokens")),
        }
    }
    assert_eq!(told.first().map(String::as_str), Some(format!("Started: {JOB} on m").as_str()));
    assert_eq!(told.last().map(String::as_str), Some("Generated 3 tokens"));
    Ok(())
}

#[tokio::test]
async fn dropping_a_stream_closes_its_connection() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let left = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut connection, _) = listener.accept().await.expect("a client");
        let mut buffer = [0; 4096];
        let _ = connection.read(&mut buffer).await;
        connection.write_all(&stream(JOB, &frames(&run(1), 0)[..400])).await.expect("sent");
        while connection.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    });
    let mut events = Client::new(url).submit(prompt("x")).await.expect("accepted");
    assert!(events.try_next().await.expect("an event").is_some());
    drop(events);
    left.await.expect("the server saw the connection end");
}
