//! A small made-up home: what `policy check` tries a script on where no orchestrator runs.

use std::collections::BTreeMap;

use api_types::task::Priority;
use api_types::worker::WorkerFacts;
use api_types::{InstanceId, PROTOCOL, PoolId, WorkerId};
use orchestrator_core::policy::{Hour, JobFacts, Label, SampleWorker};
use uuid::Uuid;

/// Bytes of one gigabyte.
const GIGABYTE: u64 = 1_000_000_000;

/// A desktop with two cards, a small computer and a laptop; all with the same model.
pub fn home() -> Vec<SampleWorker> {
    let made = [
        worker("desk-gpu0", "desk", "cuda", &["CUDA0"], (4, 3, 10), 320),
        worker("desk-gpu1", "desk", "cuda", &["CUDA1"], (4, 4, 22), 350),
        worker("shelf", "shelf", "cpu", &["CPU"], (2, 1, 6), 15),
        worker("laptop", "laptop", "metal", &["MTL0"], (2, 2, 12), 40),
    ];
    made.into_iter().flatten().collect()
}

fn worker(
    name: &str,
    pool: &str,
    backend: &str,
    devices: &[&str],
    (slots, slots_free, free_gigabytes): (u32, u32, u64),
    watts: i64,
) -> Option<SampleWorker> {
    Some(SampleWorker {
        facts: WorkerFacts {
            worker_id: name.parse::<WorkerId>().ok()?,
            instance: InstanceId(Uuid::nil()),
            pool_id: Some(pool.parse::<PoolId>().ok()?),
            uri: format!("http://{name}:8001"),
            model: "llama3-8b".to_owned(),
            model_ref: None,
            backend: backend.to_owned(),
            devices: devices.iter().map(|device| (*device).to_owned()).collect(),
            slots,
            context_length: 8_192,
            evictable: true,
            vram_bytes: 6 * GIGABYTE,
            ram_bytes: GIGABYTE,
            quantization: Some("Q4_K_M".to_owned()),
            tokenizer: None,
            capabilities: vec!["chat".to_owned(), backend.to_owned()],
            engine: "sample".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
        },
        slots_free,
        free_memory_bytes: free_gigabytes * GIGABYTE,
        labels: BTreeMap::new(),
        pool_labels: BTreeMap::from([("watts".to_owned(), Label::Integer(watts))]),
    })
}

/// A question by a person, a long document overnight, and a retry, each at noon and late at night.
pub fn jobs() -> Vec<(String, JobFacts<'static>)> {
    let kinds = [
        ("interactive", Priority::Interactive, 800, 0),
        ("batch", Priority::Batch, 220_000, 0),
        ("batch after a failure", Priority::Batch, 4_000, 2),
    ];
    let hours = [
        ("noon", Hour { of_day: 12, minute: 0, weekday: 2 }),
        ("23:30", Hour { of_day: 23, minute: 30, weekday: 5 }),
    ];
    let mut jobs = Vec::new();
    for (kind, priority, prompt_bytes, tries_failed) in kinds {
        for (when, hour) in hours {
            let facts = JobFacts {
                tenant: "default",
                model: "llama3-8b",
                priority,
                prompt_bytes,
                max_tokens: Some(256),
                waited_ms: 1_500,
                tries_failed,
                hour,
                ..JobFacts::default()
            };
            jobs.push((format!("{kind} at {when}"), facts));
        }
    }
    jobs
}
