//! A brain with a clock and a disk, for stories without a socket.
#![allow(dead_code, reason = "each story uses its part")]

use std::collections::BTreeMap;

use api_types::event::RunEnd;
use api_types::task::{Durability, OnDisconnect, Placement, Priority, RetryMode, TaskStatus};
use api_types::worker::{WorkerFacts, WorkerStatus};
use api_types::{
    Attempt, Incarnation, InstanceId, JobId, PROTOCOL, PoolId, PrefixChain, SessionId, StopReason, TenantId,
    WorkerId,
};
use orchestrator_core::policy::PolicyRows;
use orchestrator_core::{
    Action, Answer, Estimates, Event, JobRow, Kept, Orchestrator, PoolRow, RequestId, Rows, Run, RunKey,
    SessionRow, Settings, SpawnRow, Step, Submission, Time, WorkerRow, Write,
};
use uuid::Uuid;

pub const START: u64 = 1_000_000;

pub struct World {
    pub brain: Orchestrator,
    pub now: Time,
    pub settings: Settings,
    pub jobs: BTreeMap<JobId, JobRow>,
    pub workers: BTreeMap<WorkerId, WorkerRow>,
    pub sessions: BTreeMap<(TenantId, SessionId), SessionRow>,
    pub estimates: Option<Estimates>,
    pub policies: PolicyRows,
    pub pools: BTreeMap<PoolId, PoolRow>,
    pub spawns: BTreeMap<WorkerId, SpawnRow>,
    requests: u64,
}

pub fn job(n: u128) -> JobId {
    JobId::from_uuid(Uuid::from_u128(n))
}

pub fn worker(name: &str) -> WorkerId {
    name.parse().expect("a worker id")
}

pub fn instance(n: u128) -> InstanceId {
    InstanceId(Uuid::from_u128(n))
}

pub fn run(n: u128, attempt: u32, name: &str, incarnation: u64) -> RunKey {
    RunKey {
        job_id: job(n),
        attempt: Attempt(attempt),
        worker_id: worker(name),
        incarnation: Incarnation(incarnation),
    }
}

pub fn facts(name: &str, slots: u32) -> WorkerFacts {
    WorkerFacts {
        worker_id: worker(name),
        instance: instance(name.len() as u128),
        pool_id: None,
        uri: format!("http://{name}"),
        model: "small".to_owned(),
        model_ref: None,
        backend: "fake".to_owned(),
        devices: vec![],
        slots,
        context_length: 4_096,
        vram_bytes: 0,
        ram_bytes: 0,
        quantization: None,
        tokenizer: None,
        capabilities: vec!["chat".to_owned()],
        evictable: false,
        engine: "fake".to_owned(),
        version: "0".to_owned(),
        protocol: PROTOCOL,
    }
}

pub fn submission(n: u128) -> Submission {
    Submission {
        request: RequestId(n as u64),
        job_id: job(n),
        model: Some("small".to_owned()),
        chat: false,
        tenant: TenantId::default(),
        session_id: None,
        prompt_bytes: 5,
        prompt_tokens: None,
        prefix: PrefixChain::default(),
        max_tokens: Some(16),
        priority: Priority::Interactive,
        deadline_ms: None,
        on_disconnect: OnDisconnect::Continue,
        retry: RetryMode::BeforeFirstToken,
        placement: Placement::default(),
        durability: Durability::Durable,
        is_read: false,
        idempotency: None,
        correlation_id: "test".parse().expect("an id"),
    }
}

pub fn end(tokens_out: u32, stop_reason: StopReason) -> RunEnd {
    RunEnd {
        tokens_in: 3,
        tokens_out,
        queue_time_ms: 0,
        prefill_time_ms: 1,
        decode_time_ms: 2,
        stop_reason,
        seed: None,
        tokens_cached: None,
    }
}

impl World {
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    pub fn with(settings: Settings) -> Self {
        let now = Time(START);
        let (brain, step) = Orchestrator::recover(settings.clone(), Rows::default(), now);
        assert_eq!(step, Step::default());
        Self {
            brain,
            now,
            settings,
            jobs: BTreeMap::new(),
            workers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            estimates: None,
            policies: PolicyRows::default(),
            pools: BTreeMap::new(),
            spawns: BTreeMap::new(),
            requests: 1_000,
        }
    }

    /// Decides and commits.
    pub fn event(&mut self, event: Event) -> Step {
        let step = self.brain.handle_event(event, self.now);
        self.commit(&step);
        step
    }

