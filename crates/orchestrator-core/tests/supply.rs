//! Capacity on demand: workers that come because jobs wait, and go because others need their memory.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

#[path = "world/pools.rs"]
mod pools;

use std::collections::BTreeMap;
use std::sync::Arc;

use api_types::prefix::BlockHash;
use api_types::task::{Placement, TaskStatus};
use api_types::worker::{PREFIX_CACHE, WorkerState, WorkerStatus};
use api_types::{ErrorCode, ErrorDetail, PrefixChain, StopReason};
use orchestrator_core::policy::{Hook, Policy, PolicyChange, PolicyFailure, PolicyText, Scripts, WorkerLoad};
use orchestrator_core::{
    Action, Answer, Event, Notice, Orchestrator, Settings, Step, Submission, SupplySettings, UnloadCause,
};
use pools::{MIB, Pools, asked, killed, room, spawned};
use world::{World, acts, answer, end, job, opened, submission};

fn wanting(n: u128, model: &str) -> Event {
    Event::Submit(Submission { model: Some(model.to_owned()), ..submission(n) })
}

fn patient() -> Settings {
    let supply =
        SupplySettings { min_residency_ms: 4_000, swap_patience_ms: 6_000, ..SupplySettings::default() };
    Settings { supply, ..Settings::default() }
}

fn causes(step: &Step) -> Vec<UnloadCause> {
    let causes = step.actions.iter().filter_map(|action| match action {
        Action::Notify(Notice::Unload { cause, .. }) => Some(*cause),
        _ => None,
    });
    causes.collect()
}

/// Ends the only run of a job.
fn finish(world: &mut World, n: u128) -> Step {
    let standing = world.brain.job(job(n)).expect("known");
    let attempt = standing.row.attempt.expect("an attempt");
    let run = orchestrator_core::RunKey {
        job_id: job(n),
        attempt: attempt.attempt,
        worker_id: attempt.worker_id,
        incarnation: attempt.incarnation,
    };
    world.event(Event::StreamEnded { run, end: end(1, StopReason::Eos) })
}

#[test]
fn a_job_for_a_model_that_nobody_runs_gets_a_worker() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("big", 300)]);
    let submitted = world.event(wanting(1, "big"));
    assert!(matches!(answer(&submitted), Answer::Accepted { .. }));
    let (pool, ask) = asked(&submitted).pop().expect("the pool is asked first");
    assert_eq!(pool.as_str(), "mac");
    let step = pools.answer(&mut world, "mac", ask);
    let worker = spawned(&step).pop().expect("then for a worker");
    assert_eq!(world.spawns.len(), 1, "it is written down before it is asked for");
    assert!(world.brain.why(job(1), world.now).expect("waits").summary.contains("is starting one"));
    let step = pools.come_up(&mut world, &worker);
    assert_eq!(opened(&step).len(), 1, "the job runs");
    assert!(world.spawns.is_empty(), "what is registered is no spawn any more");
    assert_eq!(world.status(1), TaskStatus::Dispatched);
}

#[test]
fn a_second_job_of_the_model_asks_for_nothing_more() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("big", 300)]);
    let worker = pools.first_worker(&mut world, 1, "big");
    for n in 2..9 {
        let step = world.event(wanting(n, "big"));
        assert!(asked(&step).is_empty() && spawned(&step).is_empty());
    }
    pools.come_up(&mut world, &worker);
    let step = world.event(wanting(9, "big"));
    assert!(asked(&step).is_empty() && spawned(&step).is_empty(), "a full worker is a worker");
}

#[test]
fn an_idle_worker_gives_way_and_a_pinned_one_does_not() {
    for pinned in [false, true] {
        let mut world = World::new();
        let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 600), ("b", 600)]);
        pools.evictable = !pinned;
        pools.resident(&mut world, "w1", "mac", "a");
        let submitted = world.event(wanting(1, "b"));
        let step = pools.answer_all(&mut world, &submitted);
        if pinned {
            assert!(killed(&step).is_empty() && spawned(&step).is_empty());
            let why = world.brain.why(job(1), world.now).expect("waits").summary;
            assert!(why.contains("held by pinned workers"), "{why}");
            continue;
        }
        assert_eq!(causes(&step), [UnloadCause::Evicted]);
        let victim = killed(&step).pop().expect("one is stopped");
        assert_eq!(victim.as_str(), "w1");
        let step = pools.stopped(&mut world, &victim);
        let step = pools.answer_all(&mut world, &step);
        let worker = spawned(&step).pop().expect("its memory is used");
        assert_eq!(opened(&pools.come_up(&mut world, &worker)).len(), 1);
    }
}

