//! A GGUF file written back as the folder it could have been made from.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use half::{bf16, f16};
use serde_json::{Map, Value as Json, json};

use crate::reader::{Gguf, Value};

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    /// Single precision.
    F32,
    /// The upper half of single precision.
    Bf16,
    /// Half precision.
    F16,
}

/// How the folder is written.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Type of all weights.
    pub dtype: Dtype,
    /// Files the weights are spread over, from 1.
    pub shards: usize,
}

/// Writes `model` as a folder at `target`, which is made when missing.
///
/// # Errors
/// When the model is not of the Llama or Gemma 3 family, or the folder cannot be written.
pub fn write(model: &Gguf, target: &Path, options: Options) -> anyhow::Result<()> {
    std::fs::create_dir_all(target)?;
    let save = |name: &str, json: &Json| {
        std::fs::write(target.join(name), serde_json::to_vec(json)?).map_err(anyhow::Error::from)
    };
    save("config.json", &config(model)?)?;
    save("tokenizer.json", &tokenizer(model)?)?;
    save("tokenizer_config.json", &tokenizer_config(model))?;
    weights(model, target, options)
}

fn config(model: &Gguf) -> anyhow::Result<Json> {
    let epsilon = model.number("attention.layer_norm_rms_epsilon").context("no epsilon")?;
    let mut config = json!({
        "hidden_size": model.count("embedding_length")?,
        "intermediate_size": model.count("feed_forward_length")?,
        "max_position_embeddings": model.count("context_length")?,
        "num_attention_heads": model.count("attention.head_count")?,
        "num_hidden_layers": model.count("block_count")?,
        "num_key_value_heads": model.count("attention.head_count_kv")?,
        "rms_norm_eps": epsilon,
        "rope_theta": model.number("rope.freq_base").context("no base")?,
        "tie_word_embeddings": !model.tensors.contains_key("output.weight"),
        "vocab_size": model.texts("tokenizer.ggml.tokens").len(),
    });
    let special = match model.architecture() {
        "llama" => json!({ "architectures": ["LlamaForCausalLM"], "hidden_act": "silu" }),
        "gemma3" => json!({
            "architectures": ["Gemma3ForCausalLM"],
            "hidden_activation": "gelu_pytorch_tanh",
            "head_dim": model.count("attention.key_length")?,
            "query_pre_attn_scalar": model.count("attention.key_length")?,
            "sliding_window": model.count("attention.sliding_window")?,
            "rope_local_base_freq": 10_000.0,
        }),
        other => bail!("the architecture {other} is not written back here"),
    };
    if let (Json::Object(all), Json::Object(more)) = (&mut config, special) {
        all.extend(more);
    }
    Ok(config)
}

fn tokenizer(model: &Gguf) -> anyhow::Result<Json> {
    let tokens = model.texts("tokenizer.ggml.tokens");
    let kinds = model.numbers("tokenizer.ggml.token_type");
    let mut vocabulary = Map::new();
    let mut added = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(&kinds).enumerate() {
        if matches!(*kind as u32, 3 | 4) {
            added.push(json!({ "id": id, "content": token, "special": *kind == 3.0 }));
        }
        vocabulary.insert((*token).to_owned(), json!(id));
    }
    let (merges, steps) = match (model.text("tokenizer.ggml.model"), model.text("tokenizer.ggml.pre")) {
        (Some("gpt2"), Some("smollm")) => {
            let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": true });
            let digits = json!({ "type": "Digits", "individual_digits": true });
            let merges = model.texts("tokenizer.ggml.merges").into_iter().map(Json::from).collect();
            (merges, json!({ "pre_tokenizer": { "type": "Sequence", "pretokenizers": [digits, bytes] } }))
        }
        (Some("llama"), _) => {
            let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" });
            (merges_of_pieces(model, &tokens), json!({ "normalizer": replace }))
        }
        other => bail!("the tokenizer {other:?} is not written back here"),
    };
    let fallback = model.text("tokenizer.ggml.model") == Some("llama");
    let mut all = json!({
        "added_tokens": added,
        "model": { "type": "BPE", "byte_fallback": fallback, "vocab": vocabulary, "merges": merges },
    });
    if let (Json::Object(all), Json::Object(more)) = (&mut all, steps) {
        all.extend(more);
    }
    Ok(all)
}

