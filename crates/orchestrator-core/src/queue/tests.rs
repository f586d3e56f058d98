//! The promises of the order, for any mix of tenants, costs and errors of estimates.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::collections::VecDeque;

use api_types::task::{Durability, OnDisconnect, Placement, RetryMode, TaskStatus};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn tenant(n: u8) -> TenantId {
    format!("t{n}").parse().expect("an id")
}

fn row(number: u64, tenant_of: u8, session: Option<u8>) -> JobRow {
    JobRow {
        job_id: JobId::from_uuid(Uuid::from_u128(u128::from(number))),
        number,
        status: TaskStatus::Queued,
        model: "small".to_owned(),
        chat: false,
        prompt_bytes: 4,
        tokens_at_least: 0,
        priority: Priority::Interactive,
        submitted_at: Time(number),
        deadline: None,
        on_disconnect: OnDisconnect::Continue,
        retry: RetryMode::Never,
        placement: Placement::default(),
        durability: Durability::Durable,
        idempotency: None,
        correlation_id: "test".parse().expect("an id"),
        tenant: tenant(tenant_of),
        session_id: session.map(|n| format!("s{n}").parse().expect("an id")),
        prefix: api_types::PrefixChain::default(),
        max_tokens: None,
        eta: None,
        attempt: None,
        not_before: None,
        tries_failed: 0,
        workers_lost: Vec::new(),
        carried: None,
        had_reader: false,
        cancel_requested_at: None,
        ended_at: None,
        end: None,
        error: None,
    }
}

/// The group of jobs that require this.
fn requiring(name: &str) -> Group {
    let mut row = row(1, 0, None);
    row.placement.require = vec![name.to_owned()];
    Group::of(&row)
}

/// A queue before `slots` slots, and the tokens that each tenant and session was served.
struct Bench {
    queue: Queue,
    settings: Settings,
    rows: BTreeMap<JobId, JobRow>,
    running: VecDeque<(JobRow, Charge, u64)>,
    slots: usize,
    number: u64,
    served: BTreeMap<TenantId, u64>,
    served_flows: BTreeMap<Option<SessionId>, u64>,
}

impl Bench {
    fn new(slots: usize) -> Self {
        Self {
            queue: Queue::default(),
            settings: Settings::default(),
            rows: BTreeMap::new(),
            running: VecDeque::new(),
            slots,
            number: 0,
            served: BTreeMap::new(),
            served_flows: BTreeMap::new(),
        }
    }

    fn submit(&mut self, tenant_of: u8, session: Option<u8>) -> JobRow {
        self.number += 1;
        self.put(row(self.number, tenant_of, session))
    }

    fn put(&mut self, row: JobRow) -> JobRow {
        self.queue.push(&row, Rank { order: 0, latest_start: row.deadline });
        self.rows.insert(row.job_id, row.clone());
        row
    }

    fn next(&self) -> Option<Next> {
        self.queue.next("small", &Passed::default(), &self.settings)
    }

    /// When all slots are busy the oldest run ends.
    fn free_slot(&mut self) {
        if self.running.len() >= self.slots {
            let (row, charge, cost) = self.running.pop_front().expect("busy");
            self.queue.settle(&row, &charge, cost);
        }
    }

    /// Serves the next job: taken to cost `expected`, it costs `cost`.
    fn serve(&mut self, expected: u64, cost: u64, weight: u32) -> Option<JobRow> {
        self.free_slot();
        let next = self.next()?;
        let row = self.rows.remove(&next.job_id).expect("waiting");
        let charge = self.queue.take(&row, next.aged, expected, weight).expect("it waits");
        *self.served.entry(row.tenant.clone()).or_default() += cost;
        *self.served_flows.entry(row.session_id.clone()).or_default() += cost;
        self.running.push_back((row.clone(), charge, cost));
        Some(row)
    }

    fn order(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.serve(10, 10, 1)).map(|row| row.number).collect()
    }
}

