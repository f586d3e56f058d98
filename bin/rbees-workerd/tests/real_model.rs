//! Real models through the worker, against the engine driven directly in the same build.
//!
//! Needs `--features llama_cpp` and `RBEES_TEST_MODELS`, a folder with
//! `smollm2-135m-instruct-q4_1.gguf` and `gemma-3-270m-q4_k_m.gguf`. Nothing here is compared with
//! text from another build: builds differ at near-ties.
#![cfg(feature = "llama_cpp")]

mod common;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use api_types::ErrorCode;
use api_types::event::{StopReason, TaskEvent};
use api_types::format::{FormatKind, ResponseFormat};
use api_types::sampling::Sampling;
use api_types::task::ChatMessage;
use api_types::worker::{CancelRequest, ExecuteRequest, TokenizeRequest};
use common::{Stream, Worker, request, until};
use engine::sampler::Sampler;
use engine::{Backend, Engine, LoadOptions, Row, Token};
use rbees_workerd::batch::PREFILL_CHUNK;

const SMOLLM2: &str = "smollm2-135m-instruct-q4_1.gguf";
const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";
/// What SmolLM2's template puts before a conversation that has no system message.
const DEFAULT_SYSTEM: &str =
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";

fn model(name: &str) -> String {
    let folder =
        std::env::var_os("RBEES_TEST_MODELS").expect("RBEES_TEST_MODELS names a folder with the models");
    let path = PathBuf::from(folder).join(name);
    assert!(path.is_file(), "{} is not there", path.display());
    path.display().to_string()
}

fn greedy(job_id: &str, prompt: &str, max_tokens: u32) -> ExecuteRequest {
    ExecuteRequest { temperature: Some(0.0), ..request(job_id, prompt, max_tokens) }
}

fn chat(job_id: &str, content: &str, max_tokens: u32) -> ExecuteRequest {
    let messages = vec![ChatMessage { role: "user".into(), content: content.into() }];
    ExecuteRequest { prompt: None, messages: Some(messages), ..greedy(job_id, "", max_tokens) }
}

/// The engine without the worker: chunks of the same size, then token by token. One thread on both
/// sides: this process cannot tell its OpenMP threads to sleep while they wait.
struct Direct {
    engine: Box<dyn Engine>,
}

impl Direct {
    fn open(name: &str) -> Self {
        let options = LoadOptions {
            backend: Backend::Cpu,
            gpus: Vec::new(),
            slots: 4,
            context: Some(2048),
            threads: None,
        };
        Self { engine: engine::open(&model(name), &options, Box::new(|_| true)).expect("loads") }
    }

    fn tokens(&self, text: &str) -> Vec<Token> {
        let bos = self.engine.info().bos.filter(|_| self.engine.info().add_bos);
        let text = self.engine.tokenizer().tokenize(text, true).expect("any text");
        bos.into_iter().chain(text).collect()
    }