#[test]
fn what_a_stopped_worker_kept_of_prompts_is_forgotten_with_it() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 600), ("b", 600)]);
    pools.capabilities.push(PREFIX_CACHE.to_owned());
    pools.resident(&mut world, "w1", "mac", "a");
    let prefix = PrefixChain::new([1, 2, 3].map(BlockHash));
    let task = Submission { model: Some("a".to_owned()), prefix, prompt_bytes: 4_000, ..submission(1) };
    let step = world.event(Event::Submit(task));
    let given = |action: &Action| matches!(action, Action::OpenStream(open) if open.prefix.is_some());
    assert!(step.actions.iter().any(given), "the worker keeps what it is given: {step:?}");
    finish(&mut world, 1);
    let submitted = world.event(wanting(2, "b"));
    let victim = killed(&pools.answer_all(&mut world, &submitted)).pop().expect("it gives way");
    assert!(world.brain.indexes_are_exact());
    // The pool is the only one to tell: the worker said nothing before its process ended.
    pools.stopped(&mut world, &victim);
    assert_eq!(world.brain.worker_row(&victim), None);
    assert!(world.brain.indexes_are_exact(), "nobody holds the prompt any more");
}

#[test]
fn models_of_a_pool_that_was_removed_are_not_taken_in() {
    let mut world = World::new();
    let pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
    let listed = |world: &World| world.brain.models().models.into_iter().map(|m| m.id).collect::<Vec<_>>();
    assert_eq!(listed(&world), ["a"]);
    let request = world.request();
    world.event(Event::RemovePool { request, pool_id: pools.id("mac") });
    assert_eq!(listed(&world), Vec::<String>::new());
    // Its answer to an earlier question was on its way.
    let late = pools.tell_catalogs(&mut world);
    assert_eq!(listed(&world), Vec::<String>::new());
    assert!(late.iter().flat_map(|step| &step.actions).any(is_stale_catalog), "{late:?}");
}

fn is_stale_catalog(action: &Action) -> bool {
    matches!(action, Action::Notify(Notice::StaleDropped { kind: "pool_models" }))
}

#[test]
fn the_least_recently_used_of_the_idle_goes() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 800)], &[("a", 300), ("b", 300), ("c", 300)]);
    pools.resident(&mut world, "w1", "mac", "a");
    world.pass(10);
    pools.resident(&mut world, "w2", "mac", "b");
    world.pass(10);
    let used = world.event(wanting(1, "a"));
    assert_eq!(opened(&used).len(), 1);
    finish(&mut world, 1);
    let submitted = world.event(wanting(2, "c"));
    let step = pools.answer_all(&mut world, &submitted);
    assert_eq!(killed(&step).iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["w2"]);
}

#[test]
fn an_idle_worker_is_unloaded_after_its_time_and_other_models_after_theirs() {
    let keep = BTreeMap::from([("a".to_owned(), Some(50)), ("b".to_owned(), None)]);
    let supply =
        SupplySettings { keep_alive_ms: Some(2_000), keep_alive_of: keep, ..SupplySettings::default() };
    let mut world = World::with(Settings { supply, ..Settings::default() });
    let mut pools =
        Pools::new(&mut world, &[("mac", 10_000)], &[("a", 300), ("b", 300), ("c", 300), ("d", 300)]);
    for (worker, model) in [("w1", "a"), ("w2", "b"), ("w3", "c")] {
        pools.resident(&mut world, worker, "mac", model);
    }
    pools.evictable = false;
    pools.resident(&mut world, "w4", "mac", "d");
    let names = |step: &Step| killed(step).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&world.pass(49)), Vec::<String>::new());
    assert_eq!(names(&world.pass(1)), ["w1"]);
    let view = world.brain.workers(world.now).into_iter().find(|w| w.facts.worker_id.as_str() == "w3");
    assert_eq!(view.expect("there").unload_in_ms, Some(1_950));
    assert_eq!(names(&world.pass(1_950)), ["w3"]);
    for worker in ["w1", "w3"] {
        pools.stopped(&mut world, &world::worker(worker));
    }
    let left: Vec<String> =
        world.brain.workers(world.now).iter().map(|w| w.facts.worker_id.to_string()).collect();
    assert_eq!(left, ["w2", "w4"], "one model is kept for ever, one worker is pinned");
}

