use api_types::{InstanceId, PROTOCOL};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const SECOND: Work = 1_000_000;

fn job(n: u8) -> JobId {
    JobId::from_uuid(Uuid::from_u128(u128::from(n)))
}

fn tenant(n: u8) -> TenantId {
    format!("t{n}").parse().expect("a tenant")
}

fn facts(n: u8, slots: u32) -> WorkerFacts {
    WorkerFacts {
        worker_id: format!("w{n}").parse().expect("a worker"),
        instance: InstanceId(Uuid::nil()),
        pool_id: None,
        uri: String::new(),
        model: "m".to_owned(),
        model_ref: None,
        backend: "fake".to_owned(),
        devices: vec![],
        slots,
        context_length: 1,
        vram_bytes: 0,
        ram_bytes: 0,
        quantization: None,
        tokenizer: None,
        capabilities: vec![],
        evictable: false,
        engine: String::new(),
        version: String::new(),
        protocol: PROTOCOL,
    }
}

fn asked(class: Priority, tenant: &TenantId) -> Asked<'_> {
    Asked { class, tenant, work: SECOND, now: 0 }
}

fn run(end: Work) -> Running {
    Running { began: 0, end: Some(end), service_ms: None, load: 1 }
}

#[test]
fn a_wait_is_what_lies_ahead_over_the_slots() {
    use Priority::{Batch, Interactive};
    let mut ledger = Ledger::default();
    let own = tenant(0);
    assert_eq!(ledger.wait_of_new("m", &asked(Interactive, &own), None), None, "nobody serves the model");
    ledger.put_worker(&facts(1, 2), 2);
    assert_eq!(ledger.wait_of_new("m", &asked(Interactive, &own), None), Some(0), "a slot is free");
    ledger.put_running(job(1), "m", run(2 * SECOND));
    ledger.put_running(job(2), "m", run(4 * SECOND));
    let wait =
        |ledger: &mut Ledger, class, tenant: &TenantId| ledger.wait_of_new("m", &asked(class, tenant), None);
    assert_eq!(wait(&mut ledger, Interactive, &own), Some(3 * SECOND / 2), "3 s are left on average");
    ledger.put_waiting(job(3), "m", Interactive, &own, None, Some(5 * SECOND));
    ledger.put_waiting(job(4), "m", Interactive, &own, None, None);
    assert_eq!(wait(&mut ledger, Interactive, &own), Some((3 + 5 + 1) * SECOND / 2));
    assert_eq!(wait(&mut ledger, Interactive, &tenant(1)), Some(3 * SECOND / 2), "its line is empty");
    assert_eq!(wait(&mut ledger, Batch, &tenant(1)), Some((3 + 6) * SECOND / 2), "interactive goes first");
    assert_eq!(ledger.wait_of(job(3), SECOND, None, 0), Some((3 + 1) * SECOND / 2));
}

#[test]
fn batch_jobs_get_what_the_interactive_ones_that_come_in_leave() {
    let mut ledger = Ledger::default();
    let own = tenant(0);
    ledger.put_worker(&facts(1, 1), 1);
    ledger.put_running(job(1), "m", Running { began: 150 * SECOND, ..run(200 * SECOND) });
    let mut now = 60 * SECOND;
    for _ in 0..240 {
        now += SECOND / 2;
        ledger.note_arrival("m", Priority::Interactive, SECOND / 4, now);
    }
    let asked = Asked { class: Priority::Batch, tenant: &own, work: SECOND, now };
    let wait = ledger.wait_of_new("m", &asked, None).expect("served");
    let alone = 20 * SECOND;
    assert!(wait.abs_diff(2 * alone) < SECOND, "half of the slot is left, so it takes twice as long: {wait}");
}

#[test]
fn a_run_over_its_time_has_the_more_left_the_longer_it_has_lasted() {
    let mut ledger = Ledger::default();
    let own = tenant(0);
    ledger.put_worker(&facts(1, 1), 1);
    ledger.put_running(job(1), "m", run(10 * SECOND));
    ledger.put_waiting(job(2), "m", Priority::Interactive, &own, None, Some(SECOND));
    let left =
        |ledger: &Ledger, seconds| ledger.wait_of(job(2), SECOND, None, seconds * SECOND).expect("it waits");
    let told = |ledger: &Ledger| [0, 5, 8, 10, 20, 100].map(|at| left(ledger, at) / (SECOND / 2));
    let halves = [20, 10, 4, 5, 10, 50];
    assert_eq!(told(&ledger), halves, "it shrinks, and grows once the run shows no sign of ending");
    ledger.pass_time(job(2), 100 * SECOND);
    assert_eq!(left(&ledger, 100), 25 * SECOND, "whether that was noted before it was asked or not");
    ledger.remove(job(1));
    assert_eq!(left(&ledger, 100), 0);
}

