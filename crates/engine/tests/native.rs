//! The wrapper around llama.cpp against llama.cpp itself, on a real model.
//!
//! Needs `--features llama_cpp` and `RBEES_TEST_MODELS`.
#![cfg(feature = "llama_cpp")]

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use engine::{Backend, EngineError, LoadOptions, Row};

fn model(name: &str) -> PathBuf {
    let folder =
        std::env::var_os("RBEES_TEST_MODELS").expect("RBEES_TEST_MODELS names a folder with the models");
    PathBuf::from(folder).join(name)
}

fn options() -> LoadOptions {
    LoadOptions { backend: Backend::Cpu, gpus: Vec::new(), slots: 2, context: Some(512), threads: Some(1) }
}

fn open(name: &str, options: &LoadOptions) -> Result<Box<dyn engine::Engine>, EngineError> {
    engine::open(&model(name).display().to_string(), options, Box::new(|_| true))
}

#[test]
fn real_model_headers_agree_with_the_engine() {
    for (name, architecture, tokenizer, template, context) in [
        ("smollm2-135m-instruct-q4_1.gguf", "llama", "gpt2", true, 8192),
        ("gemma-3-270m-q4_k_m.gguf", "gemma3", "llama", false, 32768),
    ] {
        let header = engine::loader::read_header(&model(name)).expect("sound");
        assert_eq!((header.architecture(), header.tokenizer()), (architecture, Some(tokenizer)), "{name}");
        assert_eq!(
            (header.has_chat_template(), header.context_length()),
            (template, Some(context)),
            "{name}"
        );
        assert!(header.kv_bytes_per_token(2).is_some_and(|bytes| bytes > 1000));
        let engine = open(name, &options()).expect("loads");
        let info = engine.info();
        assert_eq!((info.architecture.as_str(), info.chat_template.is_some()), (architecture, template));
        assert_eq!(info.quantization, header.quantization());
        let cache = header.kv_bytes_per_token(2).unwrap_or(0) * 2 * 512;
        assert!(info.ram_bytes >= header.tensor_bytes() + cache, "{name}: {} bytes", info.ram_bytes);
        assert!(info.devices.len() == 1 && info.devices[0].starts_with("CPU"), "{:?}", info.devices);
        assert!(!info.end_tokens.is_empty() && !info.control_texts.is_empty());
    }
}

#[test]
fn real_model_tokens_and_texts_survive() {
    let engine = open("smollm2-135m-instruct-q4_1.gguf", &options()).expect("loads");
    let tokenizer = engine.tokenizer();
    for text in ["The capital of France is", " caf\u{e9} \u{1f41d}\n\n  x", "<|im_end|>"] {
        let mut bytes = Vec::new();
        for token in tokenizer.tokenize(text, false).expect("any text") {
            tokenizer.piece(token, &mut bytes);
        }
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }
    assert_eq!(tokenizer.tokenize("<|im_end|>", true).map(|tokens| tokens.len()), Ok(1));
    let mut none = Vec::new();
    tokenizer.piece(u32::MAX, &mut none);
    assert!(none.is_empty());
}

#[test]
fn real_model_sequences_do_not_touch_each_other_and_begin_again() {
    let mut engine = open("smollm2-135m-instruct-q4_1.gguf", &options()).expect("loads");
    let go = AtomicBool::new(false);
    let prompt = engine.tokenizer().tokenize("The capital of France is", true).expect("any text");
    let rows = |seq: u32| -> Vec<Row> {
        (0..)
            .zip(&prompt)
            .map(|(pos, token)| Row { seq, pos, token: *token, logits: pos as usize + 1 == prompt.len() })
            .collect()
    };
    engine.step(&rows(0), &go).expect("steps");
    let first = engine.logits(prompt.len() - 1).to_vec();
    assert_eq!(first.len(), engine.info().vocab as usize);
    assert!(engine.logits(0).is_empty(), "only rows that asked have scores");
    engine.step(&rows(1), &go).expect("beside it");
    engine.seq_remove(0, 0).expect("whole");
    engine.step(&rows(0), &go).expect("again");
    let again = engine.logits(prompt.len() - 1).to_vec();
    let largest = first.iter().zip(&again).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < 0.05, "scores differ by {largest}");
}

#[test]
fn real_model_options_that_cannot_be_had_are_refused() {
    let name = "smollm2-135m-instruct-q4_1.gguf";
    let wide = LoadOptions { context: Some(100_000), ..options() };
    assert!(matches!(open(name, &wide).map(drop), Err(EngineError::InvalidOption { field: "context", .. })));
    for backend in [Backend::Cuda, Backend::Vulkan].into_iter().filter(|backend| !backend.is_built()) {
        let other = LoadOptions { backend, ..options() };
        assert_eq!(open(name, &other).map(drop), Err(EngineError::BackendNotBuilt(backend)));
    }
    let cut = std::fs::read(model(name)).expect("readable");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("half.gguf");
    std::fs::write(&path, &cut[..cut.len() / 2]).expect("written");
    let half = engine::open(&path.display().to_string(), &options(), Box::new(|_| true)).map(drop);
    let Err(EngineError::CorruptModel(problem)) = half else { panic!("{half:?}") };
    assert_eq!(problem.reason, gguf::Reason::PastEnd);
}
