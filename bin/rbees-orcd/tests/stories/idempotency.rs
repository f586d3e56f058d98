//! The same key with the same request is the same job.

use serde_json::{Value, json};

use crate::daemon::{Daemon, answer, until};
use crate::worker::Worker;

#[tokio::test]
async fn a_key_stands_for_one_request() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    let body = json!({ "prompt": "x", "idempotency_key": "k" });
    let first = daemon.submit(body.clone()).await;
    assert_eq!(daemon.submit(body).await, first);
    let by_header = daemon.http.post(daemon.url("/v2/tasks")).header("idempotency-key", "k");
    let (status, same) = answer(by_header.body(json!({ "prompt": "x" }).to_string())).await;
    assert_eq!((status, same["job_id"].as_str()), (202, Some(first.as_str())));
    let (status, other) =
        daemon.post("/v2/tasks", json!({ "prompt": "y", "idempotency_key": "k" }).to_string()).await;
    assert_eq!((status, other["error"]["code"].as_str()), (409, Some("IDEMPOTENCY_CONFLICT")));
    daemon.until_status(&first, "completed").await;
    assert_eq!(worker.executed().len(), 1);
}

#[tokio::test]
async fn a_key_outlives_a_crash() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a"]).await;
    let body = json!({ "prompt": "x", "idempotency_key": "k" });
    let first = daemon.submit(body.clone()).await;
    daemon.until_status(&first, "completed").await;
    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    assert_eq!(daemon.submit(body).await, first);
}

const CHAT: &str = "/v1/chat/completions";

fn chat(stream: bool) -> String {
    json!({ "stream": stream, "messages": [{ "role": "user", "content": "x" }] }).to_string()
}

/// A request of OpenAI's dialect under the key `k`.
fn keyed(daemon: &Daemon, path: &str, body: String) -> reqwest::RequestBuilder {
    daemon.http.post(daemon.url(path)).header("idempotency-key", "k").body(body)
}

async fn open(daemon: &Daemon, path: &str, body: String) -> reqwest::Response {
    let answer = keyed(daemon, path, body).send().await.expect("headers");
    assert_eq!(answer.status(), 200);
    answer
}

fn job_of(answer: &reqwest::Response) -> String {
    answer.headers()["x-rbees-job-id"].to_str().expect("text").to_owned()
}

/// The text of a stream of chunks, and the ids and times of the chunks.
async fn streamed(answer: reqwest::Response) -> (String, Vec<Value>) {
    let body = answer.text().await.expect("a body");
    assert!(body.ends_with("data: [DONE]\n\n"), "{body}");
    let lines = body.split("\n\n").filter_map(|line| line.strip_prefix("data: "));
    let chunks: Vec<Value> = lines
        .filter(|line| *line != "[DONE]")
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let text = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    (text, chunks.iter().map(|chunk| json!([chunk["id"], chunk["created"]])).collect())
}

#[tokio::test]
async fn an_openai_key_stands_for_one_run() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    let (status, whole) = answer(keyed(&daemon, CHAT, chat(false))).await;
    assert_eq!((status, whole["choices"][0]["message"]["content"].as_str()), (200, Some("ab")), "{whole}");
    assert_eq!(answer(keyed(&daemon, CHAT, chat(false))).await, (200, whole.clone()), "the same answer");
    let (text, chunks) = streamed(open(&daemon, CHAT, chat(true)).await).await;
    assert_eq!(text, "ab");
    assert!(chunks.iter().all(|chunk| *chunk == json!([whole["id"], whole["created"]])), "{chunks:?}");
    assert_eq!(worker.executed().len(), 1);
    let other = json!({ "messages": [{ "role": "user", "content": "y" }] }).to_string();
    let (status, refused) = answer(keyed(&daemon, CHAT, other)).await;
    assert_eq!((status, refused["error"]["code"].as_str()), (409, Some("idempotency_conflict")), "{refused}");
    let (status, refused) =
        answer(keyed(&daemon, "/v1/completions", json!({ "prompt": "x" }).to_string())).await;
    assert_eq!((status, refused["error"]["code"].as_str()), (409, Some("idempotency_conflict")), "{refused}");
    let empty = daemon.http.post(daemon.url(CHAT)).header("idempotency-key", "").body(chat(false));
    let (status, refused) = answer(empty).await;
    assert_eq!((status, refused["error"]["param"].as_str()), (400, Some("idempotency_key")), "{refused}");
}

