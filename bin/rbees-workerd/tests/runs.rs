//! Runs on a real worker process with the fake engine.

mod common;

use api_types::event::{StopReason, TaskEvent};
use api_types::task::ChatMessage;
use api_types::worker::{CancelRequest, ExecuteRequest};
use api_types::{Attempt, ErrorCode};
use common::{Stream, Worker, finished, request, until};

const SLOW: &str = "fake:bee?pace_ms=20";

#[tokio::test]
async fn a_run_streams_numbered_events_and_ends_with_its_figures() {
    let worker = Worker::start("fake:bee", &[]).await;
    let events = worker.run(&ExecuteRequest { first_event_id: Some(3), ..request("j", "hello", 20) }).await;
    let ids: Vec<u64> = events.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, (3..25).collect::<Vec<_>>());
    assert!(matches!(&events[0].1, TaskEvent::Started { attempt: Attempt(1), .. }));
    let (text, end) = finished(&events);
    assert!(!text.is_empty());
    assert_eq!((end.tokens_in, end.tokens_out, end.stop_reason), (6, 20, StopReason::MaxTokens));
    assert_eq!(end.seed, Some(7));
}

#[tokio::test]
async fn the_log_is_read_again_from_anywhere_until_it_is_acknowledged() {
    let worker = Worker::start("fake:bee", &[]).await;
    let all = worker.run(&request("j", "hello", 20)).await;
    for from in [0, 1, 7, 21, 22] {
        let body = worker.client.events("j", Attempt(1), from).await.expect("kept");
        let again = Stream::of(body).rest().await;
        assert_eq!(again, all[from as usize..]);
    }
    worker.client.acknowledge("j", Attempt(1)).await.expect("forgotten");
    worker.client.acknowledge("j", Attempt(1)).await.expect("and again");
    let gone = worker.client.events("j", Attempt(1), 0).await.expect_err("gone");
    assert!(gone.is_code(ErrorCode::AttemptGone), "{gone}");
    assert_eq!(worker.refusal(&request("j", "hello", 20)).await.code, ErrorCode::AttemptGone);
    let unknown = worker.client.events("k", Attempt(1), 0).await.expect_err("never ran");
    assert!(unknown.is_code(ErrorCode::JobNotFound), "{unknown}");
}

#[tokio::test]
async fn a_reader_that_leaves_does_not_stop_the_run_and_the_same_request_gets_the_same_stream() {
    let worker = Worker::start(SLOW, &[]).await;
    let asked = request("j", "hello", 30);
    let mut first = Stream::of(worker.client.execute(&asked).await.expect("accepted"));
    first.first_token().await;
    drop(first);
    let all = worker.run(&asked).await;
    assert_eq!(finished(&all).1.stop_reason, StopReason::MaxTokens);
    assert_eq!(worker.run(&asked).await, all);
    assert_eq!(worker.metric("rbees_worker_prefills_total").await, 1.0);

    let other = worker.refusal(&request("j", "other", 30)).await;
    assert_eq!(other.code, ErrorCode::JobConflict);
    let next = ExecuteRequest { attempt: Some(Attempt(2)), ..asked.clone() };
    worker.run(&next).await;
    let stale = ExecuteRequest { prompt: Some("new".into()), ..asked };
    assert_eq!(worker.refusal(&stale).await.code, ErrorCode::JobConflict);
    worker.client.acknowledge("j", Attempt(1)).await.expect("forgotten");
    assert_eq!(worker.refusal(&stale).await.code, ErrorCode::StaleAttempt);
}

#[tokio::test]
async fn without_an_attempt_a_job_runs_again_and_ends_with_its_reader() {
    let worker = Worker::start(SLOW, &[]).await;
    let by_hand = ExecuteRequest { attempt: None, ..request("j", "hello", 3) };
    worker.run(&by_hand).await;
    worker.run(&by_hand).await;
    assert_eq!(worker.metric("rbees_worker_prefills_total").await, 2.0);
    let long = ExecuteRequest { max_tokens: Some(4000), ..by_hand };
    let mut stream = Stream::of(worker.client.execute(&long).await.expect("accepted"));
    stream.first_token().await;
    assert_eq!(worker.busy().await, 1);
    drop(stream);
    until("the slot is free", || async { (worker.busy().await == 0).then_some(()) }).await;
}

#[tokio::test]
async fn the_same_prompt_and_seed_give_the_same_text_on_every_worker_alone_or_beside_others() {
    let one = Worker::start("fake:a", &["--slots", "1"]).await;
    let four = Worker::start("fake:b?pace_ms=10", &["--slots", "4"]).await;
    let prompts = ["hello", "another prompt", "a third one, longer than the others", "x"];
    let mut alone = Vec::new();
    for prompt in prompts {
        alone.push(one.complete(&request(prompt, prompt, 40)).await.0);
    }
    let asked: Vec<_> = prompts.iter().map(|prompt| request(prompt, prompt, 40)).collect();
    let together = tokio::join!(
        four.complete(&asked[0]),
        four.complete(&asked[1]),
        four.complete(&asked[2]),
        four.complete(&asked[3])
    );
    assert_eq!(alone, [together.0.0, together.1.0, together.2.0, together.3.0]);
    assert_eq!(four.metric("rbees_worker_step_rows_max").await, 4.0);
    assert_eq!(four.metric("rbees_worker_prefills_total").await, 4.0);
}

