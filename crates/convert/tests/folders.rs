//! Small folders of every family, sound, contradictory, damaged and hostile.

use std::path::Path;

use convert::{ConvertError, cached, convert};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// A model of one layer in memory.
#[derive(Clone)]
struct Model {
    config: Value,
    tokenizer: Value,
    tensors: Vec<(String, Vec<u64>)>,
    dtype: &'static str,
}

const ROWS: u64 = 8;

fn tokenizer() -> Value {
    json!({
        "added_tokens": [{ "id": 6, "content": "<s>", "special": true }],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
        "model": {
            "type": "BPE",
            "vocab": { "a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "d": 5 },
            "merges": ["a b", ["ab", "c"]],
        },
    })
}

impl Model {
    fn new(class: &str, parts: &[(&str, &[u64])]) -> Self {
        let is_gemma = class.starts_with("Gemma");
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![ROWS, 8]),
            ("model.norm.weight".to_owned(), vec![8]),
        ];
        let layer = parts.iter().map(|(name, shape)| (format!("model.layers.0.{name}"), shape.to_vec()));
        tensors.extend(layer);
        let config = json!({
            "architectures": [class],
            "hidden_size": 8, "intermediate_size": 16, "max_position_embeddings": 64,
            "num_attention_heads": 2, "num_hidden_layers": 1, "num_key_value_heads": 1,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
            "head_dim": 4, "sliding_window": if is_gemma { json!(16) } else { Value::Null },
            "hidden_act": if is_gemma { "gelu_pytorch_tanh" } else { "silu" },
        });
        Self { config, tokenizer: tokenizer(), tensors, dtype: "BF16" }
    }

    fn llama() -> Self {
        Self::new("LlamaForCausalLM", &[&ATTENTION[..], &MLP].concat())
    }

    fn header(&self) -> Map<String, Value> {
        let size = if self.dtype == "F32" { 4 } else { 2 };
        let mut at = 0;
        let mut header = Map::new();
        for (name, shape) in &self.tensors {
            let end = at + shape.iter().product::<u64>() * size;
            header.insert(
                name.clone(),
                json!({ "dtype": self.dtype, "shape": shape, "data_offsets": [at, end] }),
            );
            at = end;
        }
        header
    }

    fn file(&self) -> Vec<u8> {
        let header = serde_json::to_vec(&self.header()).expect("JSON");
        let size = if self.dtype == "F32" { 4 } else { 2 };
        let data: u64 = self.tensors.iter().map(|(_, shape)| shape.iter().product::<u64>() * size).sum();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend((0..data).map(|at| (at % 61) as u8));
        file
    }

    fn save(&self, folder: &Path) {
        std::fs::write(folder.join("config.json"), self.config.to_string()).expect("written");
        std::fs::write(folder.join("tokenizer.json"), self.tokenizer.to_string()).expect("written");
        std::fs::write(folder.join("model.safetensors"), self.file()).expect("written");
    }

    fn convert(&self) -> Result<gguf::Header, ConvertError> {
        let place = tempfile::tempdir().expect("a folder");
        self.save(place.path());
        run(place.path())
    }
}

fn run(folder: &Path) -> Result<gguf::Header, ConvertError> {
    let target = folder.join("out.gguf");
    let result = convert(folder, &target, &mut |_| true);
    let left = std::fs::read_dir(folder).expect("readable").filter(|entry| {
        entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().contains(".partial"))
    });
    assert_eq!(left.count(), 0, "unfinished files are left");
    result?;
    let file = std::fs::File::open(&target).expect("there");
    let length = file.metadata().expect("readable").len();
    Ok(gguf::read(file, length).expect("a sound file"))
}

const ATTENTION: [(&str, &[u64]); 5] = [
    ("input_layernorm.weight", &[8]),
    ("self_attn.q_proj.weight", &[8, 8]),
    ("self_attn.k_proj.weight", &[4, 8]),
    ("self_attn.v_proj.weight", &[4, 8]),
    ("self_attn.o_proj.weight", &[8, 8]),
];
const MLP: [(&str, &[u64]); 4] = [
    ("post_attention_layernorm.weight", &[8]),
    ("mlp.gate_proj.weight", &[16, 8]),
    ("mlp.up_proj.weight", &[16, 8]),
    ("mlp.down_proj.weight", &[8, 16]),
];
const NORMS: [(&str, &[u64]); 2] = [("self_attn.q_norm.weight", &[4]), ("self_attn.k_norm.weight", &[4])];
const BIASES: [(&str, &[u64]); 3] =
    [("self_attn.q_proj.bias", &[8]), ("self_attn.k_proj.bias", &[4]), ("self_attn.v_proj.bias", &[4])];