/// Every way to make a piece of two others, the best piece first, as fast tokenizers are made from
/// SentencePiece models.
fn merges_of_pieces(model: &Gguf, tokens: &[&str]) -> Vec<Json> {
    let scores = model.numbers("tokenizer.ggml.scores");
    let by_text: BTreeMap<&str, f64> = tokens.iter().copied().zip(scores).collect();
    let mut merges = Vec::new();
    for (piece, score) in &by_text {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if by_text.contains_key(left) && by_text.contains_key(right) {
                merges.push((*score, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    merges.into_iter().map(|(_, left, right)| json!([left, right])).collect()
}

fn tokenizer_config(model: &Gguf) -> Json {
    let tokens = model.texts("tokenizer.ggml.tokens");
    let mut config = Map::new();
    for (task, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        if let Some(Value::Int(id)) = model.get(&format!("tokenizer.ggml.{key}_token_id")) {
            config.insert(format!("{task}_token"), json!(tokens[*id as usize]));
        }
    }
    for flag in ["add_bos_token", "add_eos_token"] {
        if let Some(Value::Bool(truth)) = model.get(&format!("tokenizer.ggml.{flag}")) {
            config.insert(flag.to_owned(), json!(truth));
        }
    }
    if let Some(template) = model.text("tokenizer.chat_template") {
        config.insert("chat_template".to_owned(), json!(template));
    }
    Json::Object(config)
}

/// A tensor as the folder calls it.
struct Weights {
    name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn weights(model: &Gguf, target: &Path, options: Options) -> anyhow::Result<()> {
    let names: Vec<&String> = model.tensors.keys().collect();
    let shards = options.shards.clamp(1, names.len());
    let mut map = Map::new();
    for (number, part) in names.chunks(names.len().div_ceil(shards)).enumerate() {
        let file = if shards == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{:05}-of-{shards:05}.safetensors", number + 1)
        };
        let tensors = part
            .iter()
            .map(|name| hugging(model, name, options.dtype))
            .collect::<anyhow::Result<Vec<_>>>()?;
        map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(file))));
        shard(&target.join(file), &tensors, options.dtype)?;
    }
    if shards > 1 {
        let index = json!({ "metadata": {}, "weight_map": map });
        std::fs::write(target.join("model.safetensors.index.json"), serde_json::to_vec(&index)?)?;
    }
    Ok(())
}

fn shard(path: &Path, tensors: &[Weights], dtype: Dtype) -> anyhow::Result<()> {
    let dtype = match dtype {
        Dtype::F32 => "F32",
        Dtype::Bf16 => "BF16",
        Dtype::F16 => "F16",
    };
    let mut header = Map::new();
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.bytes.len();
        header.insert(
            tensor.name.clone(),
            json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [at, end] }),
        );
        at = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for tensor in tensors {
        file.write_all(&tensor.bytes)?;
    }
    Ok(file.flush()?)
}

fn hugging(model: &Gguf, name: &str, dtype: Dtype) -> anyhow::Result<Weights> {
    let mut numbers = model.weights(name)?;
    let shape: Vec<usize> = model.tensors[name].shape.iter().rev().copied().collect();
    let is_gemma = model.architecture() == "gemma3";
    if is_gemma && name.ends_with("norm.weight") {
        numbers.iter_mut().for_each(|number| *number -= 1.0);
    }
    for (part, heads) in
        [("attn_q.weight", "attention.head_count"), ("attn_k.weight", "attention.head_count_kv")]
    {
        if !is_gemma && name.ends_with(part) {
            numbers = unpaired(&numbers, model.count(heads)?, shape[1]);
        }
    }
    let bytes = match dtype {
        Dtype::F32 => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        Dtype::Bf16 => numbers.iter().flat_map(|number| bf16::from_f32(*number).to_le_bytes()).collect(),
        Dtype::F16 => numbers.iter().flat_map(|number| f16::from_f32(*number).to_le_bytes()).collect(),
    };
    Ok(Weights { name: hugging_name(name, is_gemma)?, shape, bytes })
}

/// Pairs of rows become the two halves of their head again.
fn unpaired(numbers: &[f32], heads: usize, row: usize) -> Vec<f32> {
    let head = numbers.len() / heads;
    let half = |numbers: &[f32], odd: usize| -> Vec<f32> {
        numbers.chunks(row).skip(odd).step_by(2).flatten().copied().collect()
    };
    numbers.chunks(head).flat_map(|head| [half(head, 0), half(head, 1)].concat()).collect()
}

fn hugging_name(name: &str, is_gemma: bool) -> anyhow::Result<String> {
    let outer = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(outer) = outer {
        return Ok(outer.to_owned());
    }
    let inner = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let (layer, part) = inner.with_context(|| format!("{name} has no name there"))?;
    let part = match part {
        "attn_norm.weight" => "input_layernorm.weight",
        "attn_q.weight" => "self_attn.q_proj.weight",
        "attn_k.weight" => "self_attn.k_proj.weight",
        "attn_v.weight" => "self_attn.v_proj.weight",
        "attn_output.weight" => "self_attn.o_proj.weight",
        "attn_q_norm.weight" => "self_attn.q_norm.weight",
        "attn_k_norm.weight" => "self_attn.k_norm.weight",
        "ffn_norm.weight" if is_gemma => "pre_feedforward_layernorm.weight",
        "ffn_norm.weight" | "post_attention_norm.weight" => "post_attention_layernorm.weight",
        "post_ffw_norm.weight" => "post_feedforward_layernorm.weight",
        "ffn_gate.weight" => "mlp.gate_proj.weight",
        "ffn_up.weight" => "mlp.up_proj.weight",
        "ffn_down.weight" => "mlp.down_proj.weight",
        other => bail!("{other} has no name there"),
    };
    Ok(format!("model.layers.{layer}.{part}"))
}
