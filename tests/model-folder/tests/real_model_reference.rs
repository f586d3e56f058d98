//! The engine against a forward pass of our own, teacher-forced over a text.
//!
//! Needs the native engine and `RBEES_TEST_MODELS`.

use std::path::{Path, PathBuf};
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

fn open(path: &Path) -> Box<dyn Engine> {
    let options = LoadOptions {
        backend: Backend::Cpu,
        gpus: Vec::new(),
        slots: 1,
        context: Some(1024),
        threads: Some(2),
    };
    engine::open(&path.display().to_string(), &options, Box::new(|_| true)).expect("loads")
}

/// How far each choice lies below the best, by the scores of the reference.
struct Gaps(Vec<f32>);

impl Gaps {
    fn worst(&self) -> f32 {
        self.0.iter().copied().fold(0.0, f32::max)
    }

    fn beyond(&self) -> Vec<(usize, f32)> {
        self.0.iter().copied().enumerate().filter(|(_, gap)| *gap > ALLOWED).collect()
    }

    fn tell(&self, what: &str) {
        let (same, all) = (self.0.iter().filter(|gap| **gap == 0.0).count(), self.0.len());
        let beyond = self.beyond().len();
        println!("{what}: {same} of {all} the same, {beyond} beyond {ALLOWED}, largest gap {}", self.worst());
    }
}

/// Judges the engine on the model's weights at full precision. On the file as it is the engine
/// rounds what it multiplies with to eight bits too, which moves near-ties: those gaps are told.
fn agrees(name: &str, positions: usize) {
    let path = model(name);
    let place = tempfile::tempdir().expect("a folder");
    let plain = place.path().join("plain.gguf");
    let file = Gguf::open(&path).expect("reads");
    model_folder::plain::write(&file, &plain).expect("written");
    let mut engine = open(&plain);
    let mut tokens: Vec<u32> = engine.info().bos.filter(|_| engine.info().add_bos).into_iter().collect();
    tokens.extend(engine.tokenizer().tokenize(TEXT, false).expect("any text"));
    tokens.truncate(positions);
    assert_eq!(tokens.len(), positions, "the text is too short");
    let exact = choices(engine.as_mut(), &tokens);
    drop(engine);
    let rounded = choices(open(&path).as_mut(), &tokens);
    let (mut of_exact, mut of_rounded) = (Gaps(Vec::new()), Gaps(Vec::new()));
    let judge = |at: usize, scores: &[f32]| {
        let highest = scores[best(scores)];
        of_exact.0.push(highest - scores[exact[at]]);
        of_rounded.0.push(highest - scores[rounded[at]]);
    };
    Reference::new(&file, 2).expect("known").scores(&tokens, judge).expect("computes");
    of_exact.tell(&format!("{name} at full precision"));
    of_rounded.tell(&format!("{name} as it is"));
    assert_eq!(of_exact.0.len(), positions);
    assert!(of_exact.beyond().is_empty(), "{name}: positions and gaps: {:?}", of_exact.beyond());
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
