//! The mock's routes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api_types::id::{Attempt, WorkerId};
use api_types::worker::{ACKNOWLEDGE_HEADER, CancelRequest, ExecuteRequest, Tokenized};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::mock::answer::{Answer, Script, json};
use crate::mock::register;
use crate::mock::runs::Runs;
use crate::mock::speech::{Speech, token_text};

/// The model that the mock claims to run.
pub const MODEL: &str = "mock";
/// Runs at once: more than any measurement opens.
pub const SLOTS: u32 = 8_192;
/// Tokens of context it claims.
pub const CONTEXT: u32 = 1_000_000;

/// What the routes share.
pub struct Mock {
    /// Where it listens.
    pub address: SocketAddr,
    /// Runs that each worker takes at once.
    pub slots: u32,
    /// The first worker, which answers for all.
    pub name: WorkerId,
    /// What it runs.
    pub runs: Runs,
}

/// The name of worker number `index`.
pub fn worker_id(index: u16) -> anyhow::Result<WorkerId> {
    Ok(format!("worker-fake-{index:012x}").parse()?)
}

/// Listens, registers when asked to, and serves.
pub async fn serve(args: &super::Args) -> anyhow::Result<()> {
    // On every loopback address: each worker has one.
    let listener = TcpListener::bind(("0.0.0.0", 0)).await?;
    let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr()?.port()));
    let mock = Arc::new(Mock { address, slots: args.slots, name: worker_id(0)?, runs: Runs::default() });
    write_address(&args.address_file, address)?;
    for index in 0..args.workers {
        if let Some(orchestrator) = args.orchestrator {
            tokio::spawn(register::keep(orchestrator, Arc::clone(&mock), worker_id(index)?, index));
        }
    }
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve_connection(stream, Arc::clone(&mock)));
    }
}

/// Whole or not at all, so that a reader never sees half an address.
fn write_address(path: &std::path::Path, address: SocketAddr) -> anyhow::Result<()> {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, address.to_string())?;
    Ok(std::fs::rename(draft, path)?)
}

async fn serve_connection(stream: TcpStream, mock: Arc<Mock>) {
    let service = service_fn(move |request| {
        let mock = Arc::clone(&mock);
        async move { Ok::<_, Infallible>(route(&mock, request).await) }
    });
    // A client that leaves is no event worth a word.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn route(mock: &Arc<Mock>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return json(400, "{}");
    };
    let path = head.uri.path();
    match (&head.method, path) {
        (&Method::POST, "/v1/chat/completions") => chat(&body),
        (&Method::POST, "/execute") => {
            acknowledge_list(mock, head.headers.get(ACKNOWLEDGE_HEADER));
            execute(mock, &body)
        }
        (&Method::POST, "/cancel") => cancel(mock, &body),
        (&Method::POST, "/tokenize") => tokenize(&body),
        (&Method::DELETE, _) => acknowledge(mock, path),
        (&Method::GET, "/v1/models") => json(
            200,
            format!(
                r#"{{"object":"list","data":[{{"id":"{MODEL}","object":"model","created":0,"owned_by":"mock"}}]}}"#
            ),
        ),
        (&Method::GET, "/health") => health(mock),
        (&Method::GET, "/get_server_info" | "/get_model_info" | "/server_info" | "/model_info") => {
            json(200, format!(r#"{{"model_path":"{MODEL}","served_model_name":"{MODEL}"}}"#))
        }
        _ => json(404, "{}"),
    }
}

/// What of a chat request matters here.
#[derive(Deserialize)]
struct Chat {
    // Some routers rewrite the older name.
    #[serde(default = "one", alias = "max_completion_tokens")]
    max_tokens: u32,
    #[serde(default)]
    stream: bool,
}

fn one() -> u32 {
    1
}

fn chat(body: &[u8]) -> Answer {
    let Ok(request) = serde_json::from_slice::<Chat>(body) else { return json(400, "{}") };
    if request.stream {
        let script = Script {
            speech: Speech::OpenAi,
            tokens: request.max_tokens,
            gap: gap_in(body),
            stop: Arc::new(Notify::new()),
            ended: Box::new(|| ()),
        };
        return script.play();
    }
    let content: String = (0..request.max_tokens).map(|_| token_text()).collect();
    json(
        200,
        format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"{MODEL}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{content}"}},"finish_reason":"length"}}],"usage":{{"prompt_tokens":8,"completion_tokens":{0},"total_tokens":{1}}}}}"#,
            request.max_tokens,
            request.max_tokens + 8
        ),
    )
}

