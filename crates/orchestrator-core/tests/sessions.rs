//! Sessions: made by a name, bounded by a budget, as durable as their jobs.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod world;

use api_types::session::SessionView;
use api_types::task::Durability;
use api_types::{ErrorCode, ErrorDetail, SessionId, StopReason, TenantId};
use orchestrator_core::{Answer, Event, Idempotency, SessionSettings, Settings, Step, Submission, Write};
use world::{World, answer, end, job, run, submission, worker};

fn id(name: &str) -> SessionId {
    name.parse().expect("an id")
}

/// A job that may take 6 tokens of prompt, one for each byte and one for its beginning, and 94 of output.
fn turn_of(name: &str, n: u128) -> Submission {
    Submission { session_id: Some(id(name)), max_tokens: Some(94), ..submission(n) }
}

fn submit(world: &mut World, task: Submission) -> Step {
    world.event(Event::Submit(task))
}

fn session(world: &World, name: &str) -> Option<SessionView> {
    world.brain.session(&TenantId::default(), &id(name), world.now)
}

fn refusal(step: &Step) -> ErrorDetail {
    let Answer::Refused(error) = answer(step) else { panic!("{step:?}") };
    error
}

/// Runs a job to its end on `w1`: 3 tokens in, 9 out.
fn finish(world: &mut World, n: u128) -> Step {
    world.event(Event::FirstToken(run(n, 1, "w1", 1)));
    world.event(Event::StreamEnded { run: run(n, 1, "w1", 1), end: end(9, StopReason::Eos) })
}

fn with_budget(token_budget: u64) -> World {
    let sessions = SessionSettings { token_budget: Some(token_budget), ..SessionSettings::default() };
    let mut world = World::with(Settings { sessions, ..Settings::default() });
    world.ready("w1", 1);
    world
}

#[test]
fn a_session_is_made_by_naming_it_and_remembers_its_turns() {
    let mut world = World::new();
    world.ready("w1", 1);
    assert_eq!(session(&world, "chat"), None);
    submit(&mut world, turn_of("chat", 1));
    submit(&mut world, turn_of("chat", 2));
    let open = session(&world, "chat").expect("made");
    assert_eq!((open.jobs_open, open.tokens_reserved, open.tokens_used, open.worker), (2, 200, 0, None));
    finish(&mut world, 1);
    let view = session(&world, "chat").expect("known");
    assert_eq!((view.turns, view.jobs_open, view.tokens_used, view.tokens_reserved), (1, 1, 12, 100));
    assert_eq!((view.worker, view.token_budget, view.tokens_remaining), (Some(worker("w1")), None, None));
}

#[test]
fn it_survives_a_restart_with_what_it_used_and_what_is_open() {
    let mut world = with_budget(1_000);
    submit(&mut world, turn_of("chat", 1));
    finish(&mut world, 1);
    submit(&mut world, turn_of("chat", 2));
    let before = session(&world, "chat").expect("known");
    world.restart();
    assert_eq!(session(&world, "chat"), Some(before));
    world.event(Event::StreamEnded { run: run(2, 1, "w1", 1), end: end(9, StopReason::Eos) });
    let view = session(&world, "chat").expect("known");
    assert_eq!((view.turns, view.tokens_used, view.tokens_remaining), (2, 24, Some(976)));
}

#[test]
fn the_budget_holds_in_the_worst_case_and_gives_back_what_was_not_used() {
    let mut world = with_budget(210);
    submit(&mut world, turn_of("chat", 1));
    submit(&mut world, turn_of("chat", 2));
    let step = submit(&mut world, turn_of("chat", 3));
    let error = refusal(&step);
    assert!(step.writes.is_empty() && error.retry_after_ms.is_some());
    assert_eq!((error.code, error.field.as_deref()), (ErrorCode::QuotaExceeded, Some("session_id")));
    let details = serde_json::json!({
        "session_id": "chat", "budget": 210, "used": 0, "reserved": 200, "needed": 100
    });
    assert_eq!(error.details, Some(details));
    assert!(matches!(answer(&submit(&mut world, turn_of("other", 4))), Answer::Accepted { .. }));
    finish(&mut world, 1);
    world.event(Event::Cancel { request: None, job_id: job(4) });
    assert_eq!(refusal(&submit(&mut world, turn_of("chat", 5))).code, ErrorCode::QuotaExceeded);
    finish(&mut world, 2);
    assert!(matches!(answer(&submit(&mut world, turn_of("chat", 6))), Answer::Accepted { .. }));
    assert_eq!(session(&world, "chat").expect("known").tokens_remaining, Some(210 - 24 - 100));
}

#[test]
fn the_worst_case_of_a_prompt_is_a_token_for_each_byte_and_of_a_job_the_context() {
    let mut world = with_budget(700);
    let dense = |n| Submission { prompt_bytes: 300, max_tokens: Some(16), ..turn_of("chat", n) };
    submit(&mut world, dense(1));
    submit(&mut world, dense(2));
    assert_eq!(refusal(&submit(&mut world, dense(3))).code, ErrorCode::QuotaExceeded);
    for n in [1, 2] {
        world.event(Event::FirstToken(run(n, 1, "w1", 1)));
        let end = api_types::event::RunEnd { tokens_in: 301, ..end(16, StopReason::MaxTokens) };
        world.event(Event::StreamEnded { run: run(n, 1, "w1", 1), end });
        let view = session(&world, "chat").expect("known");
        assert!(view.tokens_used + view.tokens_reserved <= 700, "{view:?}");
    }
    let mut world = with_budget(4_096);
    let long = Submission { prompt_bytes: 1_000_000, max_tokens: Some(16), ..turn_of("long", 1) };
    submit(&mut world, long);
    submit(&mut world, Submission { max_tokens: None, ..turn_of("open", 2) });
    for name in ["long", "open"] {
        let view = session(&world, name).expect("admitted");
        assert_eq!((view.tokens_reserved, view.tokens_remaining), (4_096, Some(0)), "{name}");
    }
    world.event(Event::Cancel { request: None, job_id: job(2) });
    assert_eq!(session(&world, "open").expect("known").tokens_remaining, Some(4_096), "all of it comes back");
}