#[tokio::test]
async fn a_key_of_a_text_completion_stands_for_one_run() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
    let body = json!({ "prompt": "x" }).to_string();
    let first = answer(keyed(&daemon, "/v1/completions", body.clone())).await;
    assert_eq!((first.0, first.1["choices"][0]["text"].as_str()), (200, Some("ab")), "{first:?}");
    assert_eq!(answer(keyed(&daemon, "/v1/completions", body)).await, first);
    assert_eq!(worker.executed().len(), 1);
}

#[tokio::test]
async fn a_retry_takes_over_the_run_of_the_connection_that_closes() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    worker.allow(3);
    let mut first = open(&daemon, CHAT, chat(true)).await;
    first.chunk().await.expect("a chunk");
    let second = open(&daemon, CHAT, chat(true)).await;
    let job = job_of(&first);
    assert_eq!(job_of(&second), job);
    let before = daemon.metric("rbees_orcd_open_connections").await;
    drop(first);
    until("the first is gone", || async {
        (daemon.metric("rbees_orcd_open_connections").await < before).then_some(())
    })
    .await;
    worker.allow(usize::MAX);
    assert_eq!(streamed(second).await.0, "abc");
    daemon.until_status(&job, "completed").await;
    assert_eq!(worker.executed().len(), 1);
}

#[tokio::test]
async fn the_key_of_a_job_that_its_connection_left_is_free() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    for retry_waits_for_the_end in [true, false] {
        worker.allow(3);
        let mut left = open(&daemon, CHAT, chat(true)).await;
        left.chunk().await.expect("a chunk");
        let job = job_of(&left);
        drop(left);
        if retry_waits_for_the_end {
            daemon.until_status(&job, "cancelled").await;
        }
        let retry = open(&daemon, CHAT, chat(true)).await;
        let again = job_of(&retry);
        worker.allow(usize::MAX);
        assert_eq!(streamed(retry).await.0, "abc");
        // A retry that comes before the close is seen takes the run over; else it is a new job.
        assert!(again != job || !retry_waits_for_the_end);
        let (status, _) = daemon.post(&format!("/v2/tasks/{again}/erase"), "").await;
        assert_eq!(status, 200, "so that the key is free for the next round");
    }
}

#[tokio::test]
async fn a_cancellation_that_was_asked_for_is_the_answer_to_a_retry() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    worker.allow(3);
    let first = open(&daemon, CHAT, chat(true)).await;
    let job = job_of(&first);
    daemon.post(&format!("/v2/tasks/{job}/cancel"), "").await;
    let (text, _) = streamed(first).await;
    let retry = open(&daemon, CHAT, chat(true)).await;
    assert_eq!(job_of(&retry), job);
    assert_eq!(streamed(retry).await.0, text);
    assert_eq!(worker.executed().len(), 1);
}

#[tokio::test]
async fn an_openai_key_outlives_a_crash() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    worker.allow(3);
    let mut broken = open(&daemon, CHAT, chat(true)).await;
    broken.chunk().await.expect("a chunk");
    let job = job_of(&broken);
    let daemon = daemon.crash_and_restart().await;
    drop(broken);
    worker.register(&daemon.url("")).await;
    let retry = open(&daemon, CHAT, chat(true)).await;
    assert_eq!(job_of(&retry), job);
    worker.allow(usize::MAX);
    assert_eq!(streamed(retry).await.0, "abc");
    assert_eq!(worker.executed().len(), 1);
    let daemon = daemon.crash_and_restart().await;
    assert_eq!(streamed(open(&daemon, CHAT, chat(true)).await).await.0, "abc", "after its end too");
    assert_eq!(worker.executed().len(), 1);
}

#[tokio::test]
async fn a_key_that_was_set_free_stays_free_over_a_crash() {
    let daemon = Daemon::start().await;
    let worker = Worker::start(&daemon.url(""), &["a", "b", "c"]).await;
    worker.allow(3);
    let mut left = open(&daemon, CHAT, chat(true)).await;
    left.chunk().await.expect("a chunk");
    let job = job_of(&left);
    drop(left);
    daemon.until_status(&job, "cancelled").await;
    let daemon = daemon.crash_and_restart().await;
    worker.register(&daemon.url("")).await;
    worker.allow(usize::MAX);
    let retry = open(&daemon, CHAT, chat(true)).await;
    assert_ne!(job_of(&retry), job);
    assert_eq!(streamed(retry).await.0, "abc");
}