#[test]
fn a_worker_that_is_kept_for_no_time_serves_its_job_first() {
    let supply = SupplySettings { keep_alive_ms: Some(0), ..SupplySettings::default() };
    let mut world = World::with(Settings { supply, ..Settings::default() });
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
    let worker = pools.first_worker(&mut world, 1, "a");
    assert_eq!(opened(&pools.come_up(&mut world, &worker)).len(), 1);
    let step = finish(&mut world, 1);
    assert_eq!((killed(&step), causes(&step)), (vec![worker], vec![UnloadCause::Idle]));
}

#[test]
fn a_model_that_is_too_large_for_every_pool_is_refused_with_the_numbers() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000), ("box", 2_000)], &[("huge", 3_000)]);
    let submitted = world.event(wanting(1, "huge"));
    let step = pools.answer_all(&mut world, &submitted);
    assert_eq!(world.status(1), TaskStatus::Failed, "{step:?}");
    let error = world.jobs[&job(1)].error.clone().expect("an error");
    assert_eq!(error.code, ErrorCode::InsufficientMemory);
    let pools_named = error.details.expect("details")["pools"].clone();
    assert_eq!(pools_named[0]["needed_bytes"], 3_000 * MIB);
    assert_eq!(pools_named.as_array().expect("a list").len(), 2);
    let Answer::Refused(error) = answer(&world.event(wanting(2, "huge"))) else { panic!("refused") };
    assert_eq!(error.code, ErrorCode::InsufficientMemory, "and the next one at once");
}

#[test]
fn a_failed_spawn_is_tried_elsewhere_then_again_and_then_the_job_fails_with_the_reason() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("box", 1_000), ("mac", 1_000)], &[("a", 300)]);
    let submitted = world.event(wanting(1, "a"));
    let mut step = pools.answer_all(&mut world, &submitted);
    let mut tried = Vec::new();
    while world.status(1) == TaskStatus::Queued {
        for worker in spawned(&step) {
            tried.push(pools.pool_of(&worker));
            step = pools.fail(&mut world, &worker, ErrorCode::SpawnFailed);
        }
        let asked_for = world.pass(0);
        step.actions.extend(asked_for.actions);
        step = pools.answer_all(&mut world, &step);
        if spawned(&step).is_empty() && world.status(1) == TaskStatus::Queued {
            let why = world.brain.why(job(1), world.now).expect("waits").summary;
            assert!(why.contains("no luck"), "{why}");
            let later = world.pass(1_000);
            step = pools.answer_all(&mut world, &later);
        }
    }
    assert_eq!(tried[..2], ["box", "mac"], "another pool first, then the same again");
    assert_eq!(tried.len(), 6, "three times each: {tried:?}");
    let error = world.jobs[&job(1)].error.clone().expect("an error");
    assert_eq!((error.code, error.retriable), (ErrorCode::NoCapacity, true));
    assert!(error.message.contains("no luck"), "{}", error.message);
}

#[test]
fn what_does_not_pass_by_itself_is_not_tried_again() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
    let worker = pools.first_worker(&mut world, 1, "a");
    pools.fail(&mut world, &worker, ErrorCode::CorruptModel);
    assert_eq!(world.status(1), TaskStatus::Failed);
}

