//! Five times more is asked than the fleet can do: refusals are quick to read and say when to come
//! back, and what was taken in ends.

use api_types::task::TaskStatus;
use e2e::{Cluster, Engine, WorkerOptions, until};
use serde_json::{Value, json};

/// Jobs that may wait.
const QUEUE: usize = 8;
/// Jobs at once.
const SLOTS: usize = 2;

/// An orchestrator with a short queue and one paced worker.
async fn small_fleet() -> Cluster {
    let mut cluster = Cluster::without_workers(Engine::Fake).await;
    let folder = cluster.folder().join("config/rbees");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("orchestrator.toml"), format!("queue_capacity = {QUEUE}\n")).expect("a file");
    cluster.kill_orchestrator();
    cluster.restart_orchestrator().await;
    let slots = Some(u32::try_from(SLOTS).expect("few"));
    cluster.add_worker(WorkerOptions { slots, ..WorkerOptions::default() }).await;
    cluster
}

fn task(extra: Value) -> Value {
    let mut task = json!({ "model": Engine::Fake.model(), "prompt": "x", "max_tokens": 8, "temperature": 0,
        "on_disconnect": "continue" });
    task.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    task
}

/// How a submission was answered: its status, `Retry-After` in seconds, and the body.
type Answered = (u16, Option<u64>, Value);

/// Hands in so many tasks at once.
async fn flood(cluster: &Cluster, count: usize, task: &Value) -> Vec<Answered> {
    let submit = || async {
        let answer = cluster.http.post(cluster.url("/v2/tasks")).json(task).send().await.expect("an answer");
        let retry_after = answer
            .headers()
            .get("retry-after")
            .map(|value| value.to_str().expect("text").parse().expect("whole seconds"));
        (answer.status().as_u16(), retry_after, answer.json().await.expect("JSON"))
    };
    futures_util::future::join_all((0..count).map(|_| submit())).await
}

/// Every admitted job ends by itself.
async fn all_complete(cluster: &Cluster, answers: &[Answered]) -> usize {
    let admitted: Vec<&Answered> = answers.iter().filter(|(status, _, _)| *status == 202).collect();
    for (_, _, body) in &admitted {
        let job = body["job_id"].as_str().expect("an id").parse().expect("a job id");
        cluster.wait_for_status(job, TaskStatus::Completed).await;
    }
    admitted.len()
}

#[tokio::test]
async fn a_flood_is_refused_with_the_time_to_come_back_and_what_was_taken_in_ends() {
    let cluster = small_fleet().await;
    let answers = flood(&cluster, 5 * (QUEUE + SLOTS), &task(json!({}))).await;
    let admitted = all_complete(&cluster, &answers).await;
    assert!(admitted >= QUEUE + SLOTS, "{admitted} fit and were not all taken in");
    let refused: Vec<&Answered> = answers.iter().filter(|(status, _, _)| *status != 202).collect();
    assert!(!refused.is_empty(), "all {} fit", answers.len());
    for (status, retry_after, body) in refused {
        assert_eq!((*status, &body["error"]["code"]), (429, &json!("QUEUE_FULL")), "{body}");
        assert!(retry_after.is_some_and(|seconds| seconds >= 1), "{body}");
        assert!(body["error"]["retry_after_ms"].is_u64() && body["error"]["retriable"] == true, "{body}");
    }
}

#[tokio::test]
async fn a_deadline_behind_a_full_queue_is_refused_with_the_estimate_and_the_rest_ends() {
    let cluster = small_fleet().await;
    // No deadline is refused on what fewer than 8 runs told, and runs count by how many share a worker.
    for _ in 0..8 {
        let learnt = flood(&cluster, 4, &task(json!({}))).await;
        assert_eq!(all_complete(&cluster, &learnt).await, 4);
    }
    let waiting = flood(&cluster, 5 * (QUEUE + SLOTS), &task(json!({ "max_tokens": 64 }))).await;
    // A queue without room refuses for that reason; from the first end on it has some.
    until("a place in the queue", || async {
        let depth = cluster.get("/health").await.ok()?["queue_depth"].as_u64()?;
        (depth < QUEUE as u64).then_some(())
    })
    .await;
    let late = flood(&cluster, 5, &task(json!({ "deadline_ms": 1 }))).await;
    for (status, _, body) in &late {
        assert_eq!((*status, &body["error"]["code"]), (422, &json!("DEADLINE_UNMET")), "{body}");
        let details = &body["error"]["details"];
        assert!(details["eta_ms"]["p90"].as_u64() >= details["eta_ms"]["p50"].as_u64(), "{body}");
        assert!(details["queue_depth"].is_u64() && details["deadline_ms"] == 1, "{body}");
    }
    assert!(all_complete(&cluster, &waiting).await >= QUEUE + SLOTS);
}
