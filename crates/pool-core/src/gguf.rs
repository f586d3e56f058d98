//! The header of a GGUF file: what a model is, without its weights.
//!
//! Bytes from the file's start go in, facts come out. Every count and length of the file is
//! checked against a limit before it is believed, and the tensors against the file's length.

mod cursor;
mod tensor;

use std::collections::BTreeMap;

use api_types::{ErrorCode, ErrorDetail};

use cursor::Cursor;

/// The most bytes a header may take; the vocabulary is what fills it.
pub const MAX_HEADER_BYTES: usize = 48 << 20;

const MAX_PAIRS: u64 = 65_536;
const MAX_TENSORS: u64 = 262_144;
const MAX_KEY_BYTES: u64 = 65_535;
const MAX_KEPT_TEXT: usize = 256;
const MAX_LAYERS: u64 = 10_000;
const DEFAULT_ALIGNMENT: u64 = 32;

/// What a GGUF header says about a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// For example `llama`.
    pub architecture: String,
    /// The name in the file.
    pub name: Option<String>,
    /// Layers.
    pub layers: u32,
    /// Attention heads of the first layer.
    pub heads: u32,
    /// KV heads of all layers together; layers may differ.
    pub kv_heads_total: u64,
    /// Values of a key, per head.
    pub key_length: u32,
    /// Values of a value, per head.
    pub value_length: u32,
    /// Width of a layer.
    pub embedding: u32,
    /// Width of the feed-forward part of a layer.
    pub feed_forward: u32,
    /// Tokens of the vocabulary.
    pub vocabulary: u64,
    /// Tokens of context it was trained for.
    pub context_length: Option<u32>,
    /// The file's quantisation, for example `Q4_1`.
    pub quantization: Option<String>,
    /// The tokenizer's kind, for example `gpt2`.
    pub tokenizer: Option<String>,
    /// Tensors in this file.
    pub tensors: u64,
    /// Bytes before the tensors' data.
    pub data_offset: u64,
}

/// Why a header cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The bytes given end inside the header.
    NeedMore,
    /// The file is damaged.
    Corrupt {
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The file may be fine, but is not of a kind that is read here.
    Unsupported {
        /// What kind it is.
        reason: String,
    },
}

impl Problem {
    /// The error of this problem for the file at `path`.
    pub fn into_error(self, path: &str) -> ErrorDetail {
        match self {
            Self::NeedMore => corrupt(path, 0, "its header is longer than a header may be"),
            Self::Corrupt { offset, reason } => corrupt(path, offset, &reason),
            Self::Unsupported { reason } => {
                ErrorDetail::new(ErrorCode::UnsupportedModel, format!("{path} cannot be used: {reason}"))
            }
        }
    }
}

fn corrupt(path: &str, offset: u64, reason: &str) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::CorruptModel, format!("{path} is damaged at byte {offset}: {reason}"))
        .with_details(serde_json::json!({ "offset": offset, "reason": reason }))
        .with_hint("fetch it again: rbees-pool models download ID")
}

/// Reads the header from the first bytes of a file of `file_bytes` bytes.
///
/// # Errors
/// [`Problem::NeedMore`] when `bytes` end inside the header although the file goes on; the caller
/// comes back with more, up to [`MAX_HEADER_BYTES`].
pub fn read_header(bytes: &[u8], file_bytes: u64) -> Result<Header, Problem> {
    let mut cursor = Cursor::new(bytes, file_bytes);
    let (tensors, pairs) = read_preamble(&mut cursor)?;
    let values = read_pairs(&mut cursor, pairs)?;
    let alignment = values.number("general.alignment").unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(cursor.corrupt("the alignment is no power of two up to 1 MiB"));
    }
    let infos = tensor::read_infos(&mut cursor, tensors)?;
    let data_offset = cursor.offset().next_multiple_of(alignment);
    tensor::check_extents(&infos, data_offset, alignment, file_bytes)?;
    values.header(tensors, data_offset)
}

fn read_preamble(cursor: &mut Cursor<'_>) -> Result<(u64, u64), Problem> {
    if cursor.take(4)? != b"GGUF" {
        return Err(Problem::Corrupt { offset: 0, reason: "it does not start with GGUF".to_owned() });
    }
    match cursor.u32()? {
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => {
            return Err(Problem::Unsupported { reason: "it is big-endian".to_owned() });
        }
        version => {
            return Err(Problem::Unsupported { reason: format!("GGUF version {version}; 2 and 3 are read") });
        }
    }
    let tensors = cursor.count(MAX_TENSORS, "tensors")?;
    let pairs = cursor.count(MAX_PAIRS, "metadata entries")?;
    Ok((tensors, pairs))
}

/// What is kept of a metadata value.
enum Value {
    Number(u64),
    Text(String),
    /// Length of an array, and its sum and first number where it holds numbers.
    Array {
        len: u64,
        first: u64,
        sum: u64,
    },
}

struct Values(BTreeMap<String, Value>);

fn read_pairs(cursor: &mut Cursor<'_>, pairs: u64) -> Result<Values, Problem> {
    let mut values = BTreeMap::new();
    for _ in 0..pairs {
        let key = cursor.text(MAX_KEY_BYTES)?;
        let kind = cursor.u32()?;
        let value = read_value(cursor, kind, 0)?;
        if let (Some(value), true) = (value, key.len() <= MAX_KEPT_TEXT) {
            values.insert(String::from_utf8_lossy(key).into_owned(), value);
        }
    }
    Ok(Values(values))
}