#[test]
fn b36_memory_that_ran_out_at_a_load_sends_the_job_elsewhere_and_is_looked_at_again_before_another_try() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("box", 1_000), ("mac", 1_000)], &[("a", 300)]);
    let mut step = Step::default();
    for pool in ["box", "mac"] {
        let worker = if pool == "box" {
            pools.first_worker(&mut world, 1, "a")
        } else {
            spawned(&step).pop().expect("the other one is asked for a worker")
        };
        assert_eq!(pools.pool_of(&worker), pool);
        let failed = pools.fail(&mut world, &worker, ErrorCode::InsufficientVram);
        step = pools.answer_all(&mut world, &failed);
        assert!(!spawned(&step).iter().any(|next| pools.pool_of(next) == pool), "not there again: {step:?}");
    }
    assert!(spawned(&step).is_empty(), "nobody is left: {step:?}");
    assert_eq!(world.status(1), TaskStatus::Queued, "another program may give the memory back");
    let why = world.brain.why(job(1), world.now).expect("waits").summary;
    assert!(why.contains("no luck"), "the reason is told: {why}");
    // After the pause nobody trusts what was known of the memory.
    let later = world.pass(60_000);
    assert!(spawned(&later).is_empty() && !asked(&later).is_empty(), "{later:?}");
    assert_eq!(spawned(&pools.answer_all(&mut world, &later)).len(), 1);
}

#[test]
fn demands_on_the_place_decide_which_pool_is_asked() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("box", 1_000), ("mac", 1_000)], &[("a", 300)]);
    pools.resident(&mut world, "w1", "box", "a");
    let there = Placement { pool: Some("mac".parse().expect("an id")), ..Placement::default() };
    let event = Event::Submit(Submission { model: Some("a".to_owned()), placement: there, ..submission(1) });
    let submitted = world.event(event);
    let step = pools.answer_all(&mut world, &submitted);
    assert_eq!(spawned(&step).iter().map(|id| pools.pool_of(id)).collect::<Vec<_>>(), ["mac"]);
    let cuda = Placement { require: vec!["cuda".to_owned()], ..Placement::default() };
    let event = Event::Submit(Submission { model: Some("a".to_owned()), placement: cuda, ..submission(2) });
    let submitted = world.event(event);
    let step = pools.answer_all(&mut world, &submitted);
    assert!(spawned(&step).is_empty());
    assert_eq!(world.status(2), TaskStatus::Queued, "somebody may start such a worker by hand");
    let why = world.brain.why(job(2), world.now).expect("waits").summary;
    assert!(why.contains("requires `cuda`"), "{why}");
}

#[test]
fn a_draining_pool_and_a_silent_one_are_left_alone() {
    let mut world = World::new();
    let pools = Pools::new(&mut world, &[("box", 1_000), ("mac", 1_000)], &[("a", 300)]);
    let request = world.request();
    let drained = orchestrator_core::PoolRow { draining: true, ..pools.row("box") };
    world.event(Event::PutPool { request, pool: drained });
    let submitted = world.event(wanting(1, "a"));
    let (pool, ask) = asked(&submitted).pop().expect("one is asked");
    assert_eq!((pool.as_str(), asked(&submitted).len()), ("mac", 1));
    let error = ErrorDetail::new(ErrorCode::SshFailed, "no route");
    let step = world.event(Event::PoolSilent { pool_id: pool, ask, error });
    assert!(spawned(&step).is_empty());
    let why = world.brain.why(job(1), world.now).expect("waits").summary;
    assert!(why.contains("no route") && why.contains("draining"), "{why}");
    assert_eq!(asked(&world.pass(10_000)).len(), 1, "it is asked again after a while");
}

#[test]
fn a_pool_whose_answer_is_lost_is_asked_again() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
    let submitted = world.event(wanting(1, "a"));
    assert_eq!(asked(&submitted).len(), 1);
    assert_eq!(asked(&world.pass(59_999)), [], "it may take its time");
    let (pool, ask) = asked(&world.pass(1)).pop().expect("it is asked again without any other event");
    assert_eq!(spawned(&pools.answer(&mut world, pool.as_str(), ask)).len(), 1);
}

#[test]
fn a_spawn_survives_a_restart_and_is_never_doubled() {
    // The pool undid it, has it under way, or has it ready; `None` is undone.
    for process in [None, Some(true), Some(false)] {
        let mut world = World::new();
        let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
        let worker = pools.first_worker(&mut world, 1, "a");
        world.restart();
        pools.tell_catalogs(&mut world);
        let step = pools.answer_all_with(&mut world, |room| match process {
            None => room.processes.clear(),
            Some(starting) => room.processes.iter_mut().for_each(|process| process.starting = starting),
        });
        let again = spawned(&step);
        match process {
            None => assert_eq!(again, std::slice::from_ref(&worker), "under the id it had"),
            Some(_) => assert!(again.is_empty(), "it is on its way"),
        }
        let step = pools.come_up(&mut world, &worker);
        assert_eq!(opened(&step).len(), 1);
        assert!(spawned(&step).is_empty() && world.spawns.is_empty());
    }
}

