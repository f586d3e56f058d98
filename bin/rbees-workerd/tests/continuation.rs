//! Runs that go on where another worker stopped, on the fake engine: cut anywhere, the joined stream
//! is the one of an undisturbed run.

mod common;

use api_types::event::{StopReason, TaskEvent};
use api_types::format::ResponseFormat;
use api_types::worker::{Continuation, EXACT_REPLAY, ExecuteRequest, Seam};
use api_types::{Attempt, ErrorCode};
use common::{Worker, finished, request};
use serde_json::{Value, json};

const CONTEXT: [&str; 4] = ["--context", "2048", "--slots", "4"];

fn with_ids(job_id: &str, max_tokens: u32) -> ExecuteRequest {
    ExecuteRequest { token_ids: Some(true), ..request(job_id, "a hive in May", max_tokens) }
}

fn seam(at: u32, i: u32) -> Seam {
    let worker = |name: &str| name.parse().expect("an id");
    Seam { at, from_worker: worker("worker-old"), to_worker: worker("worker-new"), i, exact: true }
}

/// The second attempt of `first`, of which `sent` was sent; its seams stand before these indices.
fn go_on(first: &ExecuteRequest, sent: &[TaskEvent], at: &[u32]) -> ExecuteRequest {
    let i = sent.len() as u32;
    let seams = at.iter().map(|at| seam(*at, i)).collect();
    ExecuteRequest {
        job_id: format!("{}-{i}", first.job_id),
        attempt: Some(Attempt(2)),
        first_event_id: Some(u64::from(i) + 2),
        continuation: Some(Continuation { tokens: ids(sent), seams }),
        ..first.clone()
    }
}

fn tokens(events: &[(u64, TaskEvent)]) -> Vec<TaskEvent> {
    let of_run = events.iter().map(|(_, event)| event);
    of_run.filter(|event| matches!(event, TaskEvent::Token { .. })).cloned().collect()
}

fn ids(tokens: &[TaskEvent]) -> Vec<u32> {
    let id = |event: &TaskEvent| if let TaskEvent::Token { k, .. } = event { *k } else { None };
    tokens.iter().map(|token| id(token).expect("ids were asked for")).collect()
}

/// Cuts a run after each of `cuts` tokens and lets it go on; the rest must be what it was.
async fn assert_cut_anywhere(worker: &Worker, first: &ExecuteRequest, cuts: impl Iterator<Item = usize>) {
    let whole = worker.run(first).await;
    let said = tokens(&whole);
    let (_, end) = finished(&whole);
    for cut in cuts.filter(|cut| (1..=said.len()).contains(cut)) {
        let events = worker.run(&go_on(first, &said[..cut], &[cut as u32])).await;
        let numbered = (2 + cut as u64..).zip(&events).all(|(id, (found, _))| *found == id);
        assert!(numbered, "ids go on after the {cut} tokens that were sent: {events:?}");
        assert!(
            matches!(events.first(), Some((_, TaskEvent::Seam { i, .. })) if *i as usize == cut),
            "{events:?}"
        );
        assert_eq!(tokens(&events), said[cut..], "cut after {cut} tokens");
        let Some((_, TaskEvent::End(last))) = events.last() else { panic!("no end: {events:?}") };
        assert_eq!(
            (last.tokens_in, last.tokens_out, last.stop_reason, last.seed),
            (end.tokens_in, end.tokens_out, end.stop_reason, end.seed),
            "the figures are those of one run"
        );
    }
}

#[tokio::test]
async fn a_greedy_run_goes_on_after_any_token() {
    let worker = Worker::start("fake:bee", &CONTEXT).await;
    let first = ExecuteRequest { temperature: Some(0.0), ..with_ids("greedy", 96) };
    assert_cut_anywhere(&worker, &first, 1..=96).await;
}

#[tokio::test]
async fn a_seeded_run_with_penalties_draws_what_it_would_have_drawn() {
    let worker = Worker::start("fake:bee", &CONTEXT).await;
    let first = ExecuteRequest {
        temperature: Some(1.0),
        top_p: Some(0.9),
        repetition_penalty: Some(1.3),
        frequency_penalty: Some(0.7),
        presence_penalty: Some(0.4),
        ..with_ids("drawn", 60)
    };
    assert_cut_anywhere(&worker, &first, 1..=60).await;
}

/// A run that must say what the schema asks for: so many texts, and a number.
fn formed(job_id: &str, texts: u32) -> ExecuteRequest {
    let schema = json!({
        "type": "object",
        "properties": {
            "log": { "type": "array", "minItems": texts, "maxItems": texts,
                "items": { "type": "string", "minLength": 60, "maxLength": 80 } },
            "count": { "type": "integer", "minimum": 0, "maximum": 9 }
        },
        "required": ["log", "count"],
        "additionalProperties": false
    });
    ExecuteRequest {
        temperature: Some(1.0),
        response_format: Some(ResponseFormat::of_schema(&schema)),
        ..with_ids(job_id, 1500)
    }
}

