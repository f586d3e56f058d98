//! Tokens with a task: which begin and end a text, and the template of a chat.

use gguf::{Document, Entry};
use serde_json::{Map, Value};

use crate::error::ConvertError;
use crate::folder::{CONFIG, Folder};
use crate::tokenizer::File;

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_MAP: &str = "special_tokens_map.json";
const GENERATION: &str = "generation_config.json";
const TEMPLATE: &str = "chat_template.jinja";
/// Readers of the file keep no longer text.
const MAX_TEMPLATE_BYTES: usize = 1024 * 1024;
/// Texts that the engine takes for ends without being told.
const KNOWN_ENDS: [&str; 10] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
    "<eos>",
];

/// Numbers of tokens with a task.
#[derive(Debug, Default)]
pub(crate) struct Special {
    bos: Option<u32>,
    eos: Option<u32>,
    /// Further tokens that end a generation, at most two.
    further: Vec<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    /// By name; the one without a name is the usual one.
    templates: Vec<(String, String)>,
}

struct Files {
    tokenizer: Map<String, Value>,
    special: Map<String, Value>,
    config: Map<String, Value>,
    generation: Map<String, Value>,
}

/// Reads what the files beside the tokenizer say of `tokens`.
pub(super) fn read(folder: &Folder, file: &File, tokens: &[String]) -> Result<Special, ConvertError> {
    let object = |name: &str| folder.object(name).map(Option::unwrap_or_default);
    let files = Files {
        tokenizer: object(TOKENIZER_CONFIG)?,
        special: object(SPECIAL_MAP)?,
        config: object(CONFIG)?,
        generation: object(GENERATION)?,
    };
    let bos = files.number("bos", tokens)?;
    let eos = files.number("eos", tokens)?;
    let flag = |key: &str| files.tokenizer.get(key).and_then(Value::as_bool);
    let (begins, ends) = post_processor(&file.post_processor, tokens, bos, eos);
    Ok(Special {
        further: further_ends(&files, tokens, eos)?,
        unknown: files.number("unk", tokens)?,
        padding: files.number("pad", tokens)?,
        add_bos: bos.is_some() && flag("add_bos_token").unwrap_or(begins),
        add_eos: eos.is_some() && flag("add_eos_token").unwrap_or(ends),
        templates: templates(folder, &files.tokenizer)?,
        bos,
        eos,
    })
}

impl Files {
    /// The token for a task: by its text where the tokenizer names it, else by its number.
    fn number(&self, task: &str, tokens: &[String]) -> Result<Option<u32>, ConvertError> {
        let key = format!("{task}_token");
        let text = |map: &Map<String, Value>| {
            let value = map.get(&key)?;
            value.as_str().or(value.get("content").and_then(Value::as_str)).map(str::to_owned)
        };
        if let Some(text) = text(&self.tokenizer).or_else(|| text(&self.special))
            && let Some(number) = tokens.iter().position(|token| *token == text)
        {
            return Ok(u32::try_from(number).ok());
        }
        let key = format!("{task}_token_id");
        let named = [(GENERATION, &self.generation), (CONFIG, &self.config)];
        for (file, map) in named {
            if let Some(first) = numbers(file, map, &key, tokens.len())?.first() {
                return Ok(Some(*first));
            }
        }
        Ok(None)
    }
}

/// The number or numbers under `key`.
fn numbers(file: &str, map: &Map<String, Value>, key: &str, tokens: usize) -> Result<Vec<u32>, ConvertError> {
    let values = match map.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    // -1 is written for "none".
    let values = values.iter().filter(|value| value.as_i64() != Some(-1));
    let number =
        |value: &Value| value.as_u64().filter(|n| *n < tokens as u64).and_then(|n| u32::try_from(n).ok());
    values
        .map(|value| {
            number(value).ok_or_else(|| {
                ConvertError::malformed(file, format!("{key} is {value}"), format!("numbers below {tokens}"))
            })
        })
        .collect()
}

