//! What a seed means: the machines, the jobs, and when which fault strikes.

use api_types::prefix::BlockHash;
use api_types::task::{Durability, OnDisconnect, Placement, Priority, RetryMode};
use api_types::{PrefixChain, SessionId, TenantId};
use orchestrator_core::quota::{Quota, Quotas};
use orchestrator_core::{FullPolicy, Settings};

use crate::faults::Fault;
use crate::operator::Order;
use crate::rng::{Rng, mix};

mod extra;
mod fleet;

pub use extra::{ModelPlan, PoolPlan};

/// When the faults stop, in milliseconds from the start; later where too few had an effect.
pub const HEAL_AT: u64 = 70_000;
/// How long everything may take to end after that.
pub const SETTLE_MS: u64 = 400_000;

/// One run of the simulation, laid out before it starts.
#[derive(Debug)]
pub struct Plan {
    /// How the brain is set.
    pub settings: Settings,
    /// The machines.
    pub workers: Vec<WorkerPlan>,
    /// The jobs and what their clients do, each at its time.
    pub clients: Vec<ClientPlan>,
    /// What strikes when.
    pub faults: Vec<(u64, Fault)>,
    /// Machines that start workers when they are asked.
    pub pools: Vec<PoolPlan>,
    /// What the operator does when.
    pub orders: Vec<(u64, Order)>,
    /// Every so many answers of a policy that is a script the watchdog cuts one.
    pub watchdog_every: Option<u64>,
}

/// One worker.
#[derive(Debug, Clone)]
pub struct WorkerPlan {
    /// The name of its model.
    pub model: &'static str,
    /// Jobs it can run at once.
    pub slots: u32,
    /// Milliseconds it takes to load.
    pub load_ms: u64,
}

/// One client with one job.
#[derive(Debug, Clone)]
pub struct ClientPlan {
    /// When it submits; `None` is a while after the faults have stopped.
    pub at: Option<u64>,
    /// The model.
    pub model: &'static str,
    /// Who it is done for.
    pub tenant: TenantId,
    /// The conversation it belongs to.
    pub session_id: Option<SessionId>,
    /// The start of its prompt; conversations share theirs.
    pub prefix: PrefixChain,
    /// Its class.
    pub priority: Priority,
    /// Its deadline.
    pub deadline_ms: Option<u64>,
    /// What happens when it leaves.
    pub on_disconnect: OnDisconnect,
    /// What happens when its worker is lost.
    pub retry: RetryMode,
    /// Where it may run.
    pub placement: Placement,
    /// Whether it is written down.
    pub durability: Durability,
    /// Whether it bears an idempotency key, so that it can be sent again.
    pub keyed: bool,
    /// Whether it is sent twice from the start.
    pub doubled: bool,
    /// Whether it reads its stream.
    pub reads: bool,
    /// Milliseconds after the answer at which it cancels.
    pub cancels_after: Option<u64>,
    /// Milliseconds after which it drops its connection, and for how long it stays away.
    pub leaves: Option<(u64, u64)>,
    /// Whether its job is for that connection alone, so that leaving is abandoning; then it comes back
    /// with its task instead of for its stream, once.
    pub abandons: bool,
    /// Tokens its answer has.
    pub tokens: u32,
    /// What becomes of its runs.
    pub fate: Fate,
}

/// What becomes of a job's runs on a healthy worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They end by themselves.
    Fine,
    /// The engine fails in the first attempt, before a token.
    FailsOnce,
    /// The prompt is longer than the context.
    Overflows,
    /// The first attempt never says anything.
    Stalls,
    /// The first attempt sends what is not the protocol.
    Garbles,
    /// It ends the process that runs it, always.
    Kills,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let models: &[&'static str] = if rng.chance(60) { &["small"] } else { &["small", "large"] };
        let workers: Vec<_> = (0..rng.between(1, 4))
            .map(|n| WorkerPlan {
                model: models[n as usize % models.len()],
                slots: rng.between(1, 3) as u32,
                load_ms: rng.between(50, 4_000),
            })
            .collect();
        let runnable = models.len().min(workers.len());
        let clients = (0..rng.between(15, 40)).map(|_| client(&mut rng, &models[..runnable])).collect();
        let faults = faults(&mut rng, workers.len() as u64);
        let settings = settings(&mut rng);
        let none = (Vec::new(), Vec::new(), None);
        let (pools, orders, watchdog_every) = none;
        let mut plan = Self { settings, workers, clients, faults, pools, orders, watchdog_every };
        plan.add_more(seed);
        plan
    }
}

