//! A small made-up home: what `policy check` tries a script on where no orchestrator runs.

use std::collections::BTreeMap;

use api_types::task::Priority;
use api_types::worker::WorkerFacts;
use api_types::{InstanceId, PROTOCOL, PoolId, WorkerId};
use orchestrator_core::policy::{FailureFacts, Hour, JobFacts, Label, QueueFacts, SampleWorker};
use uuid::Uuid;

/// Bytes of one gigabyte.
const GIGABYTE: u64 = 1_000_000_000;

/// A desktop with two cards, a small computer and a laptop; all with the same model.
pub fn home() -> Vec<SampleWorker> {
    let made = [
        worker("desk-gpu0", "desk", "cuda", &["CUDA0"], (4, 3, 10), 320, 0),
        worker("desk-gpu1", "desk", "cuda", &["CUDA1"], (4, 4, 22), 350, 90_000),
        worker("shelf", "shelf", "cpu", &["CPU"], (2, 1, 6), 15, 0),
        worker("laptop", "laptop", "metal", &["MTL0"], (2, 2, 12), 40, 3_600_000),
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
    idle_ms: u64,
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
        idle_ms,
        labels: BTreeMap::new(),
        pool_labels: BTreeMap::from([("watts".to_owned(), Label::Integer(watts))]),
    })
}

/// A question that a script is asked.
pub struct Sample {
    /// In words.
    pub about: String,
    /// The job.
    pub job: JobFacts<'static>,
    /// The queue it comes to.
    pub queue: QueueFacts,
    /// Why its last attempt failed.
    pub failure: FailureFacts<'static>,
    /// How much of its prompt the first worker holds, which ran the session's last job, if there is one.
    pub prefix_share: f64,
}

/// The times at which scripts are asked.
pub const HOURS: [(&str, Hour); 2] = [
    ("noon", Hour { of_day: 12, minute: 0, weekday: 2 }),
    ("23:30", Hour { of_day: 23, minute: 30, weekday: 5 }),
];

/// A question by a person, the next one of a session, a long document overnight, and a retry whose
/// time runs out; each at noon and late at night. Whatever a script may ask of is here one way and the
/// other.
pub fn jobs() -> Vec<Sample> {
    HOURS.into_iter().flat_map(|(when, hour)| kinds().map(|kind| at(kind, when, hour))).collect()
}

fn at(mut sample: Sample, when: &str, hour: Hour) -> Sample {
    sample.about = format!("{} at {when}", sample.about);
    sample.job.hour = hour;
    sample
}

fn kinds() -> [Sample; 4] {
    let question = JobFacts {
        tenant: "default",
        model: "llama3-8b",
        prompt_bytes: 800,
        max_tokens: Some(256),
        ..JobFacts::default()
    };
    let in_session = JobFacts {
        session: Some("sample"),
        prompt_bytes: 12_000,
        waited_ms: 1_500,
        deadline_in_ms: Some(30_000),
        ..question
    };
    let document = JobFacts {
        priority: Priority::Batch,
        prompt_bytes: 220_000,
        max_tokens: None,
        waited_ms: 60_000,
        ..question
    };
    let late = JobFacts {
        priority: Priority::Batch,
        prompt_bytes: 4_000,
        waited_ms: 600_000,
        deadline_in_ms: Some(0),
        tries_failed: 2,
        ..question
    };
    let (refused, lost) = ("ENGINE_FAILED", "WORKER_LOST");
    [
        sample("interactive", question, queue(0, 0), failure(refused, 0), 0.0),
        sample("interactive in a session", in_session, queue(3, 1), failure(lost, 1), 0.6),
        sample("batch", document, queue(900, 40), failure(lost, 1), 0.0),
        sample("batch after two failures", late, queue(3, 1), failure(lost, 2), 1.0),
    ]
}

fn sample(
    about: &str,
    job: JobFacts<'static>,
    queue: QueueFacts,
    failure: FailureFacts<'static>,
    prefix_share: f64,
) -> Sample {
    Sample { about: about.to_owned(), job, queue, failure, prefix_share }
}

/// So many jobs wait, some of them of the same tenant.
fn queue(waiting: u64, of_tenant: u64) -> QueueFacts {
    QueueFacts {
        waiting,
        before: waiting / 3,
        capacity: Some(1_000),
        model_waiting: waiting * 2 / 3,
        workers: 0,
        tenant_waiting: of_tenant,
        tenant_running: of_tenant.min(4),
    }
}

const fn failure(code: &'static str, workers_lost: u64) -> FailureFacts<'static> {
    FailureFacts { code, workers_lost, attempts: 5 }
}
