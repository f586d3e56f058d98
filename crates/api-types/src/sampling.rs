//! How the next token is chosen, and the checks that every program applies to those numbers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::format::ResponseFormat;
use crate::worker::JSON_SCHEMA;

/// `max_tokens` when a client names none on `/v2`.
pub const DEFAULT_MAX_TOKENS: u32 = 512;
/// `temperature` when a client names none.
pub const DEFAULT_TEMPERATURE: f32 = 0.7;
/// Most stop strings in one request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 256;
/// Most entries of `logit_bias`.
pub const MAX_LOGIT_BIAS: usize = 1024;

/// One field of a request that cannot be used, with what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldProblem {
    /// Path of the field in the request, for example `stop.3`.
    pub field: String,
    /// What is wrong and what is allowed.
    pub message: String,
    /// A stable word for programs: `out_of_range`, `nul_byte`, `empty`, `conflict`, `too_long`,
    /// `not_supported`, `unknown_field`, `wrong_type`.
    pub reason: &'static str,
}

impl FieldProblem {
    /// A problem of `field`, in words and as a stable `reason`.
    pub fn new(field: impl Into<String>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), reason }
    }
}

/// Sampling settings with every default filled in.
///
/// Applied in the order form, penalties, top-k, top-p, min-p, temperature, draw. The draw for token `i`
/// depends on `(seed, i)` alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Most tokens to generate; `None` means whatever the context leaves.
    pub max_tokens: Option<u32>,
    /// 0 is greedy and reproducible on one build and device; up to 2.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Drops tokens less likely than this share of the likeliest; 0 drops none.
    pub min_p: f32,
    /// Divides the score of tokens seen already; 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracts this per earlier occurrence in the completion; 0 does nothing.
    pub frequency_penalty: f32,
    /// Subtracts this once for tokens that occurred in the completion; 0 does nothing.
    pub presence_penalty: f32,
    /// Adds to the score of single token ids.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the draws; the orchestrator draws and records one where the client names none.
    pub seed: Option<u64>,
    /// The text ends before the first of these to appear.
    pub stop: Vec<String>,
    /// What form the text must have; `None` means any.
    pub response_format: Option<ResponseFormat>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            max_tokens: Some(DEFAULT_MAX_TOKENS),
            temperature: DEFAULT_TEMPERATURE,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
            stop: Vec::new(),
            response_format: None,
        }
    }
}

impl Sampling {
    /// Refuses numbers outside their meaning, naming the field and the allowed range.
    ///
    /// # Errors
    /// The first field that cannot be used.
    pub fn check(&self) -> Result<(), FieldProblem> {
        if self.max_tokens == Some(0) {
            return Err(FieldProblem::new(
                "max_tokens",
                "out_of_range",
                "max_tokens is 0; allowed is 1 or more",
            ));
        }
        for (field, value, low, high) in [
            ("temperature", self.temperature, 0.0, 2.0),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, 0.01, 10.0),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0),
        ] {
            check_range(field, value, low, high)?;
        }
        if self.top_p == 0.0 {
            return Err(FieldProblem::new(
                "top_p",
                "out_of_range",
                "top_p is 0; allowed is above 0 and up to 1",
            ));
        }
        self.check_bias()?;
        self.check_stop()?;
        self.response_format.as_ref().map_or(Ok(()), ResponseFormat::check)
    }

    /// The capability that a worker must have for this, where not every worker does it.
    pub fn needed_capability(&self) -> Option<&'static str> {
        self.response_format.as_ref()?.schema().map(|_| JSON_SCHEMA)
    }

    fn check_bias(&self) -> Result<(), FieldProblem> {
        if self.logit_bias.len() > MAX_LOGIT_BIAS {
            let message = format!(
                "logit_bias has {} entries; at most {MAX_LOGIT_BIAS} are allowed",
                self.logit_bias.len()
            );
            return Err(FieldProblem::new("logit_bias", "too_long", message));
        }
        self.logit_bias
            .iter()
            .try_for_each(|(token, bias)| check_range(&format!("logit_bias.{token}"), *bias, -100.0, 100.0))
    }

    fn check_stop(&self) -> Result<(), FieldProblem> {
        if self.stop.len() > MAX_STOP_STRINGS {
            let message =
                format!("stop has {} strings; at most {MAX_STOP_STRINGS} are allowed", self.stop.len());
            return Err(FieldProblem::new("stop", "too_long", message));
        }
        for (at, stop) in self.stop.iter().enumerate() {
            if stop.is_empty() || stop.len() > MAX_STOP_BYTES {
                let message =
                    format!("a stop string has {} bytes; allowed are 1 to {MAX_STOP_BYTES}", stop.len());
                return Err(FieldProblem::new(format!("stop.{at}"), "out_of_range", message));
            }
        }
        Ok(())
    }
}

