//! The fake engine behind the trait that the real one has.

use std::sync::atomic::{AtomicBool, Ordering};

use api_types::sampling::Sampling;
use engine::sampler::Sampler;
use engine::{Backend, Engine, EngineError, LoadOptions, Row, StepOutcome, Token};

fn options(slots: u32) -> LoadOptions {
    LoadOptions { backend: Backend::Fake, gpus: Vec::new(), slots, context: None, threads: None }
}

fn open(model: &str, slots: u32) -> Box<dyn Engine> {
    engine::open(model, &options(slots), Box::new(|_| true)).expect("loads")
}

fn rows(seq: u32, from: u32, tokens: &[Token]) -> Vec<Row> {
    let last = tokens.len() - 1;
    tokens
        .iter()
        .enumerate()
        .map(|(at, token)| Row { seq, pos: from + at as u32, token: *token, logits: at == last })
        .collect()
}

fn complete(
    engine: &mut dyn Engine,
    seq: u32,
    prompt: &str,
    count: usize,
    sampling: &Sampling,
) -> Vec<Token> {
    let prompt = engine.tokenizer().tokenize(prompt, true).expect("any text");
    let mut sampler = Sampler::new(sampling, 11, &prompt);
    let mut batch = rows(seq, 0, &prompt);
    let mut tokens = Vec::new();
    let go = AtomicBool::new(false);
    while tokens.len() < count {
        assert_eq!(engine.step(&batch, &go), Ok(StepOutcome::Done));
        let token = sampler.next(engine.logits(batch.len() - 1)).expect("scores");
        batch = rows(seq, (prompt.len() + tokens.len()) as u32, &[token]);
        tokens.push(token);
    }
    tokens
}

#[test]
fn the_same_prompt_and_seed_give_the_same_tokens_on_any_worker_and_slot() {
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let first = complete(&mut *open("fake:a", 1), 0, "hello", 40, &sampling);
    let second = complete(&mut *open("fake:b?pace_ms=1", 4), 3, "hello", 40, &sampling);
    assert_eq!(first, second);
    assert_ne!(first, complete(&mut *open("fake:a?seed=1", 1), 0, "hello", 40, &sampling));
    assert_ne!(first, complete(&mut *open("fake:a", 1), 0, "hellp", 40, &sampling));
}

#[test]
fn a_removed_sequence_begins_again_and_a_gap_is_refused() {
    let mut engine = open("fake:a", 1);
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let first = complete(&mut *engine, 0, "hello", 5, &greedy);
    assert!(engine.step(&rows(0, 1, &[7]), &AtomicBool::new(false)).is_err());
    engine.seq_remove(0, 0).expect("whole");
    assert_eq!(first, complete(&mut *engine, 0, "hello", 5, &greedy));
}

#[test]
fn markers_in_the_prompt_make_faults() {
    let mut engine = open("fake:a", 1);
    let prompt = engine.tokenizer().tokenize("x [[error]]", true).expect("any text");
    let failed = engine.step(&rows(0, 0, &prompt), &AtomicBool::new(false));
    assert!(matches!(failed, Err(EngineError::StepFailed(_))));

    engine.seq_remove(0, 0).expect("whole");
    let prompt = engine.tokenizer().tokenize("x [[stall]]", true).expect("any text");
    let abandon = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let step = scope.spawn(|| engine.step(&rows(0, 0, &prompt), &abandon));
        abandon.store(true, Ordering::Relaxed);
        assert_eq!(step.join().expect("no panic"), Ok(StepOutcome::Abandoned));
    });
}

#[test]
fn an_answer_ends_where_the_prompt_says() {
    let mut engine = open("fake:a", 1);
    let tokens = complete(&mut *engine, 0, "x [[eos:3]]", 4, &Sampling::default());
    let end = engine.info().end_tokens.clone();
    let ended: Vec<bool> = tokens.iter().map(|token| end.contains(token)).collect();
    // A character that is half said is finished first.
    assert!(ended == [false, false, false, true] || ended == [false; 4], "{ended:?}");
}

#[test]
fn wrong_requests_are_refused_by_name() {
    let load = |model: &str, options: &LoadOptions| {
        engine::open(model, options, Box::new(|_| true)).map(drop).expect_err("refused")
    };
    let cpu = LoadOptions { backend: Backend::Cpu, ..options(1) };
    assert!(matches!(load("fake:a", &cpu), EngineError::InvalidOption { field: "backend", .. }));
    assert!(matches!(load("fake:a?refuse=no", &options(1)), EngineError::LoadFailed(_)));
    assert!(matches!(load("fake:a?x=1", &options(1)), EngineError::InvalidOption { field: "model", .. }));
    assert!(matches!(load("fake:a", &options(0)), EngineError::InvalidOption { field: "slots", .. }));
    let wide = LoadOptions { context: Some(9999), ..options(1) };
    assert!(matches!(load("fake:a", &wide), EngineError::InvalidOption { field: "context", .. }));
    assert!(matches!(load("no-such-file.gguf", &cpu), EngineError::Unreadable(_)));
}

#[test]
fn a_damaged_file_is_refused_with_its_offset_before_any_engine() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("damaged.gguf");
    std::fs::write(&path, b"GGUF\x09\0\0\0").expect("written");
    let cpu = LoadOptions { backend: Backend::Cpu, ..options(1) };
    let error = engine::open(path.to_str().expect("UTF-8"), &cpu, Box::new(|_| true)).map(drop);
    let detail = error.expect_err("damaged").detail();
    assert_eq!(detail.code, api_types::ErrorCode::CorruptModel);
    assert_eq!(detail.details.expect("details")["offset"], 4);
}