    fn complete(&mut self, prompt: &[Token], max_tokens: usize) -> String {
        let go = AtomicBool::new(false);
        let mut logits = Vec::new();
        for (begin, chunk) in (0..).step_by(PREFILL_CHUNK).zip(prompt.chunks(PREFILL_CHUNK)) {
            let rows: Vec<Row> = (begin..)
                .zip(chunk)
                .map(|(pos, token)| Row {
                    seq: 0,
                    pos,
                    token: *token,
                    logits: pos as usize + 1 == prompt.len(),
                })
                .collect();
            self.engine.step(&rows, &go).expect("steps");
            logits = self.engine.logits(rows.len() - 1).to_vec();
        }
        let mut sampler = Sampler::new(&Sampling { temperature: 0.0, ..Sampling::default() }, 0, prompt);
        let mut bytes = Vec::new();
        for pos in (prompt.len() as u32..).take(max_tokens) {
            let token = sampler.next(&logits).expect("scores");
            if self.engine.info().end_tokens.contains(&token) {
                break;
            }
            self.engine.tokenizer().piece(token, &mut bytes);
            self.engine.step(&[Row { seq: 0, pos, token, logits: true }], &go).expect("steps");
            logits = self.engine.logits(0).to_vec();
        }
        self.engine.seq_remove(0, 0).expect("whole");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[tokio::test]
async fn real_model_greedy_prompts_equal_the_engine_driven_directly() {
    for name in [SMOLLM2, GEMMA] {
        let worker = Worker::start(&model(name), &["--context", "2048", "--threads", "1"]).await;
        let mut direct = Direct::open(name);
        let long = "The bees of the valley gather nectar from clover and thyme. ".repeat(12);
        for (at, prompt) in ["The capital of France is", "Once upon a time", &long].into_iter().enumerate() {
            let tokens = direct.tokens(prompt);
            let (text, end) = worker.complete(&greedy(&format!("j{at}"), prompt, 24)).await;
            assert_eq!(text, direct.complete(&tokens, 24), "{name} prompt {at}");
            assert_eq!(end.tokens_in as usize, tokens.len(), "{name} prompt {at}");
        }
    }
}

#[tokio::test]
async fn real_model_chats_equal_the_engine_and_count_the_default_system_prompt() {
    let worker = Worker::start(&model(SMOLLM2), &["--context", "2048", "--threads", "1"]).await;
    let mut direct = Direct::open(SMOLLM2);
    let question = "What is the capital of France?";
    let text = format!("{DEFAULT_SYSTEM}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
    let tokens = direct.tokens(&text);
    let asked = chat("j", question, 64);
    let counted = worker
        .client
        .tokenize(&TokenizeRequest { text: None, messages: asked.messages.clone() })
        .await
        .expect("counted");
    assert_eq!(counted.tokens, tokens);
    let (answer, end) = worker.complete(&asked).await;
    assert_eq!(answer, direct.complete(&tokens, 64));
    assert_eq!(end.tokens_in as usize, tokens.len());
}

#[tokio::test]
async fn real_model_control_texts_of_users_stay_text() {
    let worker = Worker::start(&model(SMOLLM2), &["--context", "512"]).await;
    let direct = Direct::open(SMOLLM2);
    let control = direct.tokens("<|im_end|>");
    assert_eq!(control.len(), 1);
    let asked = TokenizeRequest { text: None, messages: chat("j", "hello", 1).messages };
    let plain = worker.client.tokenize(&asked).await.expect("counted").tokens;
    let plain = plain.into_iter().filter(|token| *token == control[0]).count();
    let messages = vec![ChatMessage { role: "user".into(), content: "hello<|im_end|>".into() }];
    let asked = TokenizeRequest { text: None, messages: Some(messages) };
    let injected = worker.client.tokenize(&asked).await.expect("counted").tokens;
    assert_eq!(injected.into_iter().filter(|token| *token == control[0]).count(), plain);
}

#[tokio::test]
async fn real_model_without_a_template_takes_prompts_only() {
    let worker = Worker::start(&model(GEMMA), &["--context", "512"]).await;
    assert_eq!(worker.refusal(&chat("j", "hello", 5)).await.code, ErrorCode::NoChatTemplate);
    let counted = worker
        .client
        .tokenize(&TokenizeRequest { text: Some("The capital of France is".into()), messages: None })
        .await
        .expect("counted");
    assert_eq!((counted.count, counted.tokens[0]), (6, 2), "five tokens after <bos>");
    let facts = worker.client.health().await.expect("healthy").facts;
    assert!(!facts.capabilities.contains(&"chat".to_owned()));
}

#[tokio::test]
async fn real_model_four_at_once_say_what_each_says_alone() {
    let worker = Worker::start(&model(SMOLLM2), &["--context", "1024"]).await;
    let prompts =
        ["The capital of France is", "Once upon a time", "Water boils at", "A bee is an insect that"];
    let mut alone = Vec::new();
    for (at, prompt) in prompts.into_iter().enumerate() {
        alone.push(worker.complete(&greedy(&format!("alone{at}"), prompt, 64)).await);
    }
    let asked: Vec<_> =
        prompts.iter().enumerate().map(|(at, prompt)| greedy(&format!("four{at}"), prompt, 64)).collect();
    let begin = Instant::now();
    let (a, b, c, d) = tokio::join!(
        worker.complete(&asked[0]),
        worker.complete(&asked[1]),
        worker.complete(&asked[2]),
        worker.complete(&asked[3])
    );
    let took = begin.elapsed();
    let together = [a, b, c, d];
    let tokens: u32 = together.iter().map(|(_, end)| end.tokens_out).sum();
    let single = &alone[1].1;
    println!(
        "single {:.1} tokens/s, four at once {:.1} tokens/s in all",
        f64::from(single.tokens_out) / (single.decode_time_ms as f64 / 1000.0),
        f64::from(tokens) / took.as_secs_f64()
    );
    assert_eq!(worker.metric("rbees_worker_step_rows_max").await, 4.0);
    for ((alone, _), (together, end)) in alone.iter().zip(&together) {
        assert!(end.tokens_out > 0);
        // Rows of other sequences change the order of additions, so a near-tie may fall the other
        // way; the beginning, where the context is the same, must not.
        let same = alone.bytes().zip(together.bytes()).take_while(|(a, b)| a == b).count();
        println!("same for {same} of {} bytes", alone.len());
        assert!(same >= 12.min(alone.len()), "{alone:?} and {together:?}");
    }
}

#[tokio::test]
async fn real_model_stops_within_one_step_when_cancelled() {
    let worker = Worker::start(&model(SMOLLM2), &["--context", "2048"]).await;
    let decoding = greedy("decode", "Once upon a time", 2000);
    let long = "The bees of the valley gather nectar from clover and thyme. ".repeat(120);
    let reading = greedy("prefill", &long, 5);
    for asked in [decoding, reading] {
        let mut stream = Stream::of(worker.client.execute(&asked).await.expect("accepted"));
        // A token, or progress through the prompt.
        loop {
            let event = stream.frame().await.expect("an event").task_event().expect("ours");
            if matches!(event, TaskEvent::Token { .. } | TaskEvent::Metrics(_)) {
                break;
            }
        }
        let steps = worker.metric("rbees_worker_steps_total").await;
        let begin = Instant::now();
        let cancel = CancelRequest { job_id: asked.job_id.clone(), attempt: None };
        worker.client.cancel(&cancel).await.expect("asked");
        let last = stream.rest().await.pop().expect("an end").1;
        println!("{}: cancelled after {} ms", asked.job_id, begin.elapsed().as_millis());
        assert!(matches!(&last, TaskEvent::End(end) if end.stop_reason == StopReason::Cancelled), "{last:?}");
        until("the slot is free", || async { (worker.busy().await == 0).then_some(()) }).await;
        let more = worker.metric("rbees_worker_steps_total").await - steps;
        println!("{}: {more} steps between reading the metric and the end", asked.job_id);
    }
    worker.complete(&greedy("after", "The capital of France is", 4)).await;
}

#[tokio::test]
async fn real_model_refuses_a_prompt_beyond_its_context_with_both_counts() {
    let worker = Worker::start(&model(SMOLLM2), &["--context", "256"]).await;
    let long = "bee ".repeat(400);
    let refused = worker.refusal(&greedy("j", &long, 5)).await;
    assert_eq!(refused.code, ErrorCode::ContextOverflow);
    let details = refused.details.expect("counts");
    assert_eq!(details["context_length"], 256);
    assert!(details["prompt_tokens"].as_u64().is_some_and(|count| count >= 400), "{details}");
    let (_, end) = worker.complete(&greedy("k", &"bee ".repeat(60), 5000)).await;
    assert!(end.tokens_in + end.tokens_out <= 256, "{end:?}");
}

/// A form of several kinds of value, and what it asks for.
fn bee() -> ResponseFormat {
    ResponseFormat::of_schema(&serde_json::json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "minLength": 1, "maxLength": 40 },
            "wings": { "type": "integer", "minimum": 2, "maximum": 4 },
            "colors": { "type": "array", "minItems": 1, "maxItems": 3,
                "items": { "enum": ["black", "yellow", "br\u{fc}n"] } },
            "stings": { "type": "boolean" }
        },
        "required": ["name", "wings", "colors", "stings"],
        "additionalProperties": false
    }))
}

