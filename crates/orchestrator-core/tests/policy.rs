//! Policies in force: who answers, what a failure costs, what a shadow may change, what is kept.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use std::sync::Arc;

use api_types::StopReason;
use api_types::error::ErrorCode;
use api_types::task::{Priority, TaskStatus};
use orchestrator_core::policy::{
    Admission, Again, FailureFacts, FailureKind, Hook, JobFacts, Policy, PolicyChange, PolicyFailure,
    PolicyText, QueueFacts, Score, Scripts, WorkerLoad,
};
use orchestrator_core::{Action, Answer, BrokenCause, Event, Notice, Orchestrator, RunKey, Submission};
use world::{World, answer, job, opened, run, submission, worker};

/// Policies by name, as a language would make them.
#[derive(Debug)]
struct Named;

#[derive(Debug)]
struct Told(String);

impl Scripts for Named {
    fn compile(&self, name: &str, _source: &str) -> Result<Arc<dyn Policy>, PolicyFailure> {
        Ok(Arc::new(Told(name.to_owned())))
    }
}

fn failure(hook: Hook, kind: FailureKind) -> PolicyFailure {
    PolicyFailure { hook: Some(hook), kind, message: "as told".to_owned(), position: Some((1, 2)) }
}

impl Policy for Told {
    fn describe(&self) -> &str {
        &self.0
    }

    fn has(&self, _hook: Hook) -> bool {
        true
    }

    fn admit(&self, job: &JobFacts<'_>, _: &QueueFacts) -> Result<Admission, PolicyFailure> {
        match (self.0.as_str(), job.priority) {
            ("strict", Priority::Batch) => Ok(Admission::Refuse("no batch today".to_owned())),
            ("later", Priority::Batch) => Ok(Admission::Hold(60_000)),
            _ => Ok(Admission::Admit),
        }
    }

