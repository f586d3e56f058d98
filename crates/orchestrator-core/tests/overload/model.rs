//! A fleet and its clients as a discrete-event model around the real brain: one seed, one run.

use std::collections::{BTreeMap, BTreeSet};

use api_types::event::RunEnd;
use api_types::task::{Durability, OnDisconnect, Placement, Priority, RetryMode, TaskStatus};
use api_types::worker::{WorkerFacts, WorkerStatus};
use api_types::{InstanceId, JobId, PROTOCOL, PrefixChain, StopReason, WorkerId};
use orchestrator_core::{
    Action, Answer, Event, JobRow, Orchestrator, RequestId, Rows, Run, RunKey, Settings, Step, Submission,
    Time, Write,
};
use uuid::Uuid;

/// Where the model's clock starts.
const START: u64 = 1_000_000;
/// How often workers show that they live.
const HEARTBEAT_MS: u64 = 3_000;
/// Bytes of prompt per token, on average.
const BYTES_PER_TOKEN: f64 = 4.0;

/// What is offered to which fleet.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    pub seed: u64,
    /// Offered load as a multiple of what the fleet can do.
    pub load: f64,
    pub workers: u64,
    pub slots: u32,
    /// Model time in which jobs arrive.
    pub seconds: u64,
    /// Of these, the first ones are not counted: the queue fills, the rates are learnt.
    pub warm_up: u64,
    /// Deadlines are drawn between these, in ms; `None`: no job has one.
    pub deadlines: Option<(u64, u64)>,
    /// Share of batch jobs.
    pub batch: f64,
    pub tenants: u64,
}

/// What became of what was offered after the warm-up.
#[derive(Debug, Default)]
pub struct Outcome {
    pub offered: u64,
    pub refused: BTreeMap<&'static str, u64>,
    /// Final rows of the admitted jobs.
    pub ended: Vec<JobRow>,
    /// Jobs that ended by themselves, and in time where they had a deadline, within the window.
    pub useful: u64,
    /// Length of the window in which jobs arrived.
    pub seconds: f64,
}

impl Outcome {
    /// Useful ends per second.
    pub fn goodput(&self) -> f64 {
        self.useful as f64 / self.seconds
    }
}

/// Numbers that look random and follow from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to 1.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.uniform()).ln()
    }

    fn between(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * self.uniform()
    }
}

/// What a job will turn out to be; nobody but the model knows.
#[derive(Debug, Clone, Copy)]
struct Truth {
    tokens_in: u32,
    tokens_out: u32,
}

impl Truth {
    /// 0.5 ms a prompt token, and 20 ms a token, a little more on a shared worker.
    fn times_ms(self, load: u32) -> (u64, u64) {
        let decode = 20.0 * (1.0 + 0.05 * f64::from(load.saturating_sub(1)));
        let prefill = 5.0 + 0.5 * f64::from(self.tokens_in);
        (prefill as u64, (f64::from(self.tokens_out.saturating_sub(1)) * decode) as u64)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Arrival,
    Heartbeat(WorkerId),
    FirstToken(RunKey),
    End(RunKey),
}

pub struct Model {
    scenario: Scenario,
    brain: Orchestrator,
    random: Random,
    now: Time,
    agenda: BTreeSet<(Time, u64, Due)>,
    sequence: u64,
    truths: BTreeMap<JobId, Truth>,
    /// What each worker runs.
    running: BTreeMap<WorkerId, BTreeSet<RunKey>>,
    figures: BTreeMap<RunKey, RunEnd>,
    outcome: Outcome,
    mean_gap_ms: f64,
}

/// Mean tokens of answer and of prompt; what the draws below come to.
fn draw(random: &mut Random) -> (Truth, u64, u32) {
    let max_tokens = [64, 256, 512][(random.next() % 3) as usize];
    let prompt_bytes = random.between(200.0, 8_000.0);
    let tokens_in = (prompt_bytes / BYTES_PER_TOKEN * random.between(0.85, 1.15)) as u32;
    // A third of the answers use up what they may; the others end somewhere on the way.
    let share = if random.uniform() < 0.33 { 1.0 } else { random.between(0.1, 1.0) };
    let tokens_out = ((f64::from(max_tokens) * share) as u32).max(1);
    (Truth { tokens_in, tokens_out }, prompt_bytes as u64, max_tokens)
}

/// Mean milliseconds of a job on a full worker.
fn mean_service_ms(slots: u32) -> f64 {
    let mut random = Random(42);
    let total: u64 = (0..20_000)
        .map(|_| {
            let (prefill, decode) = draw(&mut random).0.times_ms(slots);
            prefill + decode
        })
        .sum();
    total as f64 / 20_000.0
}

impl Model {
    pub fn new(scenario: Scenario) -> Self {
        let now = Time(START);
        let (brain, _) = Orchestrator::recover(Settings::default(), Rows::default(), now);
        let capacity_per_ms =
            scenario.workers as f64 * f64::from(scenario.slots) / mean_service_ms(scenario.slots);
        let mut model = Self {
            scenario,
            brain,
            random: Random(scenario.seed),
            now,
            agenda: BTreeSet::new(),
            sequence: 0,
            truths: BTreeMap::new(),
            running: BTreeMap::new(),
            figures: BTreeMap::new(),
            outcome: Outcome { seconds: (scenario.seconds - scenario.warm_up) as f64, ..Outcome::default() },
            mean_gap_ms: 1.0 / (capacity_per_ms * scenario.load),
        };
        for n in 0..scenario.workers {
            model.start_worker(n);
        }
        model.at(1, Due::Arrival);
        model
    }