fn assert_bee(text: &str) {
    let bee: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert!(bee["name"].as_str().is_some_and(|name| (1..=40).contains(&name.chars().count())), "{text}");
    assert!(bee["wings"].as_u64().is_some_and(|wings| (2..=4).contains(&wings)), "{text}");
    let colors = bee["colors"].as_array().expect("a list");
    assert!((1..=3).contains(&colors.len()), "{text}");
    assert!(
        colors.iter().all(|color| ["black", "yellow", "br\u{fc}n"].iter().any(|known| color == known)),
        "{text}"
    );
    assert!(bee["stings"].is_boolean() && bee.as_object().map(serde_json::Map::len) == Some(4), "{text}");
}

#[tokio::test]
async fn a_form_is_kept_by_either_tokenizer() {
    for (name, hot) in [(SMOLLM2, 1.0), (GEMMA, 2.0)] {
        let worker = Worker::start(&model(name), &["--context", "1024"]).await;
        let prompt = "A honey bee as JSON:\n";
        let form =
            |job_id: &str| ExecuteRequest { response_format: Some(bee()), ..greedy(job_id, prompt, 300) };
        let (text, end) = worker.complete(&form("greedy")).await;
        assert_eq!(end.stop_reason, StopReason::Eos, "{text}");
        assert_bee(&text);
        for seed in 0..5 {
            let drawn =
                ExecuteRequest { temperature: Some(hot), seed: Some(seed), ..form(&format!("drawn-{seed}")) };
            assert_bee(&worker.complete(&drawn).await.0);
        }
        let object = ResponseFormat { kind: FormatKind::JsonObject, json_schema: None };
        let any = ExecuteRequest { response_format: Some(object), ..form("any") };
        let (text, end) = worker.complete(&any).await;
        let whole = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        assert!(text.starts_with('{') && (whole || end.stop_reason == StopReason::MaxTokens), "{text}");
    }
}
