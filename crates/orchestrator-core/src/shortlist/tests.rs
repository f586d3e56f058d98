//! Random fleets under random events: the index is exact, the shortlist holds the best of all, and
//! what is written down of a placement is true.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use api_types::prefix::BlockHash;
use api_types::task::{Decision, Durability, OnDisconnect, Placement, Priority, RetryMode, TaskStatus};
use api_types::why::{Change, Counterfactual, RuledOut};
use api_types::worker::{PREFIX_CACHE, WorkerFacts, WorkerState, WorkerStatus};
use api_types::{Attempt, Incarnation, InstanceId, JobId, PROTOCOL, PrefixChain, TenantId, WorkerId};
use proptest::prelude::*;
use uuid::Uuid;

use crate::event::{Event, RequestId, RunKey, Submission};
use crate::feasible::fits;
use crate::orchestrator::Orchestrator;
use crate::place::Choice;
use crate::queue::{Group, Passed};
use crate::reason::reproduce;
use crate::row::{AttemptRow, JobRow, Rows};
use crate::settings::Settings;
use crate::supply::suits;
use crate::time::Time;
use crate::turn::Turn;
use crate::worker::Worker;

const MODELS: [&str; 2] = ["small", "large"];
const POOLS: [Option<&str>; 4] = [None, Some("attic"), Some("box"), Some("mac")];
const CONTEXTS: [u32; 3] = [2_048, 4_096, 8_192];
const BACKENDS: [&str; 3] = ["cpu", "cuda", "metal"];

/// Something that befalls a fleet.
#[derive(Debug, Clone)]
enum Op {
    Register {
        n: u8,
        model: u8,
        pool: u8,
        backend: u8,
        chat: bool,
        slots: u8,
        context: u8,
        status: WorkerStatus,
    },
    Beat {
        n: u8,
        status: WorkerStatus,
        free_memory: u64,
    },
    Hold {
        n: u8,
    },
    Free {
        n: u8,
    },
    Pause {
        n: u8,
        ms: u16,
    },
    BreakProtocol {
        n: u8,
    },
    Drain {
        n: u8,
    },
    GiveUp {
        n: u8,
    },
    Pass {
        ms: u16,
    },
    Timeouts,
    /// It is given a prompt of so many blocks, one that grows out of the other.
    Give {
        n: u8,
        blocks: u8,
    },
    Place {
        placement: Box<Placement>,
        model: u8,
        last: Option<u8>,
        blocks: u8,
        tokens: u32,
    },
}

fn status() -> impl Strategy<Value = WorkerStatus> {
    prop_oneof![
        8 => Just(WorkerStatus::Ready),
        1 => Just(WorkerStatus::Loading),
        1 => Just(WorkerStatus::Draining),
    ]
}

fn names() -> impl Strategy<Value = Vec<String>> {
    let name = prop_oneof![
        (0_u8..24).prop_map(|n| id(n).as_str().to_owned()),
        prop::sample::select(vec!["attic", "box", "mac", "nowhere"]).prop_map(str::to_owned),
    ];
    prop::collection::vec(name, 0..3)
}

fn placement() -> impl Strategy<Value = Box<Placement>> {
    let require = prop::sample::subsequence(vec!["cpu", "cuda", "metal", "chat"], 0..2);
    let pool = prop::option::weighted(0.2, prop::sample::select(vec!["attic", "box", "mac", "nowhere"]));
    let worker = prop::option::weighted(0.1, 0_u8..24);
    (pool, worker, require, names(), names()).prop_map(|(pool, worker, require, prefer, avoid)| {
        Box::new(Placement {
            pool: pool.map(|pool| pool.parse().expect("an id")),
            worker: worker.map(id),
            require: require.into_iter().map(str::to_owned).collect(),
            prefer,
            avoid,
        })
    })
}