fn settings(rng: &mut Rng) -> Settings {
    Settings {
        quotas: quotas(rng),
        queue_capacity: if rng.chance(30) { Some(rng.between(3, 12)) } else { Some(1_000) },
        full_policy: if rng.chance(50) { FullPolicy::Reject } else { FullPolicy::DropOldestBatch },
        job_time_limit_ms: 40_000,
        batch_ageing_ms: 8_000,
        quarantine_ms: 20_000,
        ..Settings::default()
    }
}

/// Now and then tenants may have only so much at one time.
fn quotas(rng: &mut Rng) -> Quotas {
    let default = Quota {
        concurrency: rng.chance(25).then(|| rng.between(1, 3)),
        queued: rng.chance(15).then(|| rng.between(4, 12)),
        tokens_per_minute: rng.chance(10).then(|| rng.between(100, 2_000)),
        weight: 1,
    };
    let heavy = Quota { weight: 3, ..Quota::default() };
    Quotas { default, tenants: tenant("tenant-1").map(|tenant| (tenant, heavy)).into_iter().collect() }
}

fn tenant(name: &str) -> Option<TenantId> {
    name.parse().ok()
}

/// A prompt of some blocks, the first of which its conversation shares.
fn prefix(rng: &mut Rng, conversation: u64) -> PrefixChain {
    let blocks = rng.between(0, 5);
    PrefixChain::new((0..blocks).map(|block| BlockHash(mix(conversation << 8 | block))))
}

fn client(rng: &mut Rng, models: &[&'static str]) -> ClientPlan {
    let conversation = rng.between(0, 5);
    ClientPlan {
        tenant: tenant(&format!("tenant-{}", rng.between(0, 2))).unwrap_or_default(),
        session_id: rng.chance(40).then(|| format!("session-{conversation}").parse().ok()).flatten(),
        prefix: prefix(rng, conversation),
        at: Some(rng.between(0, HEAL_AT - 10_000)),
        model: models[rng.next() as usize % models.len()],
        priority: if rng.chance(30) { Priority::Batch } else { Priority::Interactive },
        deadline_ms: rng.chance(15).then(|| rng.between(500, 30_000)),
        on_disconnect: if rng.chance(50) { OnDisconnect::Cancel } else { OnDisconnect::Continue },
        retry: match rng.between(0, 99) {
            0..=9 => RetryMode::Never,
            10..=39 => RetryMode::Continue,
            _ => RetryMode::BeforeFirstToken,
        },
        placement: Placement::default(),
        durability: if rng.chance(10) { Durability::Memory } else { Durability::Durable },
        keyed: rng.chance(70),
        doubled: rng.chance(20),
        reads: rng.chance(80),
        cancels_after: rng.chance(20).then(|| rng.between(0, 8_000)),
        leaves: rng.chance(40).then(|| (rng.between(10, 6_000), rng.between(10, 14_000))),
        abandons: false,
        tokens: rng.between(0, 60) as u32,
        fate: fate(rng),
    }
}

const fn fate(rng: &mut Rng) -> Fate {
    match rng.between(0, 99) {
        0..=4 => Fate::FailsOnce,
        5..=8 => Fate::Overflows,
        9..=11 => Fate::Stalls,
        12..=14 => Fate::Garbles,
        15..=16 => Fate::Kills,
        _ => Fate::Fine,
    }
}

fn faults(rng: &mut Rng, workers: u64) -> Vec<(u64, Fault)> {
    (0..rng.between(20, 40)).map(|_| (rng.between(1_000, HEAL_AT - 1), Fault::draw(rng, workers))).collect()
}