    /// Lets jobs arrive for the scenario's time, and all of them end.
    pub fn run(mut self) -> Outcome {
        loop {
            let due = self.agenda.first().map(|(at, _, _)| *at);
            let alarm = self.brain.poll_timeout();
            if self.is_over() {
                return self.outcome;
            }
            match (due, alarm) {
                (Some(due), Some(alarm)) if alarm < due => self.wake(alarm),
                (Some(_), _) => self.happen(),
                (None, _) => return self.outcome,
            }
        }
    }

    fn is_over(&self) -> bool {
        self.now.since(Time(START)) > self.scenario.seconds * 1_000 && self.truths.is_empty()
    }

    fn wake(&mut self, alarm: Time) {
        self.now = alarm.max(self.now);
        let step = self.brain.handle_timeout(self.now);
        self.perform(step);
    }

    fn happen(&mut self) {
        let Some((at, _, due)) = self.agenda.pop_first() else { return };
        self.now = at;
        match due {
            Due::Arrival => self.arrive(),
            Due::Heartbeat(worker_id) => self.beat(worker_id),
            Due::FirstToken(run) => {
                if self.runs(&run) {
                    self.tell(Event::FirstToken(run));
                }
            }
            Due::End(run) => {
                if self.running.get_mut(&run.worker_id).is_some_and(|runs| runs.remove(&run)) {
                    let end = self.figures.remove(&run).expect("figures");
                    self.tell(Event::StreamEnded { run, end });
                }
            }
        }
    }

    fn runs(&self, run: &RunKey) -> bool {
        self.running.get(&run.worker_id).is_some_and(|runs| runs.contains(run))
    }

    fn at(&mut self, in_ms: u64, due: Due) {
        self.sequence += 1;
        self.agenda.insert((self.now + in_ms, self.sequence, due));
    }

    fn tell(&mut self, event: Event) {
        let step = self.brain.handle_event(event, self.now);
        self.perform(step);
    }

    fn start_worker(&mut self, n: u64) {
        let worker_id: WorkerId = format!("w{n:03}").parse().expect("a worker id");
        let facts = facts(&worker_id, self.scenario.slots, n);
        self.running.insert(worker_id.clone(), BTreeSet::new());
        self.tell(Event::WorkerReady {
            request: RequestId(n),
            facts: Box::new(facts),
            status: WorkerStatus::Ready,
            runs: vec![],
            secret: None,
        });
        self.at(HEARTBEAT_MS, Due::Heartbeat(worker_id));
    }

    fn beat(&mut self, worker_id: WorkerId) {
        let row = self.brain.worker_row(&worker_id).expect("registered").clone();
        let runs = self.running[&worker_id]
            .iter()
            .map(|run| Run { job_id: run.job_id, attempt: run.attempt, ended: false })
            .collect();
        self.tell(Event::WorkerHeartbeat {
            request: RequestId(0),
            worker_id: worker_id.clone(),
            incarnation: row.incarnation,
            instance: row.facts.instance,
            status: WorkerStatus::Ready,
            runs,
            free_memory_bytes: None,
            prefixes: None,
        });
        self.at(HEARTBEAT_MS, Due::Heartbeat(worker_id));
    }

    fn is_counted(&self, at: Time) -> bool {
        let ms = at.since(Time(START));
        (self.scenario.warm_up * 1_000..self.scenario.seconds * 1_000).contains(&ms)
    }