fn op() -> impl Strategy<Value = Op> {
    let n = || 0_u8..24;
    prop_oneof![
        6 => (n(), 0_u8..2, 0_u8..4, 0_u8..3, any::<bool>(), 1_u8..5, 0_u8..3, status()).prop_map(
            |(n, model, pool, backend, chat, slots, context, status)| {
                Op::Register { n, model, pool, backend, chat, slots, context, status }
            }
        ),
        6 => (n(), status(), 0_u64..4).prop_map(|(n, status, gb)| {
            Op::Beat { n, status, free_memory: gb * 1_000_000_000 }
        }),
        6 => n().prop_map(|n| Op::Hold { n }),
        3 => n().prop_map(|n| Op::Free { n }),
        1 => (n(), any::<u16>()).prop_map(|(n, ms)| Op::Pause { n, ms: ms / 8 }),
        1 => n().prop_map(|n| Op::BreakProtocol { n }),
        1 => n().prop_map(|n| Op::Drain { n }),
        1 => n().prop_map(|n| Op::GiveUp { n }),
        2 => any::<u16>().prop_map(|ms| Op::Pass { ms: ms / 16 }),
        1 => Just(Op::Timeouts),
        3 => (n(), 0_u8..9).prop_map(|(n, blocks)| Op::Give { n, blocks }),
        8 => (placement(), 0_u8..2, prop::option::of(n()), 0_u8..9, tokens()).prop_map(
            |(placement, model, last, blocks, tokens)| Op::Place { placement, model, last, blocks, tokens }
        ),
    ]
}

/// Tokens that a job brings at least.
fn tokens() -> impl Strategy<Value = u32> {
    prop_oneof![6 => Just(0), 1 => Just(2_048), 1 => Just(4_096), 1 => Just(9_216)]
}

fn id(n: u8) -> WorkerId {
    format!("w{n}").parse().expect("an id")
}

fn facts(n: u8, model: u8, pool: u8, backend: u8, chat: bool, slots: u8, context: u8) -> WorkerFacts {
    let backend = BACKENDS[usize::from(backend)];
    let mut capabilities = vec!["completion".to_owned()];
    capabilities.extend(chat.then(|| "chat".to_owned()));
    capabilities.extend(n.is_multiple_of(2).then(|| PREFIX_CACHE.to_owned()));
    WorkerFacts {
        worker_id: id(n),
        instance: InstanceId(Uuid::from_u128(u128::from(n))),
        pool_id: POOLS[usize::from(pool)].map(|pool| pool.parse().expect("an id")),
        uri: format!("http://w{n}"),
        model: MODELS[usize::from(model)].to_owned(),
        model_ref: None,
        backend: backend.to_owned(),
        devices: vec![],
        slots: u32::from(slots),
        context_length: CONTEXTS[usize::from(context)],
        vram_bytes: 0,
        ram_bytes: 0,
        quantization: None,
        tokenizer: None,
        capabilities,
        evictable: false,
        engine: "fake".to_owned(),
        version: "0".to_owned(),
        protocol: PROTOCOL,
    }
}

struct Fleet {
    brain: Orchestrator,
    now: Time,
    jobs: u128,
}

impl Fleet {
    fn new() -> Self {
        let now = Time(1_000_000);
        let (brain, _) = Orchestrator::recover(Settings::default(), Rows::default(), now);
        Self { brain, now, jobs: 0 }
    }

    fn event(&mut self, event: Event) {
        self.brain.handle_event(event, self.now);
    }

