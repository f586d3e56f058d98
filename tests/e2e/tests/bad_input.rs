//! Each kind of bad input has its own words: a code, a field or hint, and nothing is lost.

use e2e::{Cluster, Engine};
use serde_json::{Value, json};

/// What a refusal must say.
struct Refusal {
    status: u16,
    code: &'static str,
    mentions: &'static [&'static str],
}

async fn assert_refused(cluster: &Cluster, what: &str, body: reqwest::Body, refusal: Refusal) {
    let request = cluster.http.post(cluster.url("/v2/tasks")).body(body);
    let (status, body) = cluster.send(request).await.expect_err(what);
    assert_eq!(status, refusal.status, "{what}: {body}");
    let error = &body["error"];
    assert_eq!(error["code"], refusal.code, "{what}: {body}");
    for word in refusal.mentions {
        assert!(body.to_string().contains(word), "{what}: `{word}` is missing in {body}");
    }
    for field in ["message", "hint", "correlation_id"] {
        assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{what}: no {field} in {body}");
    }
}

#[tokio::test]
async fn bad_tasks_are_refused_in_their_own_words() {
    let cluster = Cluster::start(Engine::Fake, 1).await;
    let rows: Vec<(&str, String, Refusal)> = vec![
        ("not JSON", "{oops".into(), Refusal { status: 400, code: "INVALID_JSON", mentions: &["line 1"] }),
        ("an array", "[]".into(), Refusal { status: 400, code: "INVALID_JSON", mentions: &[] }),
        (
            "unknown field",
            json!({"prompt": "x", "temprature": 1}).to_string(),
            Refusal { status: 422, code: "INVALID_FIELD", mentions: &["temprature", "temperature"] },
        ),
        (
            "wrong type",
            json!({"prompt": "x", "max_tokens": "many"}).to_string(),
            Refusal { status: 422, code: "INVALID_FIELD", mentions: &["max_tokens"] },
        ),
        (
            "NUL in the prompt",
            json!({"prompt": "a\u{0}b"}).to_string(),
            Refusal { status: 422, code: "INVALID_FIELD", mentions: &["prompt", "NUL"] },
        ),
        (
            "max_tokens 0",
            json!({"prompt": "x", "max_tokens": 0}).to_string(),
            Refusal { status: 422, code: "INVALID_FIELD", mentions: &["max_tokens", "1 or more"] },
        ),
        (
            "unknown model",
            json!({"prompt": "x", "model": "fake-bea"}).to_string(),
            Refusal { status: 404, code: "MODEL_NOT_FOUND", mentions: &["fake-bea", "fake-bee"] },
        ),
        (
            "both prompt and messages",
            json!({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}).to_string(),
            Refusal { status: 422, code: "INVALID_FIELD", mentions: &["prompt", "messages"] },
        ),
        (
            "empty prompt",
            json!({"prompt": ""}).to_string(),
            Refusal { status: 422, code: "INVALID_FIELD", mentions: &["prompt"] },
        ),
    ];
    for (what, body, refusal) in rows {
        assert_refused(&cluster, what, body.into(), refusal).await;
    }
    let health = cluster.get("/health").await.expect("healthy");
    assert_eq!(health["queue_depth"], 0, "nothing was half accepted");
}

#[tokio::test]
async fn a_huge_body_is_refused_before_it_is_read() {
    let cluster = Cluster::start(Engine::Fake, 1).await;
    let body = json!({"prompt": "x".repeat(40 << 20)}).to_string();
    assert_refused(
        &cluster,
        "huge body",
        body.into(),
        Refusal { status: 413, code: "BODY_TOO_LARGE", mentions: &[] },
    )
    .await;
}

#[tokio::test]
async fn a_foreign_host_header_is_refused() {
    let cluster = Cluster::without_workers(Engine::Fake).await;
    let request = cluster.http.get(cluster.url("/v2/tasks")).header("Host", "evil.example");
    let (status, body) = cluster.send(request).await.expect_err("a foreign name");
    assert_eq!((status, &body["error"]["code"]), (421, &json!("HOST_NOT_ALLOWED")));
    let request = cluster.http.get(cluster.url("/v2/tasks")).header("Origin", "https://evil.example");
    let (status, body) = cluster.send(request).await.expect_err("a foreign page");
    assert_eq!((status, &body["error"]["code"]), (403, &json!("ORIGIN_NOT_ALLOWED")));
}

#[tokio::test]
async fn what_is_not_there_is_said_in_the_same_shape() {
    let cluster = Cluster::without_workers(Engine::Fake).await;
    for (path, code) in [
        ("/v2/tasks/job_01901234-5678-7abc-8def-0123456789ab", "JOB_NOT_FOUND"),
        ("/v2/workers/worker-cpu-000000000000", "WORKER_NOT_FOUND"),
        ("/v2/nonsense", "NOT_FOUND"),
    ] {
        let (status, body): (u16, Value) = cluster.get(path).await.expect_err(path);
        assert_eq!((status, &body["error"]["code"]), (404, &json!(code)), "{path}");
    }
}