    fn arrive(&mut self) {
        if self.now.since(Time(START)) >= self.scenario.seconds * 1_000 {
            return;
        }
        let gap = self.random.exponential(self.mean_gap_ms).round() as u64;
        self.at(gap, Due::Arrival);
        let (truth, prompt_bytes, max_tokens) = draw(&mut self.random);
        let job_id = JobId::from_uuid(Uuid::from_u128(u128::from(self.sequence)));
        let deadline_ms =
            self.scenario.deadlines.map(|(from, to)| self.random.between(from as f64, to as f64) as u64);
        let batch = self.random.uniform() < self.scenario.batch;
        let tenant = self.random.next() % self.scenario.tenants;
        self.outcome.offered += u64::from(self.is_counted(self.now));
        self.truths.insert(job_id, truth);
        self.tell(Event::Submit(Submission {
            request: RequestId(self.sequence),
            job_id,
            model: Some("small".to_owned()),
            chat: false,
            tenant: format!("t{tenant}").parse().expect("a tenant"),
            session_id: None,
            prompt_bytes,
            prompt_tokens: None,
            prefix: PrefixChain::default(),
            max_tokens: Some(max_tokens),
            priority: if batch { Priority::Batch } else { Priority::Interactive },
            deadline_ms,
            on_disconnect: OnDisconnect::Continue,
            retry: RetryMode::BeforeFirstToken,
            placement: Placement::default(),
            durability: Durability::Durable,
            is_read: false,
            idempotency: None,
            correlation_id: "model".parse().expect("an id"),
        }));
    }

    fn perform(&mut self, step: Step) {
        let mut refused = None;
        for action in step.actions {
            match action {
                Action::OpenStream(open) => self.execute(open.run),
                Action::StopRun { run, .. } => {
                    if let Some(runs) = self.running.get_mut(&run.worker_id) {
                        runs.remove(&run);
                    }
                }
                Action::Answer { answer: Answer::Refused(error), request } => {
                    refused = Some((request, error))
                }
                _ => {}
            }
        }
        if let Some((request, error)) = refused {
            let job_id = JobId::from_uuid(Uuid::from_u128(u128::from(request.0)));
            self.truths.remove(&job_id).expect("only submissions are refused here");
            if self.is_counted(self.now) {
                *self.outcome.refused.entry(error.code.as_str()).or_default() += 1;
            }
        }
        for write in step.writes {
            if let Write::EndJob { row, .. } = write {
                self.ended(row);
            }
        }
    }

    fn execute(&mut self, run: RunKey) {
        let runs = self.running.get_mut(&run.worker_id).expect("a worker of ours");
        assert!(runs.len() < self.scenario.slots as usize, "{} has a free slot", run.worker_id);
        runs.insert(run.clone());
        let load = runs.len() as u32;
        let truth = self.truths[&run.job_id];
        let (prefill, decode) = truth.times_ms(load);
        self.figures.insert(
            run.clone(),
            RunEnd {
                tokens_in: truth.tokens_in,
                tokens_out: truth.tokens_out,
                queue_time_ms: 0,
                prefill_time_ms: prefill,
                decode_time_ms: decode,
                stop_reason: StopReason::Eos,
                seed: None,
                tokens_cached: None,
            },
        );
        self.at(prefill, Due::FirstToken(run.clone()));
        self.at(prefill + decode, Due::End(run));
    }

    fn ended(&mut self, row: JobRow) {
        self.truths.remove(&row.job_id);
        let ended_at = row.ended_at.expect("ended");
        let in_time = row.deadline.is_none_or(|deadline| ended_at <= deadline);
        let useful = row.status == TaskStatus::Completed && in_time && self.is_counted(ended_at);
        self.outcome.useful += u64::from(useful);
        if self.is_counted(row.submitted_at) {
            self.outcome.ended.push(row);
        }
    }
}

fn facts(worker_id: &WorkerId, slots: u32, n: u64) -> WorkerFacts {
    WorkerFacts {
        worker_id: worker_id.clone(),
        instance: InstanceId(Uuid::from_u128(u128::from(n))),
        pool_id: None,
        uri: format!("http://{worker_id}"),
        model: "small".to_owned(),
        model_ref: None,
        backend: "fake".to_owned(),
        devices: vec![],
        slots,
        context_length: 8_192,
        vram_bytes: 0,
        ram_bytes: 0,
        quantization: None,
        tokenizer: None,
        capabilities: vec![],
        evictable: false,
        engine: "fake".to_owned(),
        version: "0".to_owned(),
        protocol: PROTOCOL,
    }
}