    fn do_one(&mut self, op: Op) {
        let now = self.now;
        match op {
            Op::Register { n, model, pool, backend, chat, slots, context, status } => {
                self.event(Event::WorkerReady {
                    request: RequestId(0),
                    facts: Box::new(facts(n, model, pool, backend, chat, slots, context)),
                    status,
                    runs: vec![],
                    secret: None,
                })
            }
            Op::Beat { n, status, free_memory } => {
                if let Some(worker) = self.brain.registry.get_mut(&id(n)) {
                    worker.hear(status, now);
                    worker.free_memory_bytes = free_memory;
                }
            }
            Op::Hold { n } => {
                let run = self.run(n);
                self.brain.registry.hold_slot(&run);
            }
            Op::Free { n } => {
                let run = self.brain.registry.get(&id(n)).and_then(|worker| {
                    let (job_id, attempt) = *worker.runs.keys().next()?;
                    let incarnation = worker.row.incarnation;
                    Some(RunKey { job_id, attempt, worker_id: id(n), incarnation })
                });
                run.iter().for_each(|run| self.brain.registry.free_slot(run));
            }
            Op::Pause { n, ms } => {
                if let Some(worker) = self.brain.registry.get_mut(&id(n)) {
                    worker.paused_until = Some(now + u64::from(ms));
                }
            }
            Op::BreakProtocol { n } => {
                let settings = self.brain.settings.clone();
                if let Some(worker) = self.brain.registry.get_mut(&id(n)) {
                    (0..3).for_each(|_| worker.break_protocol(&settings, now));
                }
            }
            Op::Drain { n } => self.event(Event::DrainWorker { request: RequestId(0), worker_id: id(n) }),
            Op::GiveUp { n } => {
                let mut turn = Turn::new(now);
                self.brain.give_up_worker(&id(n), WorkerState::Lost, false, &mut turn);
            }
            Op::Pass { ms } => self.now = now + u64::from(ms),
            Op::Timeouts => {
                self.brain.handle_timeout(now);
            }
            Op::Give { n, blocks } => {
                let keeper = self.brain.registry.get(&id(n)).and_then(|worker| worker.keeper());
                keeper.into_iter().for_each(|keeper| self.brain.prefixes.note(keeper, &prompt(blocks), now));
            }
            Op::Place { placement, model, last, blocks, tokens } => {
                let row = self.job(*placement, model, last, blocks, tokens);
                self.place(&row);
            }
        }
    }

    fn run(&mut self, n: u8) -> RunKey {
        self.jobs += 1;
        RunKey {
            job_id: JobId::from_uuid(Uuid::from_u128(self.jobs)),
            attempt: Attempt(1),
            worker_id: id(n),
            incarnation: self.brain.registry.get(&id(n)).map_or(Incarnation(0), |w| w.row.incarnation),
        }
    }

    /// The shortlist's best is the best of all, and the index knows who serves such jobs.
    fn place(&mut self, row: &JobRow) {
        let short = self.decide(row).map(|(_, picked)| picked);
        let brain = &self.brain;
        let full = brain.speculate(row, self.now).picked;
        assert_eq!(short, full, "{row:?}");
        assert_eq!(brain.has_opening_for(row, self.now), full.is_some());
        let suits = |worker: &&Worker| worker.is_staying() && suits(row, worker).is_none();
        assert_eq!(brain.serves(row), brain.registry.of_model(&row.model).any(|w| suits(&w)), "{row:?}");
        let group = Group::of(row);
        for worker in brain.registry.of_model(&row.model) {
            assert_eq!(group.is_met_by(worker), fits(row, worker), "{row:?}");
        }
        let serving = |worker: &&Worker| worker.is_serving(&brain.settings, self.now) && fits(row, worker);
        let contexts = brain.registry.of_model(&row.model).filter(serving);
        let roomiest = brain.roomiest(&row.model, &row.placement).map(|row| row.facts.context_length);
        let most = contexts.map(|worker| worker.row.facts.context_length).max();
        assert!(row.tokens_at_least > 0 || roomiest == most, "{row:?} {roomiest:?} {most:?}");
    }

    fn job(&mut self, placement: Placement, model: u8, last: Option<u8>, blocks: u8, tokens: u32) -> JobRow {
        self.jobs += 1;
        let mut row = job_row(self.jobs, placement, MODELS[usize::from(model)], last);
        row.prefix = prompt(blocks);
        row.tokens_at_least = tokens;
        row
    }

    fn decide(&mut self, row: &JobRow) -> Option<(Decision, WorkerId)> {
        self.brain.registry.refresh(&self.brain.settings, self.now);
        match self.brain.decide(row, None, &mut Turn::new(self.now)) {
            Choice::Taken(decision, picked) => Some((*decision, picked)),
            Choice::KeptFree(_) | Choice::Unfit => None,
        }
    }