const KIND_TEXT: u32 = 8;
const KIND_ARRAY: u32 = 9;

fn read_value(cursor: &mut Cursor<'_>, kind: u32, depth: u32) -> Result<Option<Value>, Problem> {
    match kind {
        KIND_TEXT => {
            let text = cursor.text(u64::MAX)?;
            let kept = (text.len() <= MAX_KEPT_TEXT).then(|| String::from_utf8_lossy(text).into_owned());
            Ok(kept.map(Value::Text))
        }
        KIND_ARRAY => read_array(cursor, depth).map(Some),
        _ => Ok(cursor.number(kind)?.map(Value::Number)),
    }
}

fn read_array(cursor: &mut Cursor<'_>, depth: u32) -> Result<Value, Problem> {
    if depth >= 4 {
        return Err(cursor.corrupt("arrays are nested deeper than 4"));
    }
    let kind = cursor.u32()?;
    // Every element takes at least a byte, so the file's length bounds the count.
    let len = cursor.count(cursor.left_in_file(), "array elements")?;
    let (mut first, mut sum) = (0, 0u64);
    for at in 0..len {
        if let Some(Value::Number(number)) = read_value(cursor, kind, depth + 1)? {
            sum = sum.saturating_add(number);
            first = if at == 0 { number } else { first };
        }
    }
    Ok(Value::Array { len, first, sum })
}

impl Values {
    fn text(&self, key: &str) -> Option<String> {
        match self.0.get(key)? {
            Value::Text(text) => Some(text.clone()),
            Value::Number(_) | Value::Array { .. } => None,
        }
    }

    /// A number, or the first of an array of numbers.
    fn number(&self, key: &str) -> Option<u64> {
        match self.0.get(key)? {
            Value::Number(number) => Some(*number),
            Value::Array { first, .. } => Some(*first),
            Value::Text(_) => None,
        }
    }

    fn length(&self, key: &str) -> Option<u64> {
        match self.0.get(key)? {
            Value::Array { len, .. } => Some(*len),
            Value::Number(_) | Value::Text(_) => None,
        }
    }

    /// A number of each layer, summed over all of them.
    fn over_layers(&self, key: &str, layers: u64) -> Option<u64> {
        match self.0.get(key)? {
            Value::Number(number) => Some(number.saturating_mul(layers)),
            Value::Array { sum, .. } => Some(*sum),
            Value::Text(_) => None,
        }
    }

    fn header(&self, tensors: u64, data_offset: u64) -> Result<Header, Problem> {
        let architecture = self
            .text("general.architecture")
            .ok_or_else(|| Problem::Unsupported { reason: "it does not say its architecture".to_owned() })?;
        let of = |key: &str| format!("{architecture}.{key}");
        let small = |key: &str| self.number(&of(key)).and_then(|number| u32::try_from(number).ok());
        let layers = self.number(&of("block_count")).unwrap_or(0);
        if layers > MAX_LAYERS {
            return Err(Problem::Unsupported {
                reason: format!("{layers} layers; at most {MAX_LAYERS} are read"),
            });
        }
        let heads = small("attention.head_count").unwrap_or(0);
        let embedding = small("embedding_length").unwrap_or(0);
        let head = embedding.checked_div(heads).unwrap_or(0);
        let kv_heads_total = self
            .over_layers(&of("attention.head_count_kv"), layers)
            .unwrap_or_else(|| u64::from(heads).saturating_mul(layers));
        Ok(Header {
            name: self.text("general.name"),
            layers: u32::try_from(layers).unwrap_or(u32::MAX),
            heads,
            kv_heads_total,
            key_length: small("attention.key_length").unwrap_or(head),
            value_length: small("attention.value_length").unwrap_or(head),
            embedding,
            feed_forward: small("feed_forward_length").unwrap_or(0),
            vocabulary: self
                .length("tokenizer.ggml.tokens")
                .or_else(|| self.number(&of("vocab_size")))
                .unwrap_or(0),
            context_length: small("context_length"),
            quantization: self.number("general.file_type").and_then(file_type).map(str::to_owned),
            tokenizer: self.text("tokenizer.ggml.model"),
            tensors,
            data_offset,
            architecture,
        })
    }
}

/// The usual name of a `general.file_type`.
fn file_type(number: u64) -> Option<&'static str> {
    const NAMES: &[(u64, &str)] = &[
        (0, "F32"),
        (1, "F16"),
        (2, "Q4_0"),
        (3, "Q4_1"),
        (7, "Q8_0"),
        (8, "Q5_0"),
        (9, "Q5_1"),
        (10, "Q2_K"),
        (11, "Q3_K_S"),
        (12, "Q3_K_M"),
        (13, "Q3_K_L"),
        (14, "Q4_K_S"),
        (15, "Q4_K_M"),
        (16, "Q5_K_S"),
        (17, "Q5_K_M"),
        (18, "Q6_K"),
        (19, "IQ2_XXS"),
        (20, "IQ2_XS"),
        (21, "Q2_K_S"),
        (22, "IQ3_XS"),
        (23, "IQ3_XXS"),
        (24, "IQ1_S"),
        (25, "IQ4_NL"),
        (26, "IQ3_S"),
        (27, "IQ3_M"),
        (28, "IQ2_S"),
        (29, "IQ2_M"),
        (30, "IQ4_XS"),
        (31, "IQ1_M"),
        (32, "BF16"),
        (36, "TQ1_0"),
        (37, "TQ2_0"),
        (38, "MXFP4"),
    ];
    NAMES.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests;