#[tokio::test]
async fn a_form_is_kept_across_the_seam() {
    let worker = Worker::start("fake:bee", &CONTEXT).await;
    let first = formed("formed", 12);
    let whole = worker.run(&first).await;
    let (text, end) = finished(&whole);
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((value["log"].as_array().map(Vec::len), end.stop_reason), (Some(12), StopReason::Eos));
    let count = end.tokens_out as usize;
    assert!(count > EXACT_REPLAY + 20, "{count} tokens");
    let cuts = (1..=40).chain(EXACT_REPLAY - 2..EXACT_REPLAY + 3).chain(count - 20..=count);
    assert_cut_anywhere(&worker, &first, cuts).await;
}

#[tokio::test]
async fn a_text_that_is_complete_with_its_last_token_is_not_cut_wherever_that_was_drawn() {
    let worker = Worker::start("fake:bee", &CONTEXT).await;
    for texts in [1, 12] {
        let first = formed(&format!("whole-{texts}"), texts);
        let (_, end) = finished(&worker.run(&first).await);
        let count = end.tokens_out as usize;
        assert_eq!(count > EXACT_REPLAY, texts == 12, "one is taken token by token, one in chunks");
        let job_id = format!("enough-{texts}");
        let just_enough = ExecuteRequest { job_id, max_tokens: Some(end.tokens_out), ..first };
        assert_eq!(finished(&worker.run(&just_enough).await).1.stop_reason, StopReason::Eos);
        assert_cut_anywhere(&worker, &just_enough, count - 2..=count).await;
    }
}

#[tokio::test]
async fn tokens_that_do_not_follow_the_form_are_not_continued() {
    let worker = Worker::start("fake:bee", &CONTEXT).await;
    let first = formed("broken", 1);
    let tokens = vec![u32::from(b'{'), u32::from(b'x')];
    let continuation = Some(Continuation { tokens, seams: Vec::new() });
    let broken = ExecuteRequest { attempt: Some(Attempt(2)), continuation, ..first };
    let refusal = worker.refusal(&broken).await;
    assert_eq!(
        (refusal.code, refusal.field.as_deref()),
        (ErrorCode::InvalidField, Some("continuation.tokens.1"))
    );
    assert_eq!(worker.busy().await, 0, "no slot is left taken");
}

#[tokio::test]
async fn a_stop_string_is_found_across_the_seam() {
    let worker = Worker::start("fake:bee", &CONTEXT).await;
    let plain = ExecuteRequest { temperature: Some(0.0), ..with_ids("plain", 60) };
    let (text, _) = finished(&worker.run(&plain).await);
    let middle = text.chars().count() / 2;
    let stop: String = text.chars().skip(middle).take(6).collect();
    let stopped = ExecuteRequest { job_id: "stopped".into(), stop: vec![stop], ..plain };
    let (short, _) = finished(&worker.run(&stopped).await);
    assert!(short.len() < text.len() && text.starts_with(&short));
    assert_cut_anywhere(&worker, &stopped, 1..=60).await;
}

#[tokio::test]
async fn a_long_completion_is_taken_in_chunks() {
    let worker = Worker::start("fake:bee", &CONTEXT).await;
    let first = ExecuteRequest { temperature: Some(0.0), ..with_ids("long", 2 * EXACT_REPLAY as u32) };
    let cuts = [EXACT_REPLAY, EXACT_REPLAY + 1, EXACT_REPLAY + 200, 2 * EXACT_REPLAY];
    assert_cut_anywhere(&worker, &first, cuts.into_iter()).await;
}

#[tokio::test]
async fn a_seam_waits_for_its_place() {
    let worker = Worker::start("fake:bee", &CONTEXT).await;
    let first = with_ids("late", 30);
    let said = tokens(&worker.run(&first).await);
    let events = worker.run(&go_on(&first, &said[..10], &[14, 99])).await;
    let seams: Vec<usize> = (0..)
        .zip(&events)
        .filter(|(_, (_, event))| matches!(event, TaskEvent::Seam { .. }))
        .map(|(place, _)| place)
        .collect();
    assert_eq!(seams, [4, events.len() - 2], "after four tokens, and before the end: {events:?}");
    assert_eq!(tokens(&events), said[10..]);
}

#[tokio::test]
async fn what_cannot_be_continued_is_refused() {
    let worker = Worker::start("fake:bee", &["--context", "64"]).await;
    let first = with_ids("refused", 8);
    let continued = |tokens: Vec<u32>| ExecuteRequest {
        attempt: Some(Attempt(2)),
        continuation: Some(Continuation { tokens, seams: Vec::new() }),
        ..first.clone()
    };
    for (request, field) in [
        (continued(Vec::new()), "continuation.tokens"),
        (continued(vec![0, u32::MAX]), "continuation.tokens.1"),
        (ExecuteRequest { seed: None, ..continued(vec![7]) }, "seed"),
    ] {
        let refusal = worker.refusal(&request).await;
        assert_eq!((refusal.code, refusal.field.as_deref()), (ErrorCode::InvalidField, Some(field)));
    }
    let refusal = worker.refusal(&continued(vec![7; 64])).await;
    assert_eq!(refusal.code, ErrorCode::ContextOverflow, "{}", refusal.message);
    assert_eq!(worker.busy().await, 0, "no slot is left taken");
}