    /// Makes the one change that a counterfactual names.
    fn change(&mut self, picked: &WorkerId, other: &Counterfactual) {
        let now = self.now;
        let about = if other.change == Change::PickedAbsent { picked } else { &other.worker_id };
        if let Change::Lifted { because: RuledOut::ContextTooSmall { tokens_at_least, .. } } = other.change {
            let mut worker = self.brain.registry.remove(about).expect("registered");
            worker.row.facts.context_length = tokens_at_least + 1;
            return self.brain.registry.put(worker);
        }
        let worker = self.brain.registry.get_mut(about).expect("registered");
        match &other.change {
            Change::FreeSlots { slots_free } => {
                while worker.slots_free() < *slots_free {
                    worker.runs.pop_first();
                }
            }
            Change::PickedAbsent => worker.paused_until = Some(now + 1),
            Change::Lifted { because } => match because {
                RuledOut::NoFreeSlot { .. } => {
                    while worker.slots_free() == 0 {
                        worker.runs.pop_first();
                    }
                }
                RuledOut::JustBusy { .. } => worker.paused_until = None,
                RuledOut::Quarantined { .. } => worker.quarantined_until = None,
                RuledOut::Silent { .. } => worker.renew(now),
                RuledOut::Lost | RuledOut::Failed => worker.gone = None,
                RuledOut::Loading | RuledOut::NotHeard => worker.status = Some(WorkerStatus::Ready),
                RuledOut::Draining => {
                    worker.row.draining = false;
                    worker.status = Some(WorkerStatus::Ready);
                }
                RuledOut::OtherModel { .. }
                | RuledOut::OtherWorker { .. }
                | RuledOut::OtherPool { .. }
                | RuledOut::Avoided { .. }
                | RuledOut::Lacks { .. }
                | RuledOut::ContextTooSmall { .. }
                | RuledOut::KeptFree { .. } => panic!("not about the worker: {because}"),
            },
        }
        // A lost worker's silence and last words may be older than its loss.
        if let Change::Lifted { because: RuledOut::Lost | RuledOut::Failed } = other.change {
            worker.hear(WorkerStatus::Ready, now);
        }
    }
}

fn prompt(blocks: u8) -> PrefixChain {
    PrefixChain::new((0..u64::from(blocks)).map(BlockHash))
}