#[test]
fn a_worker_that_never_registers_counts_as_failed() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
    let worker = pools.first_worker(&mut world, 1, "a");
    world.event(Event::SpawnEnded { pool_id: pools.id("mac"), worker_id: worker, error: None });
    world.pass(15_000);
    assert!(world.spawns.is_empty());
    let why = world.brain.why(job(1), world.now).expect("waits").summary;
    assert!(why.contains("did not register"), "{why}");
}

#[test]
fn a_worker_that_is_lost_before_its_pool_spoke_is_waited_for_no_longer() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 600), ("b", 600)]);
    let worker = pools.first_worker(&mut world, 1, "a");
    pools.register(&mut world, worker.as_str(), WorkerStatus::Loading);
    // Its machine lost power: neither it nor its pool's answer is ever heard of.
    pools.processes.clear();
    world.pass(Settings::default().lease.lost_ms);
    let submitted = world.event(wanting(2, "b"));
    let step = pools.answer_all(&mut world, &submitted);
    assert_eq!(spawned(&step).len(), 1, "its memory is not counted: {step:?}");
}

#[test]
fn a_worker_that_its_pool_has_no_more_is_not_waited_for() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 600), ("b", 600)]);
    let worker = pools.first_worker(&mut world, 1, "a");
    let ended = Event::SpawnEnded { pool_id: pools.id("mac"), worker_id: worker, error: None };
    let step = world.event(ended);
    // It ends before it registers, which its pool knows when it is asked.
    pools.processes.clear();
    let step = if asked(&step).is_empty() { world.event(wanting(2, "b")) } else { step };
    pools.answer_all(&mut world, &step);
    assert!(
        world.brain.why(job(1), world.now).expect("waits").summary.contains("ended before it registered")
    );
    assert_eq!(world.spawns.len(), 1, "b has its place: {:?}", world.spawns);
}

#[test]
fn what_a_stopped_worker_had_on_the_way_does_not_bring_it_back() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 600), ("b", 600)]);
    pools.resident(&mut world, "w1", "mac", "a");
    let submitted = world.event(wanting(1, "b"));
    let victim = killed(&pools.answer_all(&mut world, &submitted)).pop().expect("it gives way");
    pools.stopped(&mut world, &victim);
    pools.process("w1", "mac", "a", false);
    let late = pools.register(&mut world, "w1", WorkerStatus::Ready);
    let Answer::Refused(error) = answer(&late) else { panic!("{late:?}") };
    assert_eq!(error.code, ErrorCode::StaleIncarnation);
    assert_eq!(world.brain.worker_row(&victim), None);
}

#[test]
fn a_busy_worker_serves_until_the_patience_is_over_and_then_gives_way() {
    let mut world = World::with(patient());
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 600), ("b", 600)]);
    pools.resident(&mut world, "w1", "mac", "a");
    for n in 1..=6 {
        world.event(wanting(n, "a"));
    }
    let submitted = world.event(wanting(10, "b"));
    let step = pools.answer_all(&mut world, &submitted);
    assert!(killed(&step).is_empty() && causes(&step).is_empty(), "it has jobs to serve");
    let why = world.brain.why(job(10), world.now).expect("waits").summary;
    assert!(why.contains("`w1` gives way in at most"), "{why}");
    assert_eq!(opened(&finish(&mut world, 1)).len(), 1, "and goes on serving them");
    let step = world.pass(5_999);
    assert!(causes(&step).is_empty());
    let step = world.pass(1);
    let step = if asked(&step).is_empty() { step } else { pools.answer_all(&mut world, &step) };
    assert_eq!(causes(&step), [UnloadCause::Swapped]);
    assert!(killed(&step).is_empty(), "never while it runs a job");
    assert!(opened(&finish(&mut world, 2)).is_empty(), "it takes no new job");
    let step = finish(&mut world, 3);
    let victim = killed(&step).pop().expect("and ends with the last one");
    let step = pools.stopped(&mut world, &victim);
    let step = pools.answer_all(&mut world, &step);
    let worker = spawned(&step).pop().expect("the other model comes");
    assert_eq!(opened(&pools.come_up(&mut world, &worker)), [world::run(10, 1, worker.as_str(), 2)]);
    assert_eq!(world.status(4), TaskStatus::Queued, "what is left waits for the next turn");
}