const SANDWICH: [(&str, &[u64]); 2] =
    [("pre_feedforward_layernorm.weight", &[8]), ("post_feedforward_layernorm.weight", &[8])];
const FUSED: [(&str, &[u64]); 6] = [
    ("input_layernorm.weight", &[8]),
    ("self_attn.qkv_proj.weight", &[16, 8]),
    ("self_attn.o_proj.weight", &[8, 8]),
    ("post_attention_layernorm.weight", &[8]),
    ("mlp.gate_up_proj.weight", &[32, 8]),
    ("mlp.down_proj.weight", &[8, 16]),
];

#[test]
fn every_family_becomes_a_sound_file() {
    let common = [&ATTENTION[..], &MLP].concat();
    for (class, name, parts) in [
        ("LlamaForCausalLM", "llama", common.clone()),
        ("MistralForCausalLM", "llama", common.clone()),
        ("Qwen2ForCausalLM", "qwen2", [&common[..], &BIASES].concat()),
        ("Qwen3ForCausalLM", "qwen3", [&common[..], &NORMS].concat()),
        ("Phi3ForCausalLM", "phi3", FUSED.to_vec()),
        ("GemmaForCausalLM", "gemma", common.clone()),
        ("Gemma2ForCausalLM", "gemma2", [&common[..], &SANDWICH].concat()),
        ("Gemma3ForCausalLM", "gemma3", [&common[..], &NORMS, &SANDWICH].concat()),
    ] {
        let header = Model::new(class, &parts).convert().expect(class);
        assert_eq!(header.architecture(), name, "{class}");
        assert_eq!(header.quantization().as_deref(), Some("BF16"), "{class}");
        assert_eq!((header.vocabulary(), header.context_length()), (Some(ROWS), Some(64)), "{class}");
        let tensors: u64 = header.tensors.values().map(|totals| totals.tensors).sum();
        assert_eq!(tensors as usize, parts.len() + 2, "{class}");
    }
}

/// Each change of a sound folder is refused, and the message names the file and what is wrong.
#[test]
fn what_does_not_fit_is_refused_by_name() {
    type Change = fn(&mut Model);
    let cases: [(&str, &str, Change); 16] = [
        ("config.json", "GPTBigCodeForCausalLM", |m| {
            m.config["architectures"] = json!(["GPTBigCodeForCausalLM"])
        }),
        ("config.json", "architectures", |m| m.config["architectures"] = json!([])),
        ("config.json", "hidden_size", |m| m.config["hidden_size"] = json!(0)),
        ("config.json", "hidden_size", |m| m.config["hidden_size"] = json!("NaN")),
        ("config.json", "num_hidden_layers", |m| m.config["num_hidden_layers"] = json!(1e300)),
        ("config.json", "num_key_value_heads", |m| m.config["num_key_value_heads"] = json!(3)),
        ("config.json", "rms_norm_eps", |m| m.config["rms_norm_eps"] = json!(-1)),
        ("config.json", "dynamic", |m| m.config["rope_scaling"] = json!({ "rope_type": "dynamic" })),
        ("config.json", "relu", |m| m.config["hidden_act"] = json!("relu")),
        ("config.json", "quantised", |m| m.config["quantization_config"] = json!({})),
        ("model.safetensors", "k_proj.weight\" is missing", |m| {
            m.tensors.retain(|(name, _)| !name.contains("k_proj"))
        }),
        ("model.safetensors", "has the shape", |m| m.config["intermediate_size"] = json!(17)),
        ("model.safetensors", "no place", |m| m.tensors.push(("model.layers.1.extra".to_owned(), vec![2]))),
        ("model.safetensors", "\"F7\"", |m| m.dtype = "F7"),
        ("tokenizer.json", "\"Unigram\"", |m| m.tokenizer["model"]["type"] = json!("Unigram")),
        ("tokenizer.json", "both number 1", |m| m.tokenizer["model"]["vocab"]["a"] = json!(1)),
    ];
    for (file, what, change) in cases {
        let mut model = Model::llama();
        change(&mut model);
        let error = model.convert().expect_err(what).to_string();
        assert!(
            error.contains(file) && error.contains(what) && error.contains("allowed is"),
            "{what}: {error}"
        );
    }
}

#[test]
fn a_refused_architecture_is_told_what_is_allowed() {
    let mut model = Model::llama();
    model.config["architectures"] = json!(["MambaForCausalLM"]);
    let error = model.convert().expect_err("unknown").to_string();
    assert!(convert::SUPPORTED.iter().all(|class| error.contains(class)), "{error}");
}

