//! How text is cut before pairs are merged: the engine has names for the ways it knows.

use serde_json::Value;

use crate::error::ConvertError;
use crate::tokenizer::{FILE, File};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// One step of cutting, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
enum Cut<'a> {
    Digits,
    Pattern(&'a str),
    Bytes { pattern: bool, prefix: bool },
    Other(&'a str),
}

/// Whether the tokenizer works on bytes rather than on characters.
pub(super) fn is_of_bytes(file: &File) -> bool {
    cuts(&file.pre_tokenizer).iter().any(|cut| matches!(cut, Cut::Bytes { .. }))
}

/// The engine's name for what the tokenizer does, and whether a space is put before the text.
pub(super) fn recognise(file: &File, ignore_merges: bool) -> Result<(&'static str, bool), ConvertError> {
    let unknown = |what: String| {
        let allowed = "the ways of GPT-2, SmolLM, Llama 3, Qwen 2, Mistral (Tekken) and GPT-4o";
        ConvertError::unsupported(FILE, what, allowed)
    };
    let normalizer = kind(&file.normalizer);
    if !matches!(normalizer, "" | "NFC") {
        return Err(unknown(format!("the normalizer {normalizer:?}")));
    }
    let cuts = cuts(&file.pre_tokenizer);
    let Some((Cut::Bytes { pattern, prefix }, before)) = cuts.split_last() else {
        return Err(unknown(format!("cutting text by {cuts:?}")));
    };
    let name = match (before, *pattern, ignore_merges) {
        ([], true, false) => "gpt-2",
        ([Cut::Digits], true, false) => "smollm",
        ([Cut::Pattern(LLAMA3)], false, true) => "llama-bpe",
        ([Cut::Pattern(LLAMA3)], false, false) => "smaug-bpe",
        ([Cut::Pattern(QWEN2)], false, false) => "qwen2",
        ([Cut::Pattern(TEKKEN)], false, true) => "tekken",
        ([Cut::Pattern(GPT4O)], false, false) => "gpt-4o",
        _ => return Err(unknown(format!("cutting text by {cuts:?}"))),
    };
    Ok((name, *prefix))
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn cuts(step: &Value) -> Vec<Cut<'_>> {
    let truth = |key: &str, default: bool| step.get(key).and_then(Value::as_bool).unwrap_or(default);
    let cut = match kind(step) {
        "" => return Vec::new(),
        "Sequence" => {
            let steps = step.get("pretokenizers").and_then(Value::as_array);
            // One level is all that exists in the wild; more is no reason for recursion.
            return steps
                .into_iter()
                .flatten()
                .filter(|step| kind(step) != "Sequence")
                .flat_map(cuts)
                .collect();
        }
        "Digits" if truth("individual_digits", false) => Cut::Digits,
        "ByteLevel" => {
            Cut::Bytes { pattern: truth("use_regex", true), prefix: truth("add_prefix_space", true) }
        }
        "Split"
            if step.get("behavior").and_then(Value::as_str) == Some("Isolated")
                && !truth("invert", false) =>
        {
            let pattern =
                step.get("pattern").and_then(|pattern| pattern.get("Regex")).and_then(Value::as_str);
            Cut::Pattern(pattern.unwrap_or_default())
        }
        "Split"
            if step.get("behavior").and_then(Value::as_str) == Some("Removed") && truth("invert", false) =>
        {
            let pattern =
                step.get("pattern").and_then(|pattern| pattern.get("Regex")).and_then(Value::as_str);
            Cut::Pattern(pattern.unwrap_or_default())
        }
        other => Cut::Other(other),
    };
    vec![cut]
}

#[cfg(test)]
mod tests {
    use super::{QWEN2, recognise};
    use crate::tokenizer::File;
    use serde_json::{Value, json};

    fn name(steps: &Value, ignore_merges: bool) -> Result<(&'static str, bool), String> {
        let whole = json!({ "model": {}, "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps } });
        let file: File = serde_json::from_value(whole).expect("a tokenizer");
        recognise(&file, ignore_merges).map_err(|error| error.to_string())
    }

    #[test]
    fn a_tokenizer_is_recognised_by_what_it_does() {
        let bytes =
            |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": regex });
        let digits = json!({ "type": "Digits", "individual_digits": true });
        let split = json!({ "type": "Split", "pattern": { "Regex": QWEN2 }, "behavior": "Isolated", "invert": false });
        assert_eq!(name(&json!([bytes(true)]), false), Ok(("gpt-2", false)));
        assert_eq!(name(&json!([digits, bytes(true)]), false), Ok(("smollm", false)));
        assert_eq!(name(&json!([split, bytes(false)]), false), Ok(("qwen2", false)));
        let other = name(&json!([{ "type": "Punctuation" }, bytes(true)]), false).expect_err("unknown");
        assert!(other.contains("Punctuation") && other.contains("Qwen 2"), "{other}");
    }
}