#[test]
fn without_tenants_and_sessions_it_is_first_come_first_served() {
    let mut bench = Bench::new(1);
    for _ in 0..5 {
        bench.submit(0, None);
    }
    assert_eq!(bench.order(), [1, 2, 3, 4, 5]);
    assert_eq!(bench.queue.len(), 0);
}

#[test]
fn a_light_tenant_goes_next_however_many_jobs_a_heavy_one_has_waiting() {
    let mut bench = Bench::new(1);
    for _ in 0..500 {
        bench.submit(0, None);
    }
    for _ in 0..20 {
        bench.serve(100, 100, 1);
    }
    let light = bench.submit(1, None);
    let behind = bench.queue.before_new("small", Priority::Interactive, &tenant(1), &None);
    assert_eq!((bench.queue.position(&light), behind), (1, 3));
    let served: Vec<u64> = (0..2).filter_map(|_| bench.serve(100, 100, 1)).map(|row| row.number).collect();
    assert!(served.contains(&light.number), "{served:?}");
}

#[test]
fn the_sessions_of_a_tenant_take_turns_and_gain_nothing_for_it() {
    let mut bench = Bench::new(1);
    for session in [None, None, None, Some(1), Some(1), Some(2)] {
        bench.submit(0, session);
    }
    bench.submit(1, None);
    bench.submit(1, None);
    // Tenant 0 has jobs 1 to 6, tenant 1 jobs 7 and 8.
    assert_eq!(bench.order(), [1, 7, 4, 8, 6, 2, 5, 3]);
}

#[test]
fn idleness_is_not_saved_up() {
    let mut bench = Bench::new(1);
    bench.submit(1, None);
    for _ in 0..50 {
        bench.submit(0, None);
    }
    for _ in 0..30 {
        bench.serve(100, 100, 1);
    }
    for _ in 0..30 {
        bench.submit(1, None);
    }
    let next: Vec<TenantId> =
        (0..10).filter_map(|_| bench.serve(100, 100, 1)).map(|row| row.tenant).collect();
    assert_eq!(next.iter().filter(|id| **id == tenant(1)).count(), 5, "{next:?}");
}

#[test]
fn waiting_for_a_worker_that_is_not_there_is_not_saved_up_either() {
    let mut bench = Bench::new(1);
    for n in 0..60 {
        let mut row = row(1_000 + n, 1, None);
        row.placement.require = vec!["cuda".to_owned()];
        bench.put(row);
        bench.submit(0, None);
    }
    bench.queue.set_unfit("small", &requiring("cuda"));
    for _ in 0..30 {
        let next = bench.next().expect("open jobs wait");
        let row = bench.rows.remove(&next.job_id).expect("waiting");
        bench.queue.take(&row, false, 100, 1);
    }
    bench.queue.lift_unfit("small", |group| *group == requiring("cuda"));
    let next: Vec<TenantId> =
        (0..10).filter_map(|_| bench.serve(100, 100, 1)).map(|row| row.tenant).collect();
    let late = next.iter().filter(|id| **id == tenant(1)).count();
    assert!((5..=6).contains(&late), "{next:?}");
}

#[test]
fn who_is_passed_over_is_in_nobodys_way_to_a_bounded_depth() {
    let mut bench = Bench::new(1);
    // Two jobs of a flow, two flows of a tenant: then the next tenant.
    for (tenant_of, session) in [(0, None), (0, None), (0, None), (0, Some(1)), (0, Some(1)), (0, Some(2))] {
        bench.submit(tenant_of, session);
    }
    bench.submit(1, None);
    bench.put(JobRow { priority: Priority::Batch, ..row(9_000, 0, None) });
    let mut passed = Passed::default();
    let mut looked_at = Vec::new();
    while let Some(next) = bench.queue.next("small", &passed, &bench.settings) {
        let row = &bench.rows[&next.job_id];
        looked_at.push(row.number);
        assert!(passed.pass_over(row));
    }
    assert_eq!(looked_at, [1, 2, 4, 5, 7, 9_000]);
    // One that is not the first of its flow can be taken.
    let second = bench.rows[&JobId::from_uuid(Uuid::from_u128(2))].clone();
    assert!(bench.queue.take(&second, false, 100, 1).is_some());
    for tenant_of in 2..200 {
        bench.submit(tenant_of, None);
    }
    let mut passed = Passed::default();
    let next = |passed: &Passed| bench.queue.next("small", passed, &bench.settings);
    let looked_at =
        std::iter::from_fn(|| next(&passed).map(|next| passed.pass_over(&bench.rows[&next.job_id])));
    assert_eq!(looked_at.count(), 16 + 1, "interactive ones, and then the batch job");
}

