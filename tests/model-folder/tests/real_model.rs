//! Both ways into the engine: a GGUF file with plain weights, and the folder made from it.
//!
//! Needs the native engine and `RBEES_TEST_MODELS`.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use engine::{Backend, Engine, LoadOptions, Row};
use model_folder::{Dtype, Gguf, Options};

const MODELS: [&str; 2] = ["smollm2-135m-instruct-q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"];

const TEXTS: [&str; 14] = [
    "The capital of France is",
    " leading and trailing ",
    "   many    spaces\t\ttabs\r\n\r\nlines\n\n\n",
    "12345 1,234.5e-10 0x1F 2026-12-01",
    "don't we'll I'M THEY'RE l'\u{e9}t\u{e9} na\u{ef}ve e\u{301}",
    "\u{1f41d}\u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{1f1eb}\u{1f1f7} \u{0}\u{1}\u{7f}",
    "\u{4f60}\u{597d}\u{ff0c}\u{4e16}\u{754c} \u{3053}\u{3093}\u{306b}\u{3061}\u{306f} \u{d55c}\u{ad6d}\u{c5b4}",
    "\u{645}\u{631}\u{62d}\u{628}\u{627} \u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947}",
    "fn main() { let x: Vec<u8> = vec![0; 32]; /* \u{2581} */ }",
    "<|im_start|>user\nhi<|im_end|>\n<bos><start_of_turn>model\n<end_of_turn><eos>",
    "<0x0A> [multimodal] <unused7> <|im_start| >",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u{10ffff}\u{fffd}\u{feff}\u{a0}\u{2003}\u{ad}",
    "https://example.org/a?b=c&d=%20#e \\n \"quoted\" 'single' `code`",
];

fn model(name: &str) -> PathBuf {
    let folder =
        std::env::var_os("RBEES_TEST_MODELS").expect("RBEES_TEST_MODELS names a folder with the models");
    PathBuf::from(folder).join(name)
}

fn open(path: &Path, cache: &Path) -> Box<dyn Engine> {
    let options = LoadOptions {
        backend: Backend::Cpu,
        gpus: Vec::new(),
        slots: 1,
        context: Some(512),
        threads: Some(2),
    };
    engine::loader::open_with_cache(&path.display().to_string(), &options, cache, Box::new(|_| true))
        .expect("loads")
}

fn logits(engine: &mut dyn Engine, text: &str) -> Vec<Vec<f32>> {
    let tokens = engine.tokenizer().tokenize(text, true).expect("any text");
    let row = |(pos, token): (u32, &u32)| Row { seq: 0, pos, token: *token, logits: true };
    let rows: Vec<Row> = (0..).zip(&tokens).map(row).collect();
    engine.step(&rows, &AtomicBool::new(false)).expect("steps");
    (0..rows.len()).map(|row| engine.logits(row).to_vec()).collect()
}

#[test]
fn a_converted_folder_gives_the_same_tokens_and_scores_as_its_source() {
    for (name, shards) in MODELS.into_iter().zip([1, 3]) {
        let place = tempfile::tempdir().expect("a folder");
        let source = Gguf::open(&model(name)).expect("reads");
        let (plain, folder) = (place.path().join("plain.gguf"), place.path().join("folder"));
        model_folder::plain::write(&source, &plain).expect("written");
        let options = Options { dtype: Dtype::F32, shards };
        model_folder::write(&source, &folder, options).expect("written");
        let mut left = open(&plain, place.path());
        let mut right = open(&folder, &place.path().join("cache"));
        let (a, b) = (left.info().clone(), right.info().clone());
        assert_eq!(
            (a.vocab, a.bos, a.add_bos, &a.end_tokens),
            (b.vocab, b.bos, b.add_bos, &b.end_tokens),
            "{name}"
        );
        assert_eq!((a.chat_template, a.control_texts), (b.chat_template, b.control_texts), "{name}");
        for text in TEXTS {
            for special in [false, true] {
                let of = |engine: &dyn Engine| engine.tokenizer().tokenize(text, special).expect("any text");
                assert_eq!(of(left.as_ref()), of(right.as_ref()), "{name}: {text:?}");
            }
        }
        same_weights(&plain, &place.path().join("cache"));
        let text = "The quick brown fox jumps over the lazy dog. In 1969, two people walked on the moon";
        assert!(logits(left.as_mut(), text) == logits(right.as_mut(), text), "{name}: scores differ");
    }
}

/// Every weight of the converted file has the bits of its source.
fn same_weights(plain: &Path, cache: &Path) {
    let files = std::fs::read_dir(cache).expect("a cache").map(|entry| entry.expect("readable").path());
    let converted: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == "gguf")).collect();
    assert_eq!(converted.len(), 1);
    let (plain, converted) = (Gguf::open(plain).expect("reads"), Gguf::open(&converted[0]).expect("reads"));
    assert!(plain.tensors.keys().eq(converted.tensors.keys()));
    for name in plain.tensors.keys() {
        let bits = |model: &Gguf| -> Vec<u32> {
            model.weights(name).expect("plain").into_iter().map(f32::to_bits).collect()
        };
        assert!(bits(&plain) == bits(&converted), "{name} differs");
    }
}

#[test]
fn a_folder_of_two_bytes_per_weight_runs_and_is_converted_once() {
    for (dtype, called) in [(Dtype::Bf16, "BF16"), (Dtype::F16, "F16")] {
        let place = tempfile::tempdir().expect("a folder");
        let source = Gguf::open(&model(MODELS[0])).expect("reads");
        let folder = place.path().join("folder");
        model_folder::write(&source, &folder, Options { dtype, shards: 2 }).expect("written");
        let cache = place.path().join("cache");
        let engine = open(&folder, &cache);
        assert_eq!(engine.info().quantization.as_deref(), Some(called));
        let first = convert::cached(&folder, &cache, &mut |_| true).expect("there");
        assert!(!first.is_new);
    }
}
