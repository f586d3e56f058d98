//! `tokenizer.json` and the files beside it: the vocabulary as a GGUF file tells it.

mod pieces;
mod pre;
mod special;

use std::collections::{BTreeMap, BTreeSet};

use gguf::{Document, Entry};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::ConvertError;
use crate::folder::Folder;
use special::Special;

const FILE: &str = "tokenizer.json";
const MAX_TOKEN_BYTES: usize = 65_535;

/// What a token is, in the numbers of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// A vocabulary, ready to be written.
pub(crate) struct Vocabulary {
    model: &'static str,
    pre: &'static str,
    tokens: Vec<String>,
    kinds: Vec<TokenKind>,
    /// Of SentencePiece vocabularies.
    scores: Option<Vec<f32>>,
    /// Of vocabularies of bytes.
    merges: Option<Vec<String>>,
    space_prefix: bool,
    special: Special,
}

#[derive(Deserialize)]
pub(crate) struct File {
    model: Box<RawValue>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    name: Option<String>,
}

/// The model of a tokenizer that merges pairs.
#[derive(Deserialize)]
pub(crate) struct Pairs {
    vocab: BTreeMap<String, u64>,
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    unk_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Merge {
    Line(String),
    Pair([String; 2]),
}

impl Merge {
    fn halves(&self) -> Option<(&str, &str)> {
        match self {
            Self::Line(line) => line.split_once(' '),
            Self::Pair([left, right]) => Some((left, right)),
        }
    }
}

fn wrong(problem: impl Into<String>, allowed: impl Into<String>) -> ConvertError {
    ConvertError::malformed(FILE, problem, allowed)
}

/// Reads the tokenizer of `folder` for an embedding of `rows` rows.
pub(crate) fn read(folder: &Folder, rows: u64) -> Result<Vocabulary, ConvertError> {
    let file: File = folder
        .parse(FILE)?
        .ok_or_else(|| ConvertError::malformed(FILE, "it is missing", "the tokenizer of a fast tokenizer"))?;
    let unclear = |error: serde_json::Error| {
        wrong(format!("its model cannot be understood: {error}"), "a model of merged pairs")
    };
    let kind: Kind = serde_json::from_str(file.model.get()).map_err(unclear)?;
    if kind.name.as_deref().is_some_and(|name| name != "BPE") {
        return Err(ConvertError::unsupported(
            FILE,
            format!("the model {:?}", kind.name.unwrap_or_default()),
            "BPE",
        ));
    }
    let pairs: Pairs = serde_json::from_str(file.model.get()).map_err(unclear)?;
    let table = Table::fill(&file, &pairs, rows)?;
    let special = special::read(folder, &file, &table.tokens)?;
    if pre::is_of_bytes(&file) {
        let (pre, space_prefix) = pre::recognise(&file, pairs.ignore_merges)?;
        let merges = Some(merges(&pairs)?);
        let Table { tokens, kinds } = table;
        return Ok(Vocabulary {
            model: "gpt2",
            pre,
            tokens,
            kinds,
            scores: None,
            merges,
            space_prefix,
            special,
        });
    }
    pieces::read(&file, &pairs, table, special)
}

/// Tokens by their number.
struct Table {
    tokens: Vec<String>,
    kinds: Vec<TokenKind>,
}

impl Table {
    fn fill(file: &File, pairs: &Pairs, rows: u64) -> Result<Self, ConvertError> {
        let mut by_id: BTreeMap<u64, (&str, TokenKind)> = BTreeMap::new();
        for (text, id) in &pairs.vocab {
            if *id >= rows {
                let problem = format!("{text:?} has the number {id}");
                return Err(wrong(problem, format!("numbers below {rows}, the rows of the embedding")));
            }
            if let Some((other, _)) = by_id.insert(*id, (text, TokenKind::Normal)) {
                return Err(wrong(
                    format!("{text:?} and {other:?} are both number {id}"),
                    "one token per number",
                ));
            }
        }
        for added in &file.added_tokens {
            let kind = if added.special { TokenKind::Control } else { TokenKind::UserDefined };
            // A processor may know more tokens than the model has rows, for example for pictures.
            if added.id < rows {
                by_id.insert(added.id, (&added.content, kind));
            }
        }
        let mut table = Self { tokens: Vec::new(), kinds: Vec::new() };
        for id in 0..rows {
            let (text, kind) = by_id.get(&id).map_or_else(
                || (format!("[PAD{id}]"), TokenKind::Unused),
                |(text, kind)| ((*text).to_owned(), *kind),
            );
            table.tokens.push(text);
            table.kinds.push(kind);
        }
        table.check()?;
        Ok(table)
    }

    /// The engine ends the process over a vocabulary with doubles.
    fn check(&self) -> Result<(), ConvertError> {
        let mut seen = BTreeSet::new();
        for text in &self.tokens {
            if text.is_empty() || text.len() > MAX_TOKEN_BYTES || text.contains('\0') {
                return Err(wrong(
                    "a token is empty, too long or contains a zero",
                    "texts of 1 to 65535 bytes",
                ));
            }
            if !seen.insert(text) {
                return Err(wrong(format!("{text:?} appears twice"), "each token once"));
            }
        }
        Ok(())
    }
}

fn merges(pairs: &Pairs) -> Result<Vec<String>, ConvertError> {
    let line = |merge: &Merge| {
        let (left, right) = merge.halves()?;
        let sound = !left.is_empty() && !right.is_empty() && !left.contains(' ') && !right.contains(' ');
        sound.then(|| format!("{left} {right}"))
    };
    let lines: Option<Vec<String>> = pairs.merges.iter().map(line).collect();
    lines.ok_or_else(|| wrong("a merge is not of two parts", "two texts without spaces"))
}

impl Vocabulary {
    /// Adds the keys of the tokenizer.
    pub(crate) fn describe(self, document: &mut Document) {
        let mut put = |key: &str, entry: Entry| document.put(format!("tokenizer.ggml.{key}"), entry);
        put("model", Entry::Text(self.model.to_owned()));
        put("pre", Entry::Text(self.pre.to_owned()));
        put("tokens", Entry::Texts(self.tokens));
        put("token_type", Entry::I32s(self.kinds.iter().map(|kind| *kind as i32).collect()));
        if let Some(scores) = self.scores {
            put("scores", Entry::F32s(scores));
        }
        if let Some(merges) = self.merges {
            put("merges", Entry::Texts(merges));
        }
        put("add_space_prefix", Entry::Bool(self.space_prefix));
        self.special.describe(document);
    }
}