#[test]
fn what_no_worker_counted_counts_for_as_much_as_it_may_have_been() {
    let mut world = with_budget(1_000);
    submit(&mut world, Submission { prompt_bytes: 300, max_tokens: Some(16), ..turn_of("chat", 1) });
    world.event(Event::FirstToken(run(1, 1, "w1", 1)));
    world.event(Event::Cancel { request: None, job_id: job(1) });
    world.pass(5_000);
    assert_eq!(world.status(1), api_types::task::TaskStatus::Cancelled, "without a word of its worker");
    let view = session(&world, "chat").expect("known");
    assert_eq!((view.tokens_used, view.tokens_reserved), (301, 0));
}

#[test]
fn it_is_forgotten_when_it_was_not_used_for_too_long_and_begins_anew() {
    let mut world = World::new();
    world.ready("w1", 1);
    submit(&mut world, turn_of("chat", 1));
    finish(&mut world, 1);
    world.now = world.now + 599_999;
    assert_eq!(session(&world, "chat").map(|view| view.expires_in_ms), Some(1));
    world.now = world.now + 1;
    assert_eq!(session(&world, "chat"), None);
    submit(&mut world, turn_of("next", 2));
    let left: Vec<&str> = world.sessions.keys().map(|(_, id)| id.as_str()).collect();
    assert_eq!(left, ["next"], "its row leaves the disk with a write that happens anyway");
    submit(&mut world, turn_of("chat", 3));
    assert_eq!(session(&world, "chat").expect("new").tokens_used, 0);
}

#[test]
fn one_with_an_open_job_is_never_forgotten() {
    let sessions = SessionSettings { capacity: 1, ..SessionSettings::default() };
    let mut world = World::with(Settings { sessions, ..Settings::default() });
    submit_loading(&mut world);
    submit(&mut world, turn_of("open", 1));
    for (n, name) in [(2, "a"), (3, "b"), (4, "c")] {
        submit(&mut world, turn_of(name, n));
        world.event(Event::Cancel { request: None, job_id: job(n) });
    }
    world.now = world.now + 3_600_000;
    submit(&mut world, turn_of("d", 5));
    let left: Vec<&str> = world.sessions.keys().map(|(_, id)| id.as_str()).collect();
    assert_eq!(left, ["d", "open"]);
    assert!(session(&world, "open").is_some());
}

fn submit_loading(world: &mut World) {
    world.register(world::facts("w1", 1), api_types::worker::WorkerStatus::Loading, vec![]);
}

#[test]
fn a_deleted_session_is_gone_at_once_and_its_open_jobs_count_for_nobody() {
    let mut world = with_budget(150);
    submit(&mut world, turn_of("chat", 1));
    let delete = |world: &mut World| {
        let (request, tenant) = (world.request(), TenantId::default());
        world.event(Event::DeleteSession { request, tenant, session_id: id("chat") })
    };
    let step = delete(&mut world);
    assert_eq!(answer(&step), Answer::Done);
    assert!(matches!(&step.writes[..], [Write::DeleteSession { .. }]));
    assert_eq!(refusal(&delete(&mut world)).code, ErrorCode::SessionNotFound);
    submit(&mut world, turn_of("chat", 2));
    world.restart();
    finish(&mut world, 1);
    let view = session(&world, "chat").expect("the new one");
    assert_eq!((view.tokens_used, view.jobs_open, view.turns), (0, 1, 0));
}

#[test]
fn a_replayed_submission_is_booked_once_also_across_a_restart() {
    let mut world = with_budget(1_000);
    let idempotency = Idempotency { key: "k".to_owned(), digest: "d".to_owned() };
    let keyed = |n| Submission { idempotency: Some(idempotency.clone()), ..turn_of("chat", n) };
    submit(&mut world, keyed(1));
    for n in 2..4 {
        assert!(matches!(answer(&submit(&mut world, keyed(n))), Answer::Accepted { replayed: true, .. }));
        let view = session(&world, "chat").expect("known");
        assert_eq!((view.jobs_open, view.tokens_reserved), (1, 100));
        world.restart();
    }
    finish(&mut world, 1);
    assert!(matches!(answer(&submit(&mut world, keyed(5))), Answer::Accepted { replayed: true, .. }));
    let view = session(&world, "chat").expect("known");
    assert_eq!((view.jobs_open, view.tokens_used, view.turns), (0, 12, 1));
}

#[test]
fn a_memory_job_counts_and_is_written_by_nobody() {
    let mut world = with_budget(1_000);
    let step = submit(&mut world, Submission { durability: Durability::Memory, ..turn_of("chat", 1) });
    assert_eq!(step.writes, vec![]);
    assert_eq!(finish(&mut world, 1).writes, vec![]);
    assert_eq!(session(&world, "chat").expect("known").tokens_used, 12);
    submit(&mut world, turn_of("chat", 2));
    world.restart();
    assert_eq!(session(&world, "chat").expect("written with a durable job").tokens_used, 12);
}