/// The ends that the engine must be told of besides `eos`.
fn further_ends(files: &Files, tokens: &[String], eos: Option<u32>) -> Result<Vec<u32>, ConvertError> {
    let mut ends = numbers(GENERATION, &files.generation, "eos_token_id", tokens.len())?;
    ends.extend(numbers(CONFIG, &files.config, "eos_token_id", tokens.len())?);
    ends.sort_unstable();
    ends.dedup();
    ends.retain(|end| Some(*end) != eos && !KNOWN_ENDS.contains(&tokens[*end as usize].as_str()));
    if ends.len() > 2 {
        let found = format!("{} tokens that end a text, none of them usual", ends.len());
        return Err(ConvertError::unsupported(GENERATION, found, "two besides the usual ones"));
    }
    Ok(ends)
}

/// Whether a text alone gets a token before and behind it.
fn post_processor(step: &Value, tokens: &[String], bos: Option<u32>, eos: Option<u32>) -> (bool, bool) {
    let inner = step.get("processors").and_then(Value::as_array);
    let mut steps = std::iter::once(step).chain(inner.into_iter().flatten());
    let template = steps.find_map(|step| step.get("single").and_then(Value::as_array));
    let is = |part: Option<&Value>, wanted: Option<u32>| {
        let text = part.and_then(|part| part.get("SpecialToken")?.get("id")?.as_str());
        let wanted = wanted.and_then(|number| tokens.get(number as usize));
        text.is_some() && text == wanted.map(String::as_str)
    };
    let Some(template) = template else { return (false, false) };
    (is(template.first(), bos), is(template.last(), eos))
}

fn templates(folder: &Folder, tokenizer: &Map<String, Value>) -> Result<Vec<(String, String)>, ConvertError> {
    let mut found = Vec::new();
    match tokenizer.get("chat_template") {
        Some(Value::String(text)) => found.push((String::new(), text.clone())),
        Some(Value::Array(list)) => {
            for each in list {
                let field = |key: &str| each.get(key).and_then(Value::as_str).map(str::to_owned);
                if let (Some(name), Some(text)) = (field("name"), field("template")) {
                    found.push((if name == "default" { String::new() } else { name }, text));
                }
            }
        }
        _ => {}
    }
    if let Some(text) = folder.text(TEMPLATE)? {
        found.retain(|(name, _)| !name.is_empty());
        found.push((String::new(), text));
    }
    let name_is_sound = |name: &String| {
        name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    let mut names: Vec<&String> = found.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() != found.len() || !names.into_iter().all(name_is_sound) {
        let allowed = "a name of letters, digits, - and _ for each";
        return Err(ConvertError::malformed(
            TOKENIZER_CONFIG,
            "chat_template has bad or equal names",
            allowed,
        ));
    }
    if found.iter().any(|(_, text)| text.len() > MAX_TEMPLATE_BYTES) {
        let allowed = format!("at most {MAX_TEMPLATE_BYTES} bytes");
        return Err(ConvertError::malformed(TOKENIZER_CONFIG, "a chat template is too long", allowed));
    }
    Ok(found)
}

impl Special {
    /// Adds the keys of these tokens and templates.
    pub(super) fn describe(self, document: &mut Document) {
        let mut number = |key: &str, number: Option<u32>| {
            if let Some(number) = number {
                document.put(format!("tokenizer.ggml.{key}_token_id"), Entry::U32(number));
            }
        };
        number("bos", self.bos);
        number("eos", self.eos);
        number("eot", self.further.first().copied());
        number("eom", self.further.get(1).copied());
        number("unknown", self.unknown);
        number("padding", self.padding);
        document.put("tokenizer.ggml.add_bos_token", Entry::Bool(self.add_bos));
        document.put("tokenizer.ggml.add_eos_token", Entry::Bool(self.add_eos));
        for (name, text) in self.templates {
            let dot = if name.is_empty() { "" } else { "." };
            document.put(format!("tokenizer.chat_template{dot}{name}"), Entry::Text(text));
        }
    }
}