fn execute(mock: &Arc<Mock>, body: &[u8]) -> Answer {
    let request: ExecuteRequest = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => {
            return json(422, format!(r#"{{"error":{{"code":"INVALID_JSON","message":"{error}"}}}}"#));
        }
    };
    let attempt = request.attempt.unwrap_or(Attempt::FIRST).0;
    let (mock, job) = (Arc::clone(mock), request.job_id.clone());
    let script = Script {
        speech: Speech::Worker {
            job_id: request.job_id.clone(),
            attempt,
            first_event_id: request.first_event_id.unwrap_or(0),
            worker_id: mock.name.clone(),
        },
        tokens: request.max_tokens.unwrap_or(1),
        gap: gap_in(body),
        stop: mock.runs.begin(request.job_id, attempt),
        ended: Box::new(move || mock.runs.end(&job, attempt)),
    };
    script.play()
}

fn cancel(mock: &Mock, body: &[u8]) -> Answer {
    if let Ok(request) = serde_json::from_slice::<CancelRequest>(body) {
        mock.runs.cancel(&request.job_id, request.attempt.map(|attempt| attempt.0));
    }
    json(202, "{}")
}

/// Runs that are no longer needed, `JOB/ATTEMPT` each.
fn acknowledge_list(mock: &Mock, list: Option<&http::HeaderValue>) {
    let list = list.and_then(|list| list.to_str().ok()).unwrap_or_default();
    for (job, attempt) in list.split(',').filter_map(|run| run.split_once('/')) {
        if let Ok(attempt) = attempt.parse() {
            mock.runs.forget(job, attempt);
        }
    }
}

/// `DELETE /jobs/{job}/{attempt}/events`.
fn acknowledge(mock: &Mock, path: &str) -> Answer {
    let mut words = path.trim_start_matches('/').split('/').skip(1);
    if let (Some(job), Some(Ok(attempt))) = (words.next(), words.next().map(str::parse)) {
        mock.runs.forget(job, attempt);
    }
    json(200, "{}")
}

fn tokenize(body: &[u8]) -> Answer {
    let count = u32::try_from(body.len() / 4).unwrap_or(CONTEXT);
    let answer = Tokenized { count, tokens: Vec::new(), context_length: CONTEXT };
    json(200, serde_json::to_vec(&answer).unwrap_or_default())
}

fn health(mock: &Mock) -> Answer {
    json(200, serde_json::to_vec(&register::health(mock)).unwrap_or_default())
}

/// `gap_us=N` anywhere in the request's text.
fn gap_in(body: &[u8]) -> Duration {
    const KEY: &[u8] = b"gap_us=";
    let Some(at) = body.windows(KEY.len()).position(|window| window == KEY) else { return Duration::ZERO };
    let digits = body.iter().skip(at + KEY.len()).take_while(|byte| byte.is_ascii_digit());
    Duration::from_micros(
        digits
            .fold(0, |number: u64, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))),
    )
}

#[cfg(test)]
mod tests {
    use api_types::event::{StopReason, TaskEvent};
    use api_types::sse::FrameDecoder;

    use super::*;
    use crate::load::{Connection, IdleStreams, Target};

    async fn mock() -> (SocketAddr, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let address_file = folder.path().join("address");
        let args = super::super::Args {
            cpu: 0,
            address_file: address_file.clone(),
            orchestrator: None,
            workers: 1,
            slots: SLOTS,
        };
        tokio::spawn(async move { serve(&args).await });
        loop {
            if let Ok(text) = std::fs::read_to_string(&address_file) {
                return (text.parse().expect("an address"), folder);
            }
            tokio::task::yield_now().await;
        }
    }

    fn events(body: &[u8]) -> Vec<(Option<u64>, TaskEvent)> {
        let mut decoder = FrameDecoder::default();
        decoder.push(body);
        std::iter::from_fn(|| decoder.next_frame().expect("frames"))
            .map(|frame| (frame.id, frame.task_event().expect("one of ours")))
            .collect()
    }

    #[tokio::test]
    async fn a_run_is_numbered_from_where_the_orchestrator_says() {
        let (address, _folder) = mock().await;
        let mut connection = Connection::open(address).await.expect("listening");
        let request = r#"{"job_id":"a","attempt":2,"first_event_id":5,"prompt":"x","max_tokens":3}"#;
        let body = connection.call("/execute", request.into()).await.expect("a run");
        let events = events(&body);
        assert_eq!(events.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [5, 6, 7, 8, 9].map(Some));
        assert!(matches!(events.first(), Some((_, TaskEvent::Started { attempt: Attempt(2), .. }))));
        assert!(matches!(events.last(), Some((_, TaskEvent::End(end))) if end.tokens_out == 3));
    }

    #[tokio::test]
    async fn a_cancelled_run_ends_as_such() {
        let (address, _folder) = mock().await;
        let mut connection = Connection::open(address).await.expect("listening");
        let request = r#"{"job_id":"a","attempt":1,"prompt":"gap_us=3600000000","max_tokens":9}"#;
        let run = connection.post("/execute", request.into()).await.expect("a run");
        let mut other = Connection::open(address).await.expect("listening");
        other.call("/cancel", r#"{"job_id":"a"}"#.into()).await.expect("cancelled");
        let body = run.into_body().collect().await.expect("the end").to_bytes();
        let last = events(&body).pop();
        assert!(
            matches!(last, Some((Some(2), TaskEvent::End(end))) if end.stop_reason == StopReason::Cancelled)
        );
    }

    #[tokio::test]
    async fn an_idle_stream_has_one_token_and_waits() {
        let (address, _folder) = mock().await;
        let body = r#"{"model":"mock","messages":[{"role":"user","content":"gap_us=3600000000"}],"max_tokens":2,"stream":true}"#;
        let target = Target { address, path: "/v1/chat/completions".into(), body: body.into() };
        IdleStreams::open(&target, 3).await.expect("three streams");
    }

    #[test]
    fn the_gap_is_read_from_the_prompt() {
        assert_eq!(gap_in(br#"{"prompt":"gap_us=10000"}"#), Duration::from_millis(10));
        assert_eq!(gap_in(br#"{"prompt":"hello"}"#), Duration::ZERO);
    }
}