#[test]
fn a_blocked_tenant_is_in_nobodys_way_and_keeps_its_order() {
    let mut bench = Bench::new(1);
    for tenant_of in [0, 0, 1, 1] {
        bench.submit(tenant_of, None);
    }
    bench.queue.block(&tenant(0));
    assert_eq!(bench.order(), [3, 4]);
    assert_eq!((bench.next(), bench.queue.len()), (None, 2));
    bench.submit(0, None);
    assert_eq!(bench.next(), None);
    assert_eq!(bench.queue.unblock(&tenant(0)), ["small"]);
    assert_eq!(bench.order(), [1, 2, 5]);
}

#[test]
fn an_endless_stream_of_new_sessions_does_not_starve_one_that_was_served_before() {
    let mut bench = Bench::new(1);
    bench.submit(0, Some(200));
    bench.submit(0, Some(201));
    bench.serve(1_000, 1_000, 1);
    let second_turn = bench.submit(0, Some(200));
    for session in 0..100 {
        bench.submit(0, Some(session));
        if bench.serve(100, 100, 1).is_some_and(|row| row.number == second_turn.number) {
            return;
        }
    }
    panic!("the second turn of the first session never came");
}

#[test]
fn aged_batch_jobs_get_one_placement_in_four_and_the_least_served_of_them_goes_first() {
    let mut bench = Bench::new(1);
    for number in 1..=4 {
        bench.put(JobRow { priority: Priority::Batch, ..row(number, u8::from(number == 4), None) });
    }
    for number in 5..=12 {
        bench.put(row(number, 0, None));
    }
    let now = Time(bench.settings.batch_ageing_ms + 4);
    while let Some(job_id) = bench.queue.due_to_age("small", &bench.settings, now) {
        let row = bench.rows.get(&job_id).expect("waiting").clone();
        bench.queue.age(&row, Rank::default());
    }
    assert_eq!(bench.order(), [5, 6, 7, 1, 8, 9, 10, 4, 11, 12, 2, 3]);
}

/// A job as the tests of the order make it: whose it is, what it is taken to cost, what it costs.
fn jobs() -> impl Strategy<Value = Vec<(bool, u64, u64)>> {
    prop::collection::vec((any::<bool>(), 1_u64..1_000, 1_u64..1_000), 50..150)
}