#[test]
fn offsets_that_overlap_overflow_or_leave_the_file_are_refused() {
    for (offsets, shape, what) in [
        (json!([0, 16]), json!([8]), "share bytes"),
        (json!([u64::MAX - 15, u64::MAX]), json!([8]), "do not fit"),
        (json!([1u64 << 60, (1u64 << 60) + 16]), json!([8]), "past the end"),
        (json!([0, 0]), json!([u64::MAX, u64::MAX]), "do not fit"),
        (json!([16, 0]), json!([8]), "do not fit"),
        (json!([-1, 15]), json!([8]), "not what it must be"),
    ] {
        let model = Model::llama();
        let mut header = model.header();
        header["model.norm.weight"] = json!({ "dtype": "BF16", "shape": shape, "data_offsets": offsets });
        let place = tempfile::tempdir().expect("a folder");
        model.save(place.path());
        let header = serde_json::to_vec(&header).expect("JSON");
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(&header);
        file.extend(vec![0; 4096]);
        std::fs::write(place.path().join("model.safetensors"), file).expect("written");
        let error = run(place.path()).expect_err(what).to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
}

#[test]
fn a_name_that_appears_twice_is_refused() {
    let place = tempfile::tempdir().expect("a folder");
    Model::llama().save(place.path());
    let entry = r#"{"dtype":"F16","shape":[0],"data_offsets":[0,0]}"#;
    let header = format!(r#"{{"a":{entry},"a":{entry}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    std::fs::write(place.path().join("model.safetensors"), file).expect("written");
    assert!(run(place.path()).expect_err("twice").to_string().contains("appears twice"));
}

#[test]
fn an_index_cannot_leave_the_folder_or_lie() {
    for (map, what) in [
        (json!({ "model.norm.weight": "../model.safetensors" }), "names the file"),
        (json!({ "model.norm.weight": "/etc/passwd" }), "names the file"),
        (json!({ "model.norm.weight": "..safetensors/../x.safetensors" }), "names the file"),
        (json!({ "model.norm.weight": "gone.safetensors" }), "is not there"),
        (json!({ "other": "part.safetensors" }), "where it is not"),
        (json!({ "model.norm.weight": "part.safetensors" }), "it lacks"),
        (json!({}), "names 0 files"),
        (json!([]), "cannot be understood"),
    ] {
        let place = tempfile::tempdir().expect("a folder");
        Model::llama().save(place.path());
        let from = place.path().join("model.safetensors");
        std::fs::rename(from, place.path().join("part.safetensors")).expect("moved");
        let index = json!({ "weight_map": map }).to_string();
        std::fs::write(place.path().join("model.safetensors.index.json"), index).expect("written");
        let error = run(place.path()).expect_err(what).to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
}

#[test]
fn one_content_is_converted_once_and_a_changed_one_again() {
    let (place, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mut model = Model::llama();
    model.save(place.path());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (folder, cache) = (place.path().to_owned(), cache.path().to_owned());
            std::thread::spawn(move || cached(&folder, &cache, &mut |_| true).expect("converted"))
        })
        .collect();
    let made: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("ended")).collect();
    assert_eq!(made.iter().filter(|cached| cached.is_new).count(), 1);
    assert!(made.iter().all(|cached| cached.path == made[0].path));
    model.config["rope_theta"] = json!(20000.0);
    model.save(place.path());
    let again = cached(place.path(), cache.path(), &mut |_| true).expect("converted");
    assert!(again.is_new && again.path != made[0].path);
    let stopped = cached(place.path(), &cache.path().join("other"), &mut |share| share < 0.5);
    assert_eq!(stopped, Err(ConvertError::Abandoned));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a few bytes of a folder become, the answer is a sound file or an error.
    #[test]
    fn damage_never_panics(
        which in 0..3usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let place = tempfile::tempdir().expect("a folder");
        Model::llama().save(place.path());
        let path = place.path().join(["config.json", "tokenizer.json", "model.safetensors"][which]);
        let mut bytes = std::fs::read(&path).expect("readable");
        for (at, byte) in edits {
            // The header, where the meaning is, rather than the weights.
            let at = at.index(bytes.len().min(1024));
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&path, bytes).expect("written");
        let _ = run(place.path());
    }

    #[test]
    fn random_headers_never_panic(header in prop::collection::vec(any::<u8>(), 0..200), claimed in any::<u64>()) {
        let place = tempfile::tempdir().expect("a folder");
        Model::llama().save(place.path());
        for length in [claimed, header.len() as u64, u64::MAX] {
            let mut file = length.to_le_bytes().to_vec();
            file.extend(&header);
            std::fs::write(place.path().join("model.safetensors"), file).expect("written");
            prop_assert!(run(place.path()).is_err());
        }
    }
}