#[tokio::test]
async fn a_full_worker_refuses_at_once_and_takes_the_next_when_a_slot_is_free() {
    let worker = Worker::start(SLOW, &["--slots", "1"]).await;
    let mut running =
        Stream::of(worker.client.execute(&request("a", "hello", 4000)).await.expect("accepted"));
    running.first_token().await;
    let busy = worker.refusal(&request("b", "hello", 5)).await;
    assert_eq!((busy.code, busy.retriable), (ErrorCode::AllSlotsBusy, true));
    worker.client.cancel(&CancelRequest { job_id: "a".into(), attempt: None }).await.expect("asked");
    let (_, end) = {
        let mut events = running.rest().await;
        let last = events.pop().expect("an end").1;
        match last {
            TaskEvent::End(end) => ((), end),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(end.stop_reason, StopReason::Cancelled);
    // Whoever saw the end may use the slot without another look.
    worker.run(&request("b", "hello", 5)).await;
}

#[tokio::test]
async fn a_run_is_cancelled_while_it_reads_its_prompt() {
    let worker = Worker::start("fake:bee?pace_ms=50", &[]).await;
    let prompt = "x".repeat(3000);
    let mut stream = Stream::of(worker.client.execute(&request("j", &prompt, 5)).await.expect("accepted"));
    let progress = loop {
        let frame = stream.frame().await.expect("progress");
        if let TaskEvent::Metrics(metrics) = frame.task_event().expect("ours") {
            assert_eq!(frame.id, None);
            break metrics;
        }
    };
    assert_eq!(progress.prompt_tokens, Some(3001));
    assert!(progress.prompt_tokens_done < progress.prompt_tokens);
    worker
        .client
        .cancel(&CancelRequest { job_id: "j".into(), attempt: Some(Attempt(1)) })
        .await
        .expect("asked");
    let events = stream.rest().await;
    assert!(
        matches!(&events[..], [(_, TaskEvent::End(end))] if end.stop_reason == StopReason::Cancelled),
        "{events:?}"
    );
    assert_eq!(worker.metric("rbees_worker_tokens_total").await, 0.0);
}

#[tokio::test]
async fn a_run_that_uses_up_its_time_ends_with_that_error() {
    let worker = Worker::start(SLOW, &[]).await;
    let events =
        worker.run(&ExecuteRequest { time_limit_ms: Some(200), ..request("j", "hello", 4000) }).await;
    let (_, last) = events.last().expect("a last event");
    assert!(matches!(last, TaskEvent::Error { code: ErrorCode::DeadlineExceeded, .. }), "{last:?}");
}

#[tokio::test]
async fn a_stop_string_never_leaves_even_over_token_borders() {
    let worker = Worker::start("fake:bee", &[]).await;
    let (whole, _) = worker.complete(&request("whole", "hello", 60)).await;
    let middle = whole.len() / 2;
    let cut =
        (middle..whole.len() - 8).find(|at| whole.is_char_boundary(*at) && whole.is_char_boundary(at + 7));
    let cut = cut.expect("a place");
    let stop = &whole[cut..cut + 7];
    let first = whole.find(stop).expect("it is there");
    let (text, end) =
        worker.complete(&ExecuteRequest { stop: vec![stop.into()], ..request("j", "hello", 60) }).await;
    assert_eq!((text.as_str(), end.stop_reason), (&whole[..first], StopReason::Stop));
    let never = ExecuteRequest { stop: vec![format!("{stop}\u{1}")], ..request("n", "hello", 60) };
    assert_eq!(worker.complete(&never).await.0, whole, "held text is flushed at the end");
}

#[tokio::test]
async fn characters_split_over_tokens_arrive_whole() {
    let worker = Worker::start("fake:bee", &[]).await;
    let mut split = 0;
    for seed in 0..8 {
        let asked = ExecuteRequest {
            seed: Some(seed),
            temperature: Some(1.0),
            ..request(&format!("j{seed}"), "hi", 80)
        };
        let (text, _) = worker.complete(&asked).await;
        split += text.matches(['\u{1f41d}', '\u{e9}', '\u{8702}']).count();
    }
    assert!(split > 0, "the fake vocabulary says such characters");
}

#[tokio::test]
async fn an_answer_that_the_model_ends_says_so() {
    let worker = Worker::start("fake:bee", &[]).await;
    let (_, end) = worker.complete(&request("j", "hello [[eos:5]]", 60)).await;
    assert_eq!(end.stop_reason, StopReason::Eos);
    assert!((5..=6).contains(&end.tokens_out), "{end:?}");
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_refused_with_both_counts_and_the_answer_is_clipped() {
    let worker = Worker::start("fake:bee", &["--context", "64"]).await;
    let refused = worker.refusal(&request("j", &"x".repeat(64), 5)).await;
    assert_eq!(refused.code, ErrorCode::ContextOverflow);
    let details = refused.details.expect("counts");
    assert_eq!((details["prompt_tokens"].as_u64(), details["context_length"].as_u64()), (Some(65), Some(64)));
    assert_eq!(worker.busy().await, 0);
    let (_, end) = worker.complete(&request("k", &"x".repeat(43), 500)).await;
    assert_eq!((end.tokens_in, end.tokens_out, end.stop_reason), (44, 20, StopReason::MaxTokens));
}

#[tokio::test]
async fn messages_go_through_the_template_and_base_models_say_that_they_have_none() {
    let messages = vec![ChatMessage { role: "user".into(), content: "hello".into() }];
    let chat = ExecuteRequest { prompt: None, messages: Some(messages.clone()), ..request("j", "", 5) };
    let worker = Worker::start("fake:bee", &[]).await;
    let (_, end) = worker.complete(&chat).await;
    let counted = worker
        .client
        .tokenize(&api_types::worker::TokenizeRequest { text: None, messages: Some(messages) })
        .await
        .expect("counted");
    assert_eq!(counted.count, end.tokens_in);
    assert_eq!(counted.tokens.len(), end.tokens_in as usize);
    let base = Worker::start("fake:bee?template=none", &[]).await;
    assert_eq!(base.refusal(&chat).await.code, ErrorCode::NoChatTemplate);
    base.complete(&request("p", "hello", 5)).await;
}

#[tokio::test]
async fn a_log_that_is_full_pauses_its_run_until_there_is_room() {
    let worker = Worker::start("fake:bee", &["--run-log-bytes", "4096"]).await;
    let asked = request("j", "hello", 300);
    let mut stream = Stream::of(worker.client.execute(&asked).await.expect("accepted"));
    let mut events = Vec::new();
    let mut acknowledged = 0;
    while let Some((id, event)) = stream.event().await {
        events.push((id, event));
        // Everything that fits has come: nothing more is made until room is.
        if id - acknowledged == 40 {
            let url = format!("{}/jobs/j/1/events?from={id}", worker.uri);
            let answer = worker.http.delete(url).send().await.expect("an answer");
            assert_eq!(answer.status().as_u16(), 204);
            acknowledged = id;
        }
    }
    let (_, end) = finished(&events);
    assert_eq!(end.tokens_out, 300);

    let unread = request("k", "hello", 300);
    drop(worker.client.execute(&unread).await.expect("accepted"));
    let tokens = until("the run pauses", || async {
        let before = worker.metric("rbees_worker_tokens_total").await;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        (before > 300.0 && worker.metric("rbees_worker_tokens_total").await == before).then_some(before)
    })
    .await;
    assert!(tokens < 600.0, "{tokens}");
    assert_eq!(worker.busy().await, 1);
    worker.run(&request("beside", "others are not held up", 10)).await;
    worker.client.cancel(&CancelRequest { job_id: "k".into(), attempt: None }).await.expect("asked");
    until("the slot is free", || async { (worker.busy().await == 0).then_some(()) }).await;
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_and_misses_nothing() {
    let worker = Worker::start("fake:bee?context=4096", &[]).await;
    let asked = request("slow", "hello", 3000);
    let mut slow = Stream::of(worker.client.execute(&asked).await.expect("accepted"));
    slow.first_token().await;
    until("the run ends although nobody reads", || async { (worker.busy().await == 0).then_some(()) }).await;
    worker.run(&request("fast", "hello", 50)).await;
    assert_eq!(slow.rest().await.len(), 3000);
}

#[tokio::test]
async fn an_engine_failure_ends_the_runs_of_that_step_and_the_worker_goes_on() {
    let worker = Worker::start(SLOW, &[]).await;
    let events = worker.run(&request("j", "hello [[error:3]]", 20)).await;
    let (_, last) = events.last().expect("a last event");
    assert!(
        matches!(last, TaskEvent::Error { code: ErrorCode::EngineFailed, retriable: true, .. }),
        "{last:?}"
    );
    assert_eq!(events.len(), 5, "{events:?}");
    worker.complete(&request("k", "hello", 5)).await;
}

#[tokio::test]
async fn a_stalled_engine_leaves_the_api_awake() {
    let worker = Worker::start("fake:bee", &[]).await;
    let mut stream =
        Stream::of(worker.client.execute(&request("j", "hello [[stall:2]]", 20)).await.expect("accepted"));
    stream.first_token().await;
    assert_eq!(worker.busy().await, 1);
    let text = api_types::worker::TokenizeRequest { text: Some("hello".into()), messages: None };
    assert_eq!(worker.client.tokenize(&text).await.expect("counted").count, 6);
}

#[tokio::test]
async fn a_poisonous_prompt_ends_the_process() {
    let mut worker = Worker::start("fake:bee", &[]).await;
    // The process may be gone before its answer has arrived, so only its end is looked at.
    let _ = worker.client.execute(&request("j", "hello [[crash:2]]", 20)).await;
    assert!(!worker.exit().await.success());
}