proptest! {
    /// While both wait, two tenants are served within the bound that [`Shares`] states, whatever
    /// their jobs cost and however wrong the estimates are.
    #[test]
    fn two_backlogged_tenants_are_served_alike(
        jobs in jobs(), slots in 1_usize..6, weights in (1_u32..4, 1_u32..4), exact in any::<bool>(),
    ) {
        let mut bench = Bench::new(slots);
        let share = |bench: &Bench, n: u8, weight: u32| {
            bench.served.get(&tenant(n)).copied().unwrap_or(0) / u64::from(weight)
        };
        for _ in 0..2 {
            bench.submit(0, None);
            bench.submit(1, None);
        }
        let (mut largest, mut error) = (0, 0);
        for (_, expected, cost) in jobs {
            let expected = if exact { cost } else { expected };
            largest = largest.max(expected).max(cost);
            error = error.max(expected.abs_diff(cost));
            bench.free_slot();
            let next = bench.next().expect("both wait");
            let of = u8::from(bench.rows[&next.job_id].tenant == tenant(1));
            bench.submit(of, None);
            bench.serve(expected, cost, if of == 0 { weights.0 } else { weights.1 });
            let gap = share(&bench, 0, weights.0).abs_diff(share(&bench, 1, weights.1));
            // What is in flight was served here at its cost and is charged at its estimate.
            let bound = 2 * (largest + slots as u64 * error) + 2 * slots as u64 * error + 2;
            prop_assert!(gap <= bound, "gap {gap} bound {bound}");
        }
    }

    /// A light tenant's job waits for no more of the heavy ones' tokens than a turn for each.
    #[test]
    fn a_light_tenant_never_waits_for_more_than_a_turn_of_each_heavy_one(
        costs in prop::collection::vec(1_u64..500, 60), heavy in 1_u8..5, served in 0_usize..40,
    ) {
        let mut bench = Bench::new(1);
        for of in 0..heavy {
            for _ in 0..60 {
                bench.submit(of, None);
            }
        }
        let mut costs = costs.into_iter().cycle();
        for cost in costs.by_ref().take(served) {
            bench.serve(cost, cost, 1);
        }
        let light = bench.submit(99, None);
        let mut waited = BTreeMap::new();
        loop {
            let cost = costs.next().expect("endless");
            let row = bench.serve(cost, cost, 1).expect("jobs wait");
            if row.number == light.number {
                break;
            }
            let jobs = waited.entry(row.tenant).or_insert(0);
            *jobs += 1;
            prop_assert!(*jobs <= 1, "{waited:?}");
        }
    }

    /// Whatever waits and may be handed out is found: none is lost, none is handed out twice, and
    /// as long as one fits there is a next.
    #[test]
    fn a_job_that_fits_never_waits_beside_a_free_slot(
        steps in prop::collection::vec((0_u8..6, 0_u8..3, prop::option::of(0_u8..3), 0_u8..3), 1..200),
    ) {
        let mut bench = Bench::new(usize::MAX);
        let mut blocked = BTreeSet::new();
        let mut charges = Vec::new();
        for (what, of, session, demand) in steps {
            match what {
                0..=2 => {
                    bench.number += 1;
                    let mut row = row(bench.number, of, session);
                    if demand > 0 {
                        row.placement.require = vec![demand.to_string()];
                    }
                    row.deadline = (what == 1).then_some(Time(u64::from(demand)));
                    row.priority = if what == 2 { Priority::Batch } else { Priority::Interactive };
                    bench.put(row);
                }
                3 if blocked.remove(&of) => {
                    bench.queue.unblock(&tenant(of));
                }
                3 => {
                    blocked.insert(of);
                    bench.queue.block(&tenant(of));
                }
                4 => {
                    let first = bench.rows.values().find(|row| row.tenant == tenant(of)).cloned();
                    if let Some(row) = first {
                        bench.rows.remove(&row.job_id);
                        bench.queue.remove(&row);
                    }
                }
                _ => {
                    if let Some(next) = bench.next() {
                        let row = bench.rows.remove(&next.job_id).expect("it waits");
                        let charge = bench.queue.take(&row, next.aged, 100, 1).expect("it waits");
                        charges.push((row, charge));
                    }
                    if charges.len() > 3 {
                        let (row, charge) = charges.remove(0);
                        bench.queue.settle(&row, &charge, 7);
                    }
                }
            }
            prop_assert_eq!(bench.queue.len(), bench.rows.len() as u64);
            bench.queue.set_unfit("small", &requiring("1"));
            let fits = |row: &&JobRow| row.placement.require != ["1"] && !blocked.iter().any(|of| row.tenant == tenant(*of));
            let next = bench.next();
            bench.queue.lift_unfit("small", |group| *group == requiring("1"));
            prop_assert_eq!(next.is_some(), bench.rows.values().any(|row| fits(&row)));
            if let Some(next) = next {
                prop_assert!(fits(&&bench.rows[&next.job_id]));
            }
        }
    }
}

