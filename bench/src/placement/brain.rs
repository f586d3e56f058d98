//! A brain without a disk, and the events that it is fed.

use std::collections::BTreeMap;
use std::sync::Arc;

use api_types::event::RunEnd;
use api_types::prefix::{PrefixChain, RetainedPrefix};
use api_types::task::{Durability, OnDisconnect, Placement, Priority, RetryMode};
use api_types::worker::{PREFIX_CACHE, WorkerFacts, WorkerStatus};
use api_types::{InstanceId, JobId, PROTOCOL, StopReason, TenantId, WorkerId};
use orchestrator_core::policy::{Label, PolicyRows};
use orchestrator_core::{
    Action, Answer, Event, OpenStream, Orchestrator, RequestId, Rows, Run, RunKey, Settings, Step,
    Submission, Time,
};
use uuid::Uuid;

use super::policies::{Native, Routing, SEAT};

const MODEL: &str = "bench";
const START: u64 = 1_000_000;

/// The brain, its time in milliseconds, and how many jobs it was given and refused.
pub struct Brain {
    core: Orchestrator,
    /// Now.
    pub now: Time,
    /// Jobs handed in.
    pub jobs: u128,
    /// Jobs refused.
    pub refused: usize,
}

impl Brain {
    /// A brain with so many ready workers of so many slots.
    pub fn new(workers: usize, slots: u32, routing: Routing) -> Self {
        let mut settings = Settings { queue_capacity: None, ..Settings::default() };
        for n in 0..workers {
            let seat = i64::try_from(n).unwrap_or(0);
            let labels = BTreeMap::from([(SEAT.to_owned(), Label::Integer(seat))]);
            settings.labels.workers.insert(worker_id(n), labels);
        }
        let rows = Rows {
            policies: PolicyRows { live: routing.text(), ..PolicyRows::default() },
            ..Rows::default()
        };
        let (core, _) = Orchestrator::recover_with(settings, rows, Arc::new(Native), Time(START));
        let mut brain = Self { core, now: Time(START), jobs: 0, refused: 0 };
        for n in 0..workers {
            let ready = Event::WorkerReady {
                request: RequestId(0),
                facts: Box::new(facts(n, slots)),
                status: WorkerStatus::Ready,
                runs: vec![],
                secret: None,
            };
            brain.tell(ready);
        }
        brain
    }

    /// Tells it something. Returns the runs that begin.
    pub fn tell(&mut self, event: Event) -> Vec<OpenStream> {
        let step = self.core.handle_event(event, self.now);
        self.begun(step)
    }

    /// When it wants to be woken.
    pub fn alarm(&self) -> Option<Time> {
        self.core.poll_timeout()
    }

    /// Wakes it. Returns the runs that begin.
    pub fn wake(&mut self) -> Vec<OpenStream> {
        let step = self.core.handle_timeout(self.now);
        self.begun(step)
    }

    fn begun(&mut self, step: Step) -> Vec<OpenStream> {
        let mut begun = Vec::new();
        for action in step.actions {
            match action {
                Action::OpenStream(open) => begun.push(open),
                Action::Answer { answer: Answer::Refused(_), .. } => self.refused += 1,
                _ => {}
            }
        }
        begun
    }

    /// Hands in a job. Returns its id and the runs that begin.
    pub fn submit(&mut self, prompt_bytes: u64, prefix: PrefixChain) -> (JobId, Vec<OpenStream>) {
        self.jobs += 1;
        let job_id = JobId::from_uuid(Uuid::from_u128(self.jobs));
        let begun = self.tell(Event::Submit(Submission {
            request: RequestId(0),
            job_id,
            model: Some(MODEL.to_owned()),
            chat: false,
            tenant: TenantId::default(),
            session_id: None,
            prompt_bytes,
            prompt_tokens: None,
            prefix,
            max_tokens: Some(256),
            priority: Priority::Interactive,
            deadline_ms: None,
            on_disconnect: OnDisconnect::Continue,
            retry: RetryMode::BeforeFirstToken,
            placement: Placement::default(),
            durability: Durability::Memory,
            is_read: false,
            idempotency: None,
            correlation_id: "bench".parse().unwrap_or_else(|_| unreachable!("well formed")),
        }));
        (job_id, begun)
    }

    /// A run has ended. Returns the runs that begin in its place.
    pub fn end(&mut self, run: RunKey, prefill_ms: u64, tokens_out: u32, decode_ms: u64) -> Vec<OpenStream> {
        let end = RunEnd {
            tokens_in: 1_000,
            tokens_out,
            queue_time_ms: 0,
            prefill_time_ms: prefill_ms,
            decode_time_ms: decode_ms,
            stop_reason: StopReason::Eos,
            seed: None,
            tokens_cached: None,
        };
        self.tell(Event::StreamEnded { run, end })
    }

    /// A worker's sign of life.
    pub fn beat(&mut self, n: usize, runs: Vec<Run>, prefixes: Vec<RetainedPrefix>) -> Vec<OpenStream> {
        let Some(row) = self.core.worker_row(&worker_id(n)).cloned() else { return Vec::new() };
        self.tell(Event::WorkerHeartbeat {
            request: RequestId(0),
            worker_id: worker_id(n),
            incarnation: row.incarnation,
            instance: row.facts.instance,
            status: WorkerStatus::Ready,
            runs,
            free_memory_bytes: Some(16 << 30),
            prefixes: Some(prefixes),
        })
    }
}

/// The id of the worker in this seat.
pub fn worker_id(n: usize) -> WorkerId {
    format!("worker-fake-{n:012x}").parse().unwrap_or_else(|_| unreachable!("well formed"))
}

fn facts(n: usize, slots: u32) -> WorkerFacts {
    WorkerFacts {
        worker_id: worker_id(n),
        instance: InstanceId(Uuid::from_u128(n as u128)),
        pool_id: None,
        uri: format!("http://worker-{n}"),
        model: MODEL.to_owned(),
        model_ref: None,
        backend: "fake".to_owned(),
        devices: vec![],
        slots,
        evictable: false,
        context_length: 32_768,
        vram_bytes: 0,
        ram_bytes: 0,
        quantization: None,
        tokenizer: None,
        capabilities: vec!["completion".to_owned(), PREFIX_CACHE.to_owned()],
        engine: "modelled".to_owned(),
        version: "0".to_owned(),
        protocol: PROTOCOL,
    }
}