#[derive(Debug, Clone)]
enum Doing {
    Wait(u8, bool, u8, Option<Work>),
    Run(u8, Work),
    Remove(u8),
    Worker(u8, u64),
}

fn doing() -> impl Strategy<Value = Doing> {
    let work = proptest::option::of(1..(9 * SECOND));
    prop_oneof![
        4 => (0..12_u8, any::<bool>(), 0..3_u8, work).prop_map(|(n, b, t, w)| Doing::Wait(n, b, t, w)),
        2 => (0..12_u8, 1..(9 * SECOND)).prop_map(|(n, end)| Doing::Run(n, end)),
        2 => (0..12_u8).prop_map(Doing::Remove),
        1 => (0..3_u8, 0..4_u64).prop_map(|(n, slots)| Doing::Worker(n, slots)),
    ]
}

proptest! {
    /// Whatever comes and goes in whatever order, the sums are those of what is there.
    #[test]
    fn sums_are_what_a_recount_gives(
        doings in proptest::collection::vec(doing(), 0..80),
        now in 0..(20 * SECOND),
    ) {
        let mut ledger = Ledger::default();
        let mut waiting: BTreeMap<u8, (Priority, u8, Option<Work>)> = BTreeMap::new();
        let mut running: BTreeMap<u8, Work> = BTreeMap::new();
        let mut slots: BTreeMap<u8, u64> = BTreeMap::new();
        for doing in doings {
            match doing {
                Doing::Wait(n, batch, of, work) => {
                    let class = if batch { Priority::Batch } else { Priority::Interactive };
                    ledger.put_waiting(job(n), "m", class, &tenant(of), None, work);
                    running.remove(&n);
                    waiting.insert(n, (class, of, work));
                }
                Doing::Run(n, end) => {
                    ledger.put_running(job(n), "m", run(end));
                    waiting.remove(&n);
                    running.insert(n, end);
                }
                Doing::Remove(n) => {
                    ledger.remove(job(n));
                    waiting.remove(&n);
                    running.remove(&n);
                }
                Doing::Worker(n, of) => {
                    ledger.put_worker(&facts(n, of as u32), of);
                    slots.insert(n, of);
                }
            }
        }
        let count = |class| waiting.values().filter(|(of, _, _)| *of == class).count() as u64;
        let all: u64 = slots.values().sum();
        let is_idle = waiting.is_empty() && running.is_empty() && all == 0;
        prop_assert_eq!(ledger.models.is_empty(), is_idle, "what is idle is forgotten");
        prop_assert_eq!(ledger.jobs.len(), waiting.len() + running.len());
        if let Some(load) = ledger.models.get("m") {
            prop_assert_eq!((load.slots, load.running.jobs), (all, running.len() as u64));
            let own = tenant(0);
            let asked = Asked { now, ..asked(Priority::Interactive, &own) };
            let left = |end: &Work| if now >= end / 5 * 4 { u128::from(now) } else { u128::from(4 * (end - now)) };
            let mean = running.values().map(left).sum::<u128>() / 4 / running.len().max(1) as u128;
            let off = |load: &ModelLoad| u128::from(load.running.mean_left(&asked)).abs_diff(mean);
            prop_assert!(off(load) <= 1);
            for class in [Priority::Interactive, Priority::Batch] {
                prop_assert_eq!(load.class(class).sum.jobs, count(class));
                for of in 0..3_u8 {
                    let own = waiting.values().filter(|(c, t, _)| *c == class && *t == of);
                    let size: Work = own.map(|(_, _, work)| work.unwrap_or(SECOND)).sum();
                    let line = load.class(class).lines.get(&tenant(of));
                    prop_assert_eq!(line.map_or(0, |line| line.sum.size(SECOND)), size);
                }
            }
        }
    }
}