#[test]
fn nobody_overtakes_on_a_pool_what_has_waited_longer_there() {
    let mut world = World::with(patient());
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 600), ("b", 600), ("c", 300)]);
    pools.resident(&mut world, "w1", "mac", "a");
    world.event(wanting(1, "a"));
    let submitted = world.event(wanting(2, "b"));
    pools.answer_all(&mut world, &submitted);
    world.pass(10);
    let submitted = world.event(wanting(3, "c"));
    let step = pools.answer_all(&mut world, &submitted);
    assert!(spawned(&step).is_empty(), "it would fit, but then the older one would wait for it too");
    let why = world.brain.why(job(3), world.now).expect("waits").summary;
    assert!(why.contains("another model goes first"), "{why}");
}

#[test]
fn a_pool_that_is_starting_such_a_worker_by_itself_is_not_asked_for_another() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
    pools.process("by-hand", "mac", "a", true);
    let submitted = world.event(wanting(1, "a"));
    let step = pools.answer_all(&mut world, &submitted);
    assert!(spawned(&step).is_empty());
    pools.evictable = false;
    let step = pools.register(&mut world, "by-hand", WorkerStatus::Ready);
    assert_eq!(opened(&step).len(), 1);
    assert!(world.brain.workers(world.now).iter().all(|w| w.pinned && w.state == WorkerState::Ready));
}

#[test]
fn answers_that_bear_an_old_number_decide_nothing() {
    let mut world = World::new();
    let pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
    let submitted = world.event(wanting(1, "a"));
    let (_, ask) = asked(&submitted).pop().expect("asked");
    let late = Event::PoolSeen { pool_id: pools.id("mac"), ask: ask + 7, room: room(&pools, "mac") };
    assert!(spawned(&world.event(late)).is_empty());
    let ours = Event::PoolSeen { pool_id: pools.id("mac"), ask, room: room(&pools, "mac") };
    assert_eq!(spawned(&world.event(ours)).len(), 1);
}

/// A policy that gives up the largest worker first.
#[derive(Debug)]
struct LargestFirst;

impl Policy for LargestFirst {
    fn describe(&self) -> &'static str {
        "largest first"
    }

    fn has(&self, hook: Hook) -> bool {
        hook == Hook::Evict
    }

    fn evict(&self, worker: &WorkerLoad<'_>) -> Result<f64, PolicyFailure> {
        Ok(worker.slots.into())
    }
}

#[derive(Debug)]
struct OneScript;

impl Scripts for OneScript {
    fn compile(&self, _name: &str, _source: &str) -> Result<Arc<dyn Policy>, PolicyFailure> {
        Ok(Arc::new(LargestFirst))
    }
}

#[test]
fn the_policy_ranks_who_goes() {
    let mut world = World::new();
    world.brain.use_scripts(Arc::new(OneScript));
    let request = world.request();
    let text = PolicyText { name: "largest".to_owned(), source: Some("".into()), sha256: String::new() };
    world.event(Event::SetPolicy { request, change: PolicyChange::Live(text) });
    let mut pools = Pools::new(&mut world, &[("mac", 800)], &[("a", 300), ("b", 300), ("c", 300)]);
    pools.resident(&mut world, "w1", "mac", "a");
    world.pass(10);
    pools.slots = 8;
    pools.resident(&mut world, "w2", "mac", "b");
    let submitted = world.event(wanting(1, "c"));
    let step = pools.answer_all(&mut world, &submitted);
    assert_eq!(killed(&step), [world::worker("w2")], "the least recently used one stays");
}