fn check_range(field: &str, value: f32, low: f32, high: f32) -> Result<(), FieldProblem> {
    if value.is_finite() && (low..=high).contains(&value) {
        return Ok(());
    }
    let message = format!("{field} is {value}; allowed is {low} to {high}");
    Err(FieldProblem::new(field, "out_of_range", message))
}

/// Appends the sampling fields, flat and optional as they stand on the wire, to a request.
///
/// Serde's `flatten` would lose the field names in type errors, so the fields are written out by
/// this macro instead; [`Sampling`] is what they mean once the defaults are filled in.
macro_rules! request_with_sampling {
    ($(#[$meta:meta])* pub struct $name:ident { $($body:tt)* }) => {
        $(#[$meta])*
        pub struct $name {
            $($body)*
            /// Most tokens to generate, from 1; clipped to what the context leaves.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub max_tokens: Option<u32>,
            /// 0 (greedy) to 2.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub temperature: Option<f32>,
            /// Above 0 and up to 1.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub top_p: Option<f32>,
            /// 0 keeps all.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub top_k: Option<u32>,
            /// 0 to 1.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub min_p: Option<f32>,
            /// 0.01 to 10; 1 does nothing.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub repetition_penalty: Option<f32>,
            /// -2 to 2.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub frequency_penalty: Option<f32>,
            /// -2 to 2.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub presence_penalty: Option<f32>,
            /// Token id to what is added to its score, -100 to 100.
            #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
            #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, f32>))]
            pub logit_bias: std::collections::BTreeMap<u32, f32>,
            /// Seed of the draws.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub seed: Option<u64>,
            /// Up to 16 strings of 1 to 256 bytes.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub stop: Vec<String>,
            /// What form the text must have; any when absent.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub response_format: Option<$crate::format::ResponseFormat>,
        }

        impl $name {
            /// The sampling settings with defaults where the request is silent; `max_tokens`
            /// stays as given.
            pub fn sampling(&self) -> $crate::sampling::Sampling {
                let default = $crate::sampling::Sampling::default();
                $crate::sampling::Sampling {
                    max_tokens: self.max_tokens,
                    temperature: self.temperature.unwrap_or(default.temperature),
                    top_p: self.top_p.unwrap_or(default.top_p),
                    top_k: self.top_k.unwrap_or(default.top_k),
                    min_p: self.min_p.unwrap_or(default.min_p),
                    repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
                    frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
                    presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
                    logit_bias: self.logit_bias.clone(),
                    seed: self.seed,
                    stop: self.stop.clone(),
                    response_format: self.response_format.clone(),
                }
            }

            /// Writes `sampling` into the wire fields, all of them explicit.
            #[must_use]
            pub fn with_sampling(mut self, sampling: &$crate::sampling::Sampling) -> Self {
                self.max_tokens = sampling.max_tokens;
                self.temperature = Some(sampling.temperature);
                self.top_p = Some(sampling.top_p);
                self.top_k = Some(sampling.top_k);
                self.min_p = Some(sampling.min_p);
                self.repetition_penalty = Some(sampling.repetition_penalty);
                self.frequency_penalty = Some(sampling.frequency_penalty);
                self.presence_penalty = Some(sampling.presence_penalty);
                self.logit_bias = sampling.logit_bias.clone();
                self.seed = sampling.seed;
                self.stop = sampling.stop.clone();
                self.response_format = sampling.response_format.clone();
                self
            }
        }
    };
}

pub(crate) use request_with_sampling;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_pass_their_own_check() {
        assert_eq!(Sampling::default().check(), Ok(()));
    }

    #[test]
    fn each_number_outside_its_range_is_refused_by_name() {
        let cases: [(&str, Sampling); 6] = [
            ("max_tokens", Sampling { max_tokens: Some(0), ..Sampling::default() }),
            ("temperature", Sampling { temperature: f32::NAN, ..Sampling::default() }),
            ("top_p", Sampling { top_p: 0.0, ..Sampling::default() }),
            ("stop.0", Sampling { stop: vec![String::new()], ..Sampling::default() }),
            ("stop", Sampling { stop: vec!["x".into(); 17], ..Sampling::default() }),
            ("logit_bias.7", Sampling { logit_bias: [(7, 101.0)].into(), ..Sampling::default() }),
        ];
        for (field, sampling) in cases {
            assert_eq!(sampling.check().map_err(|problem| problem.field), Err(field.to_owned()));
        }
    }
}
