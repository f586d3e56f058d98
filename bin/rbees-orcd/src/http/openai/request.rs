//! What both completion routes read: fields that are built are taken, fields that would change
//! the answer and are not built are refused, all others are let be.

use std::collections::BTreeMap;

use api_types::sampling::FieldProblem;
use api_types::task::{Durability, OnDisconnect, TaskRequest};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The fields that `/v1/chat/completions` and `/v1/completions` share.
#[derive(Debug, Default, Deserialize)]
pub struct Common {
    pub model: Option<String>,
    pub max_tokens: Option<u32>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub seed: Option<i64>,
    pub stop: Option<OneOrMany>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    /// An extension of ours: `memory` skips the disk, as on `/v2`.
    pub durability: Option<Durability>,
}

/// How a stream is to look.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub struct StreamOptions {
    /// Whether the last chunk holds the counts.
    pub include_usage: Option<bool>,
}

/// A text or a list of texts.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    /// As a list.
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

impl Common {
    /// Whether the answer is a stream, and whether it ends with the counts.
    pub fn streaming(&self) -> (bool, bool) {
        let usage = self.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        (self.stream.unwrap_or(false), usage)
    }

    /// As a task without its input. `max_tokens` stays absent where it is: what the context leaves.
    pub fn into_task(self) -> Result<TaskRequest, FieldProblem> {
        Ok(TaskRequest {
            model: self.model,
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.map(token_ids).transpose()?.unwrap_or_default(),
            seed: self.seed.map(i64::cast_unsigned),
            stop: self.stop.map(OneOrMany::into_vec).unwrap_or_default(),
            on_disconnect: Some(OnDisconnect::Cancel),
            durability: self.durability,
            ..TaskRequest::default()
        })
    }
}

fn token_ids(bias: BTreeMap<String, f32>) -> Result<BTreeMap<u32, f32>, FieldProblem> {
    bias.into_iter()
        .map(|(token, bias)| match token.parse() {
            Ok(id) => Ok((id, bias)),
            Err(_) => Err(FieldProblem::new(
                format!("logit_bias.{token}"),
                "wrong_type",
                "logit_bias maps token ids, which are whole numbers, to what is added to their score",
            )),
        })
        .collect()
}

/// Refuses fields that ask for what is not built. A field at the value that asks for nothing
/// (absent, `null`, empty, or one of `harmless`) is fine.
pub fn refuse_unbuilt(body: &Value, fields: &[(&str, &[Value])]) -> Result<(), FieldProblem> {
    let empty = Map::new();
    let body = body.as_object().unwrap_or(&empty);
    for (field, harmless) in fields {
        match body.get(*field) {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) if items.is_empty() => {}
            Some(value) if harmless.contains(value) => {}
            Some(_) => {
                let message = format!("{field} is not supported by this server; leave it out");
                return Err(FieldProblem::new(*field, "not_supported", message));
            }
        }
    }
    Ok(())
}