#[test]
fn a_brain_that_was_written_down_in_the_middle_of_a_swap_goes_on_alike() {
    let mut world = World::with(patient());
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 600), ("b", 600)]);
    pools.resident(&mut world, "w1", "mac", "a");
    world.event(wanting(1, "a"));
    let submitted = world.event(wanting(2, "b"));
    pools.answer_all(&mut world, &submitted);
    let mut other = Orchestrator::restore(&world.brain.snapshot().expect("written")).expect("read");
    other.use_scripts(Arc::new(OneScript));
    let at = world.now + 6_000;
    assert_eq!(other.poll_timeout(), world.brain.poll_timeout());
    assert_eq!(other.handle_timeout(at), world.brain.handle_timeout(at));
    let room = room(&pools, "mac");
    let answer = |ask| Event::PoolSeen { pool_id: pools.id("mac"), ask, room: room.clone() };
    let step = world.brain.handle_event(answer(2), at);
    assert_eq!(causes(&step), [UnloadCause::Swapped]);
    assert_eq!(other.handle_event(answer(2), at), step);
}

#[test]
fn who_waits_for_a_worker_that_was_asked_for_hears_how_long_the_last_one_took() {
    let supply = SupplySettings { keep_alive_ms: Some(2_000), ..SupplySettings::default() };
    let mut world = World::with(Settings { supply, ..Settings::default() });
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("big", 300)]);
    let first = pools.first_worker(&mut world, 1, "big");
    world.now = world.now + 5_000;
    pools.come_up(&mut world, &first);
    world.now = world.now + 1_000;
    finish(&mut world, 1);
    let unloaded = world.pass(2_500);
    assert_eq!(killed(&unloaded), std::slice::from_ref(&first));
    pools.stopped(&mut world, &first);
    pools.first_worker(&mut world, 2, "big");
    world.now = world.now + 1_000;
    let Answer::Accepted { eta, .. } = answer(&world.event(wanting(3, "big"))) else { panic!("refused") };
    let eta = eta.expect("known by now");
    let expected = 4_000 + 1_000 + 1_000;
    assert!(eta.p50.abs_diff(expected) < 20, "until it is ready, the job before, itself: {eta:?}");
}

#[test]
fn a_worker_that_nobody_here_asked_for_makes_the_pools_memory_unknown() {
    let mut world = World::new();
    let mut pools = Pools::new(&mut world, &[("mac", 100)], &[("ant", 30), ("bee", 60), ("dog", 30)]);
    pools.first_worker(&mut world, 1, "ant");
    // One that an earlier orchestrator asked for comes late, or somebody starts one by hand.
    pools.resident(&mut world, "worker-cpu-late", "mac", "dog");
    let model = Some("bee".to_owned());
    let step = world.event(Event::Submit(Submission { model, ..submission(2) }));
    assert_eq!((spawned(&step), asked(&step)), (vec![], vec![(pools.id("mac"), 2)]));
    let answered = pools.answer_all(&mut world, &step);
    assert_eq!(spawned(&answered), [], "40 of its 100 MiB are left");
}

fn hasty() -> Settings {
    let supply =
        SupplySettings { spawn_timeout_ms: 30_000, stop_timeout_ms: 20_000, ..SupplySettings::default() };
    Settings { supply, ..Settings::default() }
}

/// Time passes while a worker shows that it lives.
fn pass_with(world: &mut World, worker: &str, ms: u64) -> Step {
    let mut all = Step::default();
    for _ in 0..ms / 1_000 {
        all.actions.extend(world.pass(1_000).actions);
        all.actions.extend(world.beat(worker, vec![]).actions);
    }
    all
}

