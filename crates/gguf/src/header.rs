//! What a header says about its model.

use std::collections::BTreeMap;

use crate::types;

/// A metadata value, as far as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned whole number.
    Uint(u64),
    /// Any signed whole number.
    Int(i64),
    /// Either floating-point type.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text up to 1 MiB.
    Text(String),
    /// Whole numbers, up to 4,096 of them (per-layer counts).
    Uints(Vec<u64>),
    /// An array or text that is not kept, by its number of elements or bytes.
    Skipped(u64),
}

/// How much of the file is of one tensor type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TensorTotals {
    /// Tensors of the type.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A checked header.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// What tensor offsets are multiples of, in bytes.
    pub alignment: u64,
    /// Where tensor data begins, in bytes from the start of the file.
    pub data_offset: u64,
    /// Length of the file, in bytes.
    pub file_bytes: u64,
    /// All keys.
    pub metadata: BTreeMap<String, Value>,
    /// By tensor type, for example `Q4_1`.
    pub tensors: BTreeMap<&'static str, TensorTotals>,
}

impl Header {
    /// Text of a key.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number of at least 0.
    pub fn uint(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Uint(number) => Some(*number),
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// For example `llama`; every header that [`super::read`] accepts has one.
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// The model's own name.
    pub fn name(&self) -> Option<&str> {
        self.text("general.name")
    }

    /// Kind of tokenizer, for example `gpt2`.
    pub fn tokenizer(&self) -> Option<&str> {
        self.text("tokenizer.ggml.model")
    }

    /// Whether messages can be turned into a prompt.
    pub fn has_chat_template(&self) -> bool {
        self.metadata.contains_key("tokenizer.chat_template")
    }

    /// Tokens of context the model was trained for.
    pub fn context_length(&self) -> Option<u32> {
        self.of_architecture("context_length").and_then(|tokens| u32::try_from(tokens).ok())
    }

    /// Layers.
    pub fn block_count(&self) -> Option<u64> {
        self.of_architecture("block_count")
    }

    /// Size of a hidden state.
    pub fn embedding_length(&self) -> Option<u64> {
        self.of_architecture("embedding_length")
    }

    /// Width of the feed-forward part of a layer.
    pub fn feed_forward_length(&self) -> Option<u64> {
        self.of_architecture("feed_forward_length")
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary(&self) -> Option<u64> {
        match self.metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Skipped(tokens)) => Some(*tokens),
            _ => self.of_architecture("vocab_size"),
        }
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|totals| totals.bytes).sum()
    }

    /// For example `Q4_K_M`: what the file says, else the type most of its bytes have.
    pub fn quantization(&self) -> Option<String> {
        let said = self.uint("general.file_type").and_then(types::file_type);
        let most = || self.tensors.iter().max_by_key(|(_, totals)| totals.bytes).map(|(name, _)| *name);
        said.or_else(most).map(str::to_owned)
    }

    /// Bytes of KV cache per token of context, with elements of `element_bytes` (2 for F16).
    /// `None` when the header does not say enough. An upper bound for models with sliding windows.
    pub fn kv_bytes_per_token(&self, element_bytes: u64) -> Option<u64> {
        let layers = self.block_count()?;
        let heads = self.of_architecture("attention.head_count");
        let head_size = |key: &str| {
            self.of_architecture(key).or_else(|| self.embedding_length()?.checked_div(heads?.max(1)))
        };
        let key = head_size("attention.key_length")?;
        let value = head_size("attention.value_length")?;
        self.kv_heads(layers)?.checked_mul(key.checked_add(value)?)?.checked_mul(element_bytes)
    }

    /// KV heads of all layers together.
    fn kv_heads(&self, layers: u64) -> Option<u64> {
        let key = format!("{}.attention.head_count_kv", self.architecture());
        match self.metadata.get(&key) {
            Some(Value::Uints(per_layer)) => {
                per_layer.iter().try_fold(0u64, |sum, heads| sum.checked_add(*heads))
            }
            Some(_) => self.uint(&key)?.checked_mul(layers),
            None => self.of_architecture("attention.head_count")?.checked_mul(layers),
        }
    }

    fn of_architecture(&self, key: &str) -> Option<u64> {
        self.uint(&format!("{}.{key}", self.architecture()))
    }
}