fn job_row(n: u128, placement: Placement, model: &str, last: Option<u8>) -> JobRow {
    JobRow {
        job_id: JobId::from_uuid(Uuid::from_u128(n)),
        number: 1,
        status: TaskStatus::Queued,
        model: model.to_owned(),
        chat: false,
        tenant: TenantId::default(),
        session_id: None,
        prompt_bytes: 10_000,
        tokens_at_least: 0,
        prefix: PrefixChain::default(),
        max_tokens: None,
        priority: Priority::Interactive,
        submitted_at: Time(0),
        deadline: None,
        on_disconnect: OnDisconnect::Continue,
        retry: RetryMode::BeforeFirstToken,
        placement,
        durability: Durability::Durable,
        eta: None,
        idempotency: None,
        correlation_id: "test".parse().expect("an id"),
        attempt: last.map(|last| AttemptRow {
            attempt: Attempt(1),
            worker_id: id(last),
            incarnation: Incarnation(1),
            dispatched_at: Time(0),
            first_event_id: 1,
            build: None,
        }),
        not_before: None,
        tries_failed: 0,
        workers_lost: vec![],
        carried: None,
        had_reader: false,
        cancel_requested_at: None,
        ended_at: None,
        end: None,
        error: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn the_recorded_reasons_alone_reproduce_the_choice_and_the_counterfactual_comes_true(
        ops in prop::collection::vec(op(), 10..60),
        placement in placement(),
        last in prop::option::of(0_u8..24),
        blocks in 0_u8..9,
        tokens in tokens(),
    ) {
        let mut fleet = Fleet::new();
        ops.into_iter().for_each(|op| fleet.do_one(op));
        let row = fleet.job(*placement, 0, last, blocks, tokens);
        if let Some((decision, picked)) = fleet.decide(&row) {
            let text = serde_json::to_string(&decision).expect("writes");
            prop_assert!(text.len() < 4_096, "{} bytes", text.len());
            let read: Decision = serde_json::from_str(&text).expect("reads");
            prop_assert_eq!(&read, &decision);
            prop_assert_eq!(reproduce(&read), Some(picked.clone()), "{}", text);
            if let Some(other) = &decision.counterfactual {
                prop_assert_ne!(&other.worker_id, &picked);
                fleet.change(&picked, other);
                let (_, now_picked) = fleet.decide(&row).expect("somebody takes it");
                prop_assert_eq!(&now_picked, &other.worker_id, "{} {}", other, text);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_index_is_exact_after_every_step_and_the_shortlist_holds_the_best(
        ops in prop::collection::vec(op(), 1..120)
    ) {
        let mut fleet = Fleet::new();
        for op in ops {
            let shown = format!("{op:?}");
            fleet.do_one(op);
            fleet.brain.registry.refresh(&fleet.brain.settings, fleet.now);
            prop_assert!(fleet.brain.registry.openings_are_exact(&fleet.brain.settings, fleet.now), "after {shown}");
            let health = fleet.brain.health(fleet.now);
            let all = || fleet.brain.registry.all();
            let serving = all().filter(|w| w.is_serving(&fleet.brain.settings, fleet.now)).count();
            prop_assert_eq!(health.ready_workers, serving as u64);
            prop_assert_eq!(health.workers, all().filter(|w| w.gone.is_none()).count() as u64);
            let openings = fleet.brain.registry.openings();
            for model in MODELS {
                let of_model = || fleet.brain.registry.of_model(model);
                let serving = of_model().filter(|w| w.is_serving(&fleet.brain.settings, fleet.now)).count();
                prop_assert_eq!(openings.serving(model), serving as u64);
                let contexts = || of_model().map(|w| w.row.facts.context_length);
                prop_assert_eq!(openings.most_context(model), contexts().max());
                prop_assert_eq!(openings.least_context_of(model), contexts().min());
            }
            prop_assert_eq!(openings.least_context(), all().map(|w| w.row.facts.context_length).min());
            let later = fleet.now + 3_000;
            let serving = all().filter(|w| w.is_serving(&fleet.brain.settings, later)).count();
            prop_assert_eq!(fleet.brain.health(later).ready_workers, serving as u64);
        }
    }
}

#[test]
fn what_fits_no_open_worker_is_not_looked_at_again_before_one_opens_that_it_fits() {
    let mut fleet = Fleet::new();
    let register = |n, backend, slots| Op::Register {
        n,
        model: 0,
        pool: 0,
        backend,
        chat: true,
        slots,
        context: 0,
        status: WorkerStatus::Ready,
    };
    fleet.do_one(register(1, 0, 1));
    for (at, name) in ["cuda", "metal"].into_iter().enumerate() {
        let placement = Placement { require: vec![name.to_owned()], ..Placement::default() };
        let job_id = JobId::from_uuid(Uuid::from_u128(at as u128 + 1));
        fleet.event(Event::Submit(submission(job_id, placement)));
    }
    let next = |fleet: &Fleet| fleet.brain.queue.next("small", &Passed::default(), &fleet.brain.settings);
    assert_eq!(fleet.brain.queue.len(), 2);
    assert_eq!(next(&fleet), None, "both were looked at once");
    fleet.do_one(register(2, 0, 1));
    assert_eq!(next(&fleet), None, "it is of no use to either");
    fleet.do_one(register(3, 1, 2));
    assert_eq!(fleet.brain.queue.len(), 1, "the first one runs");
    assert_eq!(next(&fleet), None, "the second one still has no worker");
    fleet.do_one(register(4, 2, 1));
    assert_eq!(fleet.brain.queue.len(), 0);
}

fn submission(job_id: JobId, placement: Placement) -> Submission {
    let row = job_row(1, placement, "small", None);
    Submission {
        request: RequestId(1),
        job_id,
        model: Some(row.model),
        chat: row.chat,
        tenant: row.tenant,
        session_id: None,
        prompt_bytes: row.prompt_bytes,
        prompt_tokens: None,
        prefix: row.prefix,
        max_tokens: row.max_tokens,
        priority: row.priority,
        deadline_ms: None,
        on_disconnect: row.on_disconnect,
        retry: row.retry,
        placement: row.placement,
        durability: row.durability,
        is_read: false,
        idempotency: None,
        correlation_id: row.correlation_id,
    }
}