#[test]
fn a_spawn_that_is_never_answered_is_called_off_and_no_second_one_is_asked_for_before_that_is_answered() {
    let mut world = World::with(hasty());
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
    let worker = pools.first_worker(&mut world, 1, "a");
    let step = world.pass(39_999);
    assert!(killed(&step).is_empty(), "the answer may come late");
    assert_eq!(killed(&world.pass(1)), std::slice::from_ref(&worker), "whatever there is of it is to end");
    let why = world.brain.why(job(1), world.now).expect("waits").summary;
    assert!(why.contains("did not say within 30 s what became of the worker"), "{why}");
    let step = world.pass(19_000);
    assert!(spawned(&step).is_empty() && killed(&step).is_empty());
    assert_eq!(
        killed(&world.pass(1_000)),
        std::slice::from_ref(&worker),
        "the stop is asked for again as well"
    );
    pools.stopped(&mut world, &worker);
    assert!(world.spawns.is_empty());
    let step = world.pass(2_000);
    let again = spawned(&pools.answer_all(&mut world, &step)).pop().expect("another one, under another id");
    assert!(again != worker && pools.held("mac") == 300, "{again}");
    let step = world.event(Event::SpawnEnded { pool_id: pools.id("mac"), worker_id: worker, error: None });
    assert!(acts(&step).is_empty(), "what the first one says now is late");
    assert_eq!(opened(&pools.come_up(&mut world, &again)).len(), 1);
}

#[test]
fn after_as_many_unanswered_spawns_as_are_tried_the_jobs_end_with_the_reason() {
    let mut world = World::with(hasty());
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
    let mut worker = pools.first_worker(&mut world, 1, "a");
    for left in [2, 1, 0] {
        world.pass(40_000);
        let mut step = pools.stopped(&mut world, &worker);
        if left > 0 {
            step.actions.extend(world.pass(5_000).actions);
            worker = spawned(&pools.answer_all(&mut world, &step)).pop().expect("another try");
        }
    }
    let error = world.brain.job(job(1)).expect("kept for a while").row.error.expect("an error");
    assert_eq!(error.code, ErrorCode::NoCapacity);
    assert!(error.message.contains("SPAWN_TIMEOUT"), "{}", error.message);
}

#[test]
fn a_worker_that_came_although_its_pool_never_said_so_stays() {
    let mut world = World::with(hasty());
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
    let worker = pools.first_worker(&mut world, 1, "a");
    world.pass(20_000);
    pools.register(&mut world, worker.as_str(), WorkerStatus::Ready);
    let step = pass_with(&mut world, worker.as_str(), 60_000);
    assert!(killed(&step).is_empty() && spawned(&step).is_empty());
    assert!(world.brain.workers(world.now).iter().all(|worker| worker.state == WorkerState::Ready));
}

#[test]
fn a_worker_that_comes_after_it_was_called_off_gets_no_job_and_goes() {
    let mut world = World::with(hasty());
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 300)]);
    let worker = pools.first_worker(&mut world, 1, "a");
    assert_eq!(killed(&world.pass(40_000)).len(), 1);
    let step = pools.register(&mut world, worker.as_str(), WorkerStatus::Ready);
    assert!(opened(&step).is_empty(), "its pool is ending it");
    world.event(Event::SpawnEnded { pool_id: pools.id("mac"), worker_id: worker.clone(), error: None });
    let step = pools.stopped(&mut world, &worker);
    assert!(opened(&step).is_empty());
    assert!(world.brain.workers(world.now).iter().all(|worker| worker.state == WorkerState::Failed));
    assert_eq!(world.status(1), TaskStatus::Queued);
    let step = world.pass(2_000);
    let again = spawned(&pools.answer_all(&mut world, &step)).pop().expect("another one");
    assert_eq!(opened(&pools.come_up(&mut world, &again)).len(), 1);
}

#[test]
fn a_stop_that_is_never_answered_is_asked_for_again() {
    let mut world = World::with(hasty());
    let mut pools = Pools::new(&mut world, &[("mac", 1_000)], &[("a", 600), ("b", 600)]);
    pools.resident(&mut world, "w1", "mac", "a");
    let submitted = world.event(wanting(1, "b"));
    let step = pools.answer_all(&mut world, &submitted);
    assert_eq!(killed(&step).len(), 1, "it is idle");
    assert!(killed(&pass_with(&mut world, "w1", 19_000)).is_empty());
    let again = pass_with(&mut world, "w1", 1_000);
    let victim = killed(&again).pop().expect("asked again");
    let step = pools.stopped(&mut world, &victim);
    assert_eq!(spawned(&pools.answer_all(&mut world, &step)).len(), 1, "and then the other model comes");
    let twice = world.event(Event::StopEnded { pool_id: pools.id("mac"), worker_id: victim, error: None });
    assert!(killed(&twice).is_empty(), "the other answer changes nothing");
}
