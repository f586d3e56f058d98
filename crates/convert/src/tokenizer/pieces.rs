//! Vocabularies of SentencePiece, told by a fast tokenizer as merges over characters.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::ConvertError;
use crate::tokenizer::special::Special;
use crate::tokenizer::{FILE, File, Pairs, Table, TokenKind, Vocabulary, wrong};

/// What stands for a space.
const SPACE: &str = "\u{2581}";
/// Of pieces that no merge makes.
const NEVER: f32 = -1e9;

/// Pieces are merged by their score, so that the first merge of a piece says how good it is.
pub(super) fn read(
    file: &File,
    pairs: &Pairs,
    mut table: Table,
    special: Special,
) -> Result<Vocabulary, ConvertError> {
    if !pairs.byte_fallback || !says(&file.normalizer, &file.pre_tokenizer) {
        let allowed = "ByteLevel, or SentencePiece with byte_fallback and spaces as U+2581";
        return Err(ConvertError::unsupported(FILE, "this way of cutting text", allowed));
    }
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    for (rank, merge) in pairs.merges.iter().enumerate() {
        let Some((left, right)) = merge.halves() else {
            return Err(wrong("a merge is not of two parts", "two texts"));
        };
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |text: &String| ranks.get(text).map_or(NEVER, |rank| -(*rank as f32));
    let scores = table.tokens.iter().map(score).collect();
    mark(&mut table, pairs.unk_token.as_deref());
    Ok(Vocabulary {
        model: "llama",
        pre: "default",
        tokens: table.tokens,
        kinds: table.kinds,
        scores: Some(scores),
        merges: None,
        space_prefix: begins_with_space(&file.normalizer, &file.pre_tokenizer),
        special,
    })
}

fn mark(table: &mut Table, unknown: Option<&str>) {
    for (text, kind) in table.tokens.iter().zip(&mut table.kinds) {
        if *kind != TokenKind::Normal {
            continue;
        }
        if is_byte(text) {
            *kind = TokenKind::Byte;
        } else if Some(text.as_str()) == unknown {
            *kind = TokenKind::Unknown;
        }
    }
}

/// For example `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// A step, and those within it.
fn steps(step: &Value) -> Vec<&Value> {
    let inner = step.get("normalizers").or(step.get("pretokenizers")).and_then(Value::as_array);
    std::iter::once(step).chain(inner.into_iter().flatten()).collect()
}

/// Whether spaces become U+2581 somewhere.
fn says(normalizer: &Value, pre_tokenizer: &Value) -> bool {
    let replaces =
        |step: &&Value| kind(step) == "Replace" && step.get("content").and_then(Value::as_str) == Some(SPACE);
    steps(normalizer).iter().any(replaces)
        || steps(pre_tokenizer).iter().any(|step| kind(step) == "Metaspace")
}

fn begins_with_space(normalizer: &Value, pre_tokenizer: &Value) -> bool {
    let prepends = steps(normalizer).iter().any(|step| kind(step) == "Prepend");
    let scheme = |step: &&Value| {
        kind(step) == "Metaspace"
            && match step.get("prepend_scheme").and_then(Value::as_str) {
                Some(scheme) => scheme != "never",
                None => step.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true),
            }
    };
    prepends || steps(pre_tokenizer).iter().any(scheme)
}