proptest! {
    /// Whatever the jobs of a flow demand, whatever their deadlines, and whoever leaves: each is told how
    /// many are really served before it, and a new one the same as it is told once it is there.
    #[test]
    fn a_position_is_how_many_are_served_before(
        jobs in prop::collection::vec((prop::option::of(0_u64..30), any::<bool>(), any::<bool>()), 1..40),
    ) {
        let mut bench = Bench::new(1);
        for (number, (deadline, demands, _)) in (1..).zip(&jobs) {
            let mut row = row(number, 0, Some(1));
            row.deadline = deadline.map(|at| Time(1_000_000 + at));
            row.placement.require.extend(demands.then(|| "cuda".to_owned()));
            let new = bench.queue.before_new("small", Priority::Interactive, &row.tenant, &row.session_id);
            let row = bench.put(row);
            if deadline.is_none() {
                prop_assert_eq!(bench.queue.position(&row), new);
            }
        }
        for (number, (_, _, leaves)) in (1_u64..).zip(&jobs) {
            let id = JobId::from_uuid(Uuid::from_u128(u128::from(number)));
            if let Some(row) = bench.rows.get(&id).filter(|_| *leaves).cloned() {
                bench.queue.remove(&row);
                bench.rows.remove(&id);
            }
        }
        let told: BTreeMap<u64, u64> =
            bench.rows.values().map(|row| (row.number, bench.queue.position(row))).collect();
        let order = bench.order();
        prop_assert_eq!(order.len(), told.len());
        for (at, number) in order.iter().enumerate() {
            prop_assert_eq!(told.get(number), Some(&(at as u64)), "{:?}", order);
        }
    }
}

#[test]
fn a_job_that_rests_is_told_the_place_it_would_have_if_it_came_now() {
    let mut bench = Bench::new(1);
    (0..3).for_each(|_| drop(bench.submit(0, None)));
    let resting = row(100, 0, None);
    bench.queue.rest(&resting);
    assert_eq!(bench.queue.position(&resting), 3);
    assert!(bench.queue.wake(&resting, Rank::default()));
    assert_eq!(bench.queue.position(&resting), 3);
}

/// A world of heavy sharers with jobs without end, of newcomers without end, and of a light one.
struct Crowd {
    bench: Bench,
    /// Whether they are sessions of one tenant, or tenants.
    are_sessions: bool,
    heavy: usize,
    newcomers: usize,
    costs: Vec<(u64, u64)>,
    at: usize,
    /// What the jobs of each cost that were handed out.
    cost: BTreeMap<String, u64>,
    largest: u64,
    error: u64,
    sharers: usize,
}

impl Crowd {
    fn put(&mut self, name: &str) -> JobRow {
        self.bench.number += 1;
        let mut row = row(self.bench.number, 0, None);
        if self.are_sessions {
            row.session_id = Some(name.parse().expect("an id"));
        } else {
            row.tenant = name.parse().expect("an id");
        }
        self.bench.put(row)
    }

    fn name(&self, row: &JobRow) -> String {
        row.session_id.as_ref().map_or_else(|| row.tenant.to_string(), ToString::to_string)
    }

    /// One newcomer or none joins, and the next job is served. Gives whose it was and its charge.
    fn step(&mut self) -> (String, u64) {
        if self.newcomers > 0 && self.at.is_multiple_of(self.newcomers) {
            // Some sort before the light one, some behind it.
            self.put(&format!("{}{}", if self.at.is_multiple_of(3) { 'a' } else { 'z' }, self.at));
        }
        let waiting: BTreeSet<String> = self.bench.rows.values().map(|row| self.name(row)).collect();
        self.sharers = self.sharers.max(waiting.len());
        let (expected, cost) = self.costs[self.at % self.costs.len()];
        self.at += 1;
        self.largest = self.largest.max(expected).max(cost);
        self.error = self.error.max(expected.abs_diff(cost));
        let row = self.bench.serve(expected, cost, 1).expect("jobs wait");
        let name = self.name(&row);
        *self.cost.entry(name.clone()).or_default() += cost;
        if name.starts_with("heavy") {
            self.put(&name);
        }
        (name, expected)
    }

