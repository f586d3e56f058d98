//! The engine against a forward pass of our own, teacher-forced over a text.
//!
//! Needs the native engine and `RBEES_TEST_MODELS`.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use engine::{Backend, Engine, LoadOptions, Row};
use model_folder::Gguf;
use model_folder::reference::Reference;

const TEXT: &str = include_str!("../../../LICENSE");
/// Scores of the reference by which the engine's choice may lie below the best.
const ALLOWED: f32 = 0.15;

fn model(name: &str) -> PathBuf {
    let folder =
        std::env::var_os("RBEES_TEST_MODELS").expect("RBEES_TEST_MODELS names a folder with the models");
    PathBuf::from(folder).join(name)
}

fn best(scores: &[f32]) -> usize {
    (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap_or(0)
}

/// The engine's best token after each position.
fn choices(engine: &mut dyn Engine, tokens: &[u32]) -> Vec<usize> {
    let mut choices = Vec::new();
    for part in tokens.chunks(64) {
        let first = choices.len() as u32;
        let row = |(pos, token): (u32, &u32)| Row { seq: 0, pos, token: *token, logits: true };
        let rows: Vec<Row> = (first..).zip(part).map(row).collect();
        engine.step(&rows, &AtomicBool::new(false)).expect("steps");
        choices.extend((0..rows.len()).map(|row| best(engine.logits(row))));
    }
    choices
}

fn agrees(name: &str, positions: usize) {
    let options = LoadOptions {
        backend: Backend::Cpu,
        gpus: Vec::new(),
        slots: 1,
        context: Some(1024),
        threads: Some(2),
    };
    let path = model(name);
    let mut engine = engine::open(&path.display().to_string(), &options, Box::new(|_| true)).expect("loads");
    let mut tokens: Vec<u32> = engine.info().bos.filter(|_| engine.info().add_bos).into_iter().collect();
    tokens.extend(engine.tokenizer().tokenize(TEXT, false).expect("any text"));
    tokens.truncate(positions);
    assert_eq!(tokens.len(), positions, "the text is too short");
    let choices = choices(engine.as_mut(), &tokens);
    let file = Gguf::open(&path).expect("reads");
    let reference = Reference::new(&file, 2).expect("known");
    let mut gaps = Vec::new();
    let mut same = 0;
    let judge = |at: usize, scores: &[f32]| {
        let gap = scores[best(scores)] - scores[choices[at]];
        same += usize::from(gap == 0.0);
        gaps.push(gap);
    };
    reference.scores(&tokens, judge).expect("computes");
    let worst = gaps.iter().copied().fold(0.0, f32::max);
    println!("{name}: {same} of {positions} the same, largest gap {worst}");
    assert_eq!(gaps.len(), positions);
    let beyond: Vec<(usize, f32)> = gaps.into_iter().enumerate().filter(|(_, gap)| *gap > ALLOWED).collect();
    assert!(beyond.is_empty(), "{name}: positions and gaps beyond {ALLOWED}: {beyond:?}");
}

#[test]
fn llama_agrees_with_the_reference() {
    agrees("smollm2-135m-instruct-q4_1.gguf", 100);
}

#[test]
fn gemma_agrees_with_the_reference() {
    agrees("gemma-3-270m-q4_k_m.gguf", 100);
}

#[test]
fn long_llama_agrees_with_the_reference() {
    agrees("smollm2-135m-instruct-q4_1.gguf", 1000);
}

#[test]
fn long_gemma_agrees_with_the_reference() {
    agrees("gemma-3-270m-q4_k_m.gguf", 1000);
}