    fn score(
        &self,
        job: &JobFacts<'_>,
        workers: &[WorkerLoad<'_>],
        scores: &mut Vec<Score>,
    ) -> Result<(), PolicyFailure> {
        match self.0.as_str() {
            "broken" => return Err(failure(Hook::Score, FailureKind::Runtime)),
            "slow" => return Err(failure(Hook::Score, FailureKind::Interrupted)),
            _ => {}
        }
        scores.clear();
        let is_held = |job: &JobFacts<'_>| job.tenant == "held" || job.prompt_bytes > 1_000;
        scores.extend(workers.iter().map(|worker| match self.0.as_str() {
            "wide" if worker.slots < 2 => Score::KeepFree,
            "picky" if is_held(job) => Score::KeepFree,
            "fullest" => Score::Points(f64::from(100 - worker.slots_free)),
            "nobody" => Score::KeepFree,
            _ => Score::Points(f64::from(worker.slots_free)),
        }));
        Ok(())
    }

    fn retry(&self, _: &JobFacts<'_>, _: &FailureFacts<'_>) -> Result<Again, PolicyFailure> {
        Ok(if self.0 == "strict" { Again::GiveUp } else { Again::GoOn })
    }
}

fn text(name: &str) -> PolicyText {
    PolicyText { name: name.to_owned(), source: Some(name.into()), sha256: String::new() }
}

/// A world with a worker of one slot and one of four.
fn world() -> World {
    let mut world = World::new();
    world.brain.use_scripts(Arc::new(Named));
    world.ready("w1", 1);
    world.ready("w22", 4);
    world
}

fn change(world: &mut World, change: PolicyChange) -> Answer {
    let request = world.request();
    answer(&world.event(Event::SetPolicy { request, change }))
}

fn picked(world: &mut World, n: u128) -> Option<String> {
    opened(&world.submit(n)).pop().map(|run| run.worker_id.to_string())
}

#[test]
fn the_live_policy_picks_and_its_name_is_in_the_decision() {
    let mut world = world();
    assert_eq!(change(&mut world, PolicyChange::Live(text("fullest"))), Answer::Done);
    assert_eq!(picked(&mut world, 1), Some("w1".to_owned()));
    let decided = world.brain.decisions(job(1)).first().expect("one").policy.clone();
    assert_eq!(decided, "fullest");
}

#[test]
fn when_the_live_policy_fails_the_last_good_one_decides_and_the_failure_is_told() {
    let mut world = world();
    change(&mut world, PolicyChange::Live(text("fullest")));
    change(&mut world, PolicyChange::Live(text("broken")));
    let step = world.submit(1);
    assert_eq!(opened(&step).pop().map(|run| run.worker_id), Some(worker("w1")));
    let told = step.actions.iter().any(
        |action| matches!(action, Action::Notify(Notice::PolicyFailed { name, .. }) if name == "broken"),
    );
    assert!(told, "{:?}", step.actions);
    let standing = world.brain.policies();
    assert_eq!(standing.live.failures.get(&Hook::Score), Some(&1));
    assert_eq!(standing.live.last_failure.map(|f| f.position), Some(Some((1, 2))));
}

#[test]
fn the_last_good_policy_is_the_latest_that_never_failed() {
    let mut world = world();
    let other = PolicyText { name: "broken".into(), ..text("other") };
    change(&mut world, PolicyChange::Live(text("fullest")));
    change(&mut world, PolicyChange::Live(text("broken")));
    assert_eq!(picked(&mut world, 1), Some("w1".to_owned()));
    change(&mut world, PolicyChange::Live(other));
    assert_eq!(world.policies.last_good, Some(text("fullest")), "what failed is not good");
    end(&mut world, run(1, 1, "w1", 1));
    assert_eq!(
        picked(&mut world, 2),
        Some("w1".to_owned()),
        "the good one answers for the second broken one"
    );
    assert_eq!(change(&mut world, PolicyChange::Rollback), Answer::Done);
    assert_eq!((&world.policies.live, &world.policies.last_good), (&text("fullest"), &None));
}

/// Lets a run end.
fn end(world: &mut World, run: RunKey) {
    let end = world::end(1, StopReason::Eos);
    world.event(Event::StreamEnded { run, end });
}

/// Submits jobs and ends each at once, until a policy is demoted. How many there were.
fn jobs_until_demoted(world: &mut World, most: u128) -> Option<u128> {
    (1..=most).find(|n| {
        let step = world.submit(*n);
        opened(&step).into_iter().for_each(|run| end(world, run));
        for name in ["w1", "w22"] {
            world.beat(name, vec![]);
        }
        step.actions.iter().any(|action| matches!(action, Action::Notify(Notice::PolicyDemoted(_))))
    })
}

#[test]
fn a_policy_that_keeps_failing_gives_way_to_the_last_good_one_and_that_is_told_once() {
    let mut world = world();
    change(&mut world, PolicyChange::Live(text("fullest")));
    change(&mut world, PolicyChange::Live(text("broken")));
    assert_eq!(jobs_until_demoted(&mut world, 50), Some(10));
    let standing = world.brain.policies();
    assert_eq!(world.policies, standing.rows, "it is on disk");
    let rows = &standing.rows;
    assert_eq!(
        (&rows.live, &rows.last_good, &rows.demoted),
        (&text("fullest"), &None, &Some(text("broken")))
    );
    assert_eq!(standing.demoted.failures.get(&Hook::Score), Some(&10));
    assert_eq!(standing.live.last_failure, None);
    assert_eq!(jobs_until_demoted(&mut world, 50), None, "it is asked no more");
    world.restart();
    assert_eq!(world.brain.policies().rows.demoted, Some(text("broken")));
    change(&mut world, PolicyChange::Live(text("emptiest")));
    assert_eq!(world.policies.demoted, None);
}

#[test]
fn a_shadow_that_keeps_failing_is_asked_no_more() {
    let mut world = world();
    change(&mut world, PolicyChange::Shadow(Some(text("broken"))));
    assert_eq!(jobs_until_demoted(&mut world, 30), None, "the live one does not fail");
    let standing = world.brain.policies();
    assert!(standing.shadow_stopped);
    assert_eq!(standing.shadow.failures.get(&Hook::Score), Some(&10));
    change(&mut world, PolicyChange::Shadow(Some(text("fullest"))));
    assert!(!world.brain.policies().shadow_stopped);
}

#[test]
fn behind_a_broken_last_good_one_stands_the_built_in_one() {
    let mut world = world();
    change(&mut world, PolicyChange::Live(text("broken")));
    change(&mut world, PolicyChange::Live(PolicyText { name: "broken".into(), ..text("other") }));
    assert_eq!(picked(&mut world, 1), Some("w1".to_owned()), "all free: a tie, the lower id");
    assert_eq!(picked(&mut world, 2), Some("w22".to_owned()));
}

#[test]
fn a_shadow_changes_nothing_and_its_differences_are_reported() {
    let (mut plain, mut shadowed) = (world(), world());
    change(&mut plain, PolicyChange::Live(text("emptiest")));
    change(&mut shadowed, PolicyChange::Live(text("emptiest")));
    change(&mut shadowed, PolicyChange::Shadow(Some(text("fullest"))));
    for n in 1..=4 {
        assert_eq!(picked(&mut plain, n), picked(&mut shadowed, n));
    }
    let standing = shadowed.brain.policies();
    assert_eq!(standing.shadow.compared.get(&Hook::Score), Some(&4));
    assert_eq!(standing.shadow.differed.get(&Hook::Score), Some(&3));
    let (_, first) = standing.shadow.examples.first().expect("an example");
    assert_eq!((first.live.as_str(), first.shadow.as_str()), ("w22", "w1"));
}

#[test]
fn promote_and_rollback_are_one_step_each_and_survive_a_restart() {
    let mut world = world();
    change(&mut world, PolicyChange::Shadow(Some(text("fullest"))));
    assert_eq!(change(&mut world, PolicyChange::Promote), Answer::Done);
    let rows = world.policies.clone();
    assert_eq!((rows.live.name.as_str(), rows.shadow), ("fullest", None));
    assert_eq!(rows.last_good, Some(PolicyText::built_in()));
    world.restart();
    assert_eq!(world.brain.policies().rows.live, text("fullest"));
    world.brain.use_scripts(Arc::new(Named));
    assert_eq!(change(&mut world, PolicyChange::Rollback), Answer::Done);
    assert_eq!(world.policies.live, PolicyText::built_in());
    assert_eq!(world.policies.last_good, Some(text("fullest")));
    let Answer::Refused(error) = change(&mut world, PolicyChange::Promote) else {
        panic!("there is no shadow")
    };
    assert_eq!(error.code, ErrorCode::PolicyNotFound);
}

#[test]
fn a_policy_may_refuse_a_job_with_a_reason_and_give_up_one_that_failed() {
    let mut world = world();
    change(&mut world, PolicyChange::Live(text("strict")));
    let batch = |n| Event::Submit(Submission { priority: Priority::Batch, ..submission(n) });
    let Answer::Refused(error) = answer(&world.event(batch(1))) else { panic!("it is refused") };
    assert_eq!(error.code, ErrorCode::PolicyRefused);
    assert!(error.message.contains("no batch today"), "{}", error.message);

    world.submit(3);
    let lost = Event::StreamBroken { run: run(3, 1, "w22", 2), cause: BrokenCause::Refused };
    world.event(lost);
    let ended = world.brain.job(job(3)).expect("known").row;
    assert_eq!(ended.status, TaskStatus::Failed);
    let message = ended.error.expect("an error").message;
    assert!(message.contains("the policy gave it up"), "{message}");
}

#[test]
fn a_held_job_runs_once_its_time_has_come() {
    let mut world = world();
    change(&mut world, PolicyChange::Live(text("later")));
    world.event(Event::Submit(Submission { priority: Priority::Batch, ..submission(1) }));
    for _ in 0..19 {
        assert_eq!(opened(&world.pass(3_000)), []);
        world.beat("w1", vec![]);
        world.beat("w22", vec![]);
    }
    assert_eq!(opened(&world.pass(3_000)).len(), 1);
}

#[test]
fn a_worker_that_is_kept_free_is_left_alone_and_the_reason_is_given() {
    let mut world = world();
    change(&mut world, PolicyChange::Live(text("nobody")));
    assert_eq!(picked(&mut world, 1), None);
    let why = world.brain.waiting_decision(job(1), world.now).expect("it waits");
    let reason = why.candidates.first().and_then(|c| c.ruled_out.clone()).expect("a reason");
    assert!(reason.contains("the policy `nobody` keeps it free"), "{reason}");
    let step = {
        let request = world.request();
        world.event(Event::SetPolicy { request, change: PolicyChange::Live(text("emptiest")) })
    };
    assert_eq!(opened(&step).len(), 1, "a new policy looks at waiting jobs at once");
}

#[test]
fn a_cut_of_the_watchdog_is_in_the_step_and_a_replay_takes_the_same_branch() {
    let mut world = world();
    change(&mut world, PolicyChange::Live(text("fullest")));
    change(&mut world, PolicyChange::Live(text("slow")));
    let mut replayed = Orchestrator::recover(world.settings.clone(), world.rows(), world.now).0;
    // This time nothing is slow: only the journal knows of the cut.
    #[derive(Debug)]
    struct Fast;
    impl Scripts for Fast {
        fn compile(&self, name: &str, _source: &str) -> Result<Arc<dyn Policy>, PolicyFailure> {
            Ok(Arc::new(Told(if name == "slow" { "emptiest".to_owned() } else { name.to_owned() })))
        }
    }
    replayed.use_scripts(Arc::new(Fast));
    for name in ["w1", "w22"] {
        let request = world.request();
        let row = world.brain.worker_row(&worker(name)).expect("registered").clone();
        let beat = Event::WorkerHeartbeat {
            request,
            worker_id: worker(name),
            incarnation: row.incarnation,
            instance: row.facts.instance,
            status: api_types::worker::WorkerStatus::Ready,
            runs: vec![],
            free_memory_bytes: None,
            prefixes: None,
        };
        replayed.handle_event(beat, world.now);
    }
    let recorded = world.submit(1);
    assert_eq!(recorded.interrupted, [2], "admission was question 0, the order 1, the score 2");
    replayed.cut_next(recorded.interrupted.clone());
    let again = replayed.handle_event(Event::Submit(submission(1)), world.now);
    assert_eq!(opened(&again), opened(&recorded));
    assert_eq!(again.interrupted, recorded.interrupted);
    assert_eq!(opened(&recorded).pop().map(|run| run.worker_id), Some(worker("w1")));
}

#[test]
fn a_worker_beyond_the_shortlist_is_found_when_the_policy_keeps_the_others_free() {
    for others in [16, 40, 150] {
        let mut world = World::new();
        world.brain.use_scripts(Arc::new(Named));
        // By load all are equal, and by id the only one that is allowed is the last.
        let names: Vec<String> = (0..others).map(|n| format!("w{n:03}")).collect();
        names.iter().for_each(|name| drop(world.ready(name, 1)));
        world.ready("w999", 2);
        change(&mut world, PolicyChange::Live(text("wide")));
        let mut found = picked(&mut world, 1);
        let mut turns = 1;
        while found.is_none() && turns < 20 {
            found = opened(&world.beat("w000", vec![])).pop().map(|run| run.worker_id.to_string());
            turns += 1;
        }
        assert_eq!(found, Some("w999".to_owned()), "of {others}");
        assert!(turns <= 1 + others / 16, "{turns} turns for {others}");
        let decision = world.brain.decisions(job(1)).first().cloned().expect("a decision");
        assert_eq!(orchestrator_core::reproduce(&decision), Some(worker("w999")));
    }
}

#[test]
fn a_shadow_looks_as_far_as_the_live_policy_does() {
    let mut world = World::new();
    world.brain.use_scripts(Arc::new(Named));
    (0..16).for_each(|n| drop(world.ready(&format!("w{n:03}"), 1)));
    world.ready("w999", 2);
    change(&mut world, PolicyChange::Live(text("wide")));
    change(&mut world, PolicyChange::Shadow(Some(PolicyText { sha256: "other".to_owned(), ..text("wide") })));
    assert_eq!(picked(&mut world, 1), Some("w999".to_owned()));
    let shadow = world.brain.policies().shadow;
    assert_eq!((shadow.compared.get(&Hook::Score), shadow.differed.get(&Hook::Score)), (Some(&1), None));
}

#[test]
fn a_job_that_workers_are_kept_free_of_is_in_nobodys_way() {
    let held = |n| Submission { tenant: "held".parse().expect("an id"), ..submission(n) };
    let long = |n| Submission { prompt_bytes: 2_000, ..submission(n) };
    let batch = |n| Submission { priority: Priority::Batch, ..submission(n) };
    type Make<'a> = &'a dyn Fn(u128) -> Submission;
    for (first, second) in [(&held as Make, &submission as Make), (&long, &submission), (&long, &batch)] {
        let mut world = world();
        change(&mut world, PolicyChange::Live(text("picky")));
        assert_eq!(opened(&world.event(Event::Submit(first(1)))), []);
        let begun = opened(&world.event(Event::Submit(second(2))));
        assert_eq!(begun.first().map(|run| run.job_id), Some(job(2)));
        assert_eq!(world.status(1), TaskStatus::Queued);
    }
}