    /// What a counter says: what ended at its cost, what runs as it was charged.
    fn counted(&self, name: &str) -> u64 {
        let own = |row: &JobRow| self.name(row) == name;
        let running = self.bench.running.iter().filter(|(row, ..)| own(row));
        let (charged, cost) =
            running.fold((0, 0), |(charged, sum), (_, charge, cost)| (charged + charge.tokens, sum + cost));
        self.cost.get(name).copied().unwrap_or(0) - cost + charged
    }

    /// `U + M·E` as far as it has shown.
    fn unit(&self) -> u64 {
        self.largest + self.bench.slots as u64 * self.error
    }
}

fn crowd() -> impl Strategy<Value = Crowd> {
    let costs = prop::collection::vec((1_u64..500, 1_u64..500), 20..60);
    let sizes = (1_usize..5, 0_usize..4, 1_usize..5);
    (any::<bool>(), any::<bool>(), sizes, costs).prop_map(|(are_sessions, exact, sizes, costs)| {
        let (heavy, newcomers, slots) = sizes;
        let exact = |(expected, cost): (u64, u64)| if exact { (cost, cost) } else { (expected, cost) };
        let mut crowd = Crowd {
            bench: Bench::new(slots),
            are_sessions,
            heavy,
            // Tenants are few and come back.
            newcomers: if are_sessions { newcomers } else { 0 },
            costs: costs.into_iter().map(exact).collect(),
            at: 0,
            cost: BTreeMap::new(),
            largest: 0,
            error: 0,
            sharers: 0,
        };
        for n in 0..crowd.heavy {
            (0..20).for_each(|_| drop(crowd.put(&format!("heavy{n}"))));
        }
        crowd
    })
}

impl std::fmt::Debug for Crowd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { are_sessions, heavy, newcomers, costs, .. } = self;
        write!(f, "sessions: {are_sessions}, heavy: {heavy}, newcomers: {newcomers}, costs: {costs:?}")
    }
}

proptest! {
    /// Whatever heavy ones have waiting, however wrong the estimates are, and however many sessions
    /// begin: a light tenant, and a light session, is served within the bound that [`Shares`] states.
    #[test]
    fn a_light_one_is_served_within_the_stated_bound(
        mut crowd in crowd(), warm_up in 0_usize..40, turns in 1_usize..4,
    ) {
        (0..warm_up).for_each(|_| drop(crowd.step()));
        for _ in 0..turns {
            crowd.put("light");
            let (mut charged, mut sharers) = (0, 0);
            loop {
                crowd.sharers = 0;
                let (name, amount) = crowd.step();
                sharers = sharers.max(crowd.sharers);
                if name == "light" {
                    break;
                }
                charged += amount;
                let bound = (3 * sharers as u64 + 1) * crowd.unit();
                prop_assert!(charged <= bound, "{charged} were charged to others, the bound is {bound}");
            }
        }
    }

    /// While both wait, two heavy sessions of one tenant are served alike, as two tenants are, whoever
    /// joins and leaves beside them.
    #[test]
    fn two_that_wait_are_served_alike_whoever_comes_and_goes(mut crowd in crowd(), steps in 50_usize..200) {
        for _ in 0..steps {
            crowd.step();
            let heavy: Vec<u64> = (0..crowd.heavy).map(|n| crowd.counted(&format!("heavy{n}"))).collect();
            let gap = heavy.iter().max().expect("one") - heavy.iter().min().expect("one");
            prop_assert!(gap <= crowd.unit(), "{heavy:?} differ by {gap}, the bound is {}", crowd.unit());
        }
    }
}