    /// As [`Self::event`], and tells at once that each run which is to be counted has left so many
    /// tokens, as the driver would.
    pub fn event_counted(&mut self, event: Event, tokens: u32) -> Step {
        let mut all = self.event(event);
        let runs: Vec<RunKey> = all
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::Salvage(run) => Some(run.clone()),
                _ => None,
            })
            .collect();
        for run in runs {
            let kept = Kept { events: u64::from(tokens) + 2, tokens, seams: 0, unsure: 0, ids_known: true };
            let step = self.event_counted(Event::Salvaged { run, kept }, tokens);
            all.writes.extend(step.writes);
            all.actions.extend(step.actions);
        }
        all
    }

    pub fn commit(&mut self, step: &Step) {
        for write in &step.writes {
            match write {
                Write::InsertJob(row) | Write::UpdateJob(row) | Write::EndJob { row, .. } => {
                    self.jobs.insert(row.job_id, row.clone());
                }
                Write::PutWorker(row) => {
                    self.workers.insert(row.facts.worker_id.clone(), row.clone());
                }
                Write::PutSession(row) => {
                    self.sessions.insert((row.tenant.clone(), row.session_id.clone()), row.clone());
                }
                Write::DeleteSession { tenant, session_id } => {
                    self.sessions.remove(&(tenant.clone(), session_id.clone()));
                }
                Write::DeleteWorker(id) => {
                    self.workers.remove(id);
                }
                Write::PutPolicies(rows) => self.policies = rows.clone(),
                Write::PutEstimates(estimates) => self.estimates = Some((**estimates).clone()),
                Write::PutPool(row) => drop(self.pools.insert(row.pool_id.clone(), row.clone())),
                Write::DeletePool(id) => drop(self.pools.remove(id)),
                Write::PutSpawn(row) => drop(self.spawns.insert(row.worker_id.clone(), row.clone())),
                Write::DeleteSpawn(id) => drop(self.spawns.remove(id)),
                Write::PutDecision { .. } => {}
            }
        }
    }

    /// Jumps from alarm to alarm for so long, as the driver would. Returns everything decided.
    pub fn pass(&mut self, ms: u64) -> Step {
        let until = self.now + ms;
        let mut all = Step::default();
        while let Some(at) = self.brain.poll_timeout().filter(|at| *at <= until) {
            self.now = at.max(self.now);
            let step = self.brain.handle_timeout(self.now);
            self.commit(&step);
            all.writes.extend(step.writes);
            all.actions.extend(step.actions);
        }
        self.now = until;
        all
    }

    pub fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    pub fn register(&mut self, facts: WorkerFacts, status: WorkerStatus, runs: Vec<Run>) -> Step {
        let request = self.request();
        self.event(Event::WorkerReady { request, facts: Box::new(facts), status, runs, secret: None })
    }

    pub fn ready(&mut self, name: &str, slots: u32) -> Step {
        self.register(facts(name, slots), WorkerStatus::Ready, vec![])
    }

    pub fn beat(&mut self, name: &str, runs: Vec<Run>) -> Step {
        let request = self.request();
        let row = self.brain.worker_row(&worker(name)).expect("registered").clone();
        self.event(Event::WorkerHeartbeat {
            request,
            worker_id: worker(name),
            incarnation: row.incarnation,
            instance: row.facts.instance,
            status: WorkerStatus::Ready,
            runs,
            free_memory_bytes: None,
            prefixes: None,
        })
    }

    pub fn submit(&mut self, n: u128) -> Step {
        self.event(Event::Submit(submission(n)))
    }

    pub fn status(&self, n: u128) -> TaskStatus {
        self.brain.job(job(n)).expect("known").row.status
    }

    pub fn rows(&self) -> Rows {
        Rows {
            jobs: self.jobs.values().cloned().collect(),
            workers: self.workers.values().cloned().collect(),
            pools: self.pools.values().cloned().collect(),
            spawns: self.spawns.values().cloned().collect(),
            sessions: self.sessions.values().cloned().collect(),
            last_number: self.jobs.values().map(|row| row.number).max().unwrap_or(0),
            estimates: self.estimates.clone(),
            policies: self.policies.clone(),
            ..Rows::default()
        }
    }

    /// The orchestrator dies after the last commit and starts again.
    pub fn restart(&mut self) -> Step {
        let (brain, step) = Orchestrator::recover(self.settings.clone(), self.rows(), self.now);
        self.brain = brain;
        self.commit(&step);
        step
    }
}

/// The actions of a step but for news to operators.
pub fn acts(step: &Step) -> Vec<Action> {
    step.actions.iter().filter(|action| !matches!(action, Action::Notify(_))).cloned().collect()
}

pub fn answer(step: &Step) -> Answer {
    let mut answers = step.actions.iter().filter_map(|action| match action {
        Action::Answer { answer, .. } => Some(answer.clone()),
        _ => None,
    });
    let first = answers.next().expect("an answer");
    assert_eq!(answers.next(), None, "one answer");
    first
}

pub fn opened(step: &Step) -> Vec<RunKey> {
    let opened = step.actions.iter().filter_map(|action| match action {
        Action::OpenStream(open) => Some(open.run.clone()),
        _ => None,
    });
    opened.collect()
}
