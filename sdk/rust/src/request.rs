//! Short forms of a request. Every one becomes a [`TaskRequest`], which has all the fields.

use api_types::task::TaskRequest;

/// A prompt for a named model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnqueueRequest<'a> {
    /// Text that goes to the model as it is.
    pub prompt: &'a str,
    /// The model.
    pub model: &'a str,
    /// Most tokens to generate, from 1.
    pub max_tokens: u32,
}

impl From<EnqueueRequest<'_>> for TaskRequest {
    fn from(request: EnqueueRequest<'_>) -> Self {
        Self {
            prompt: Some(request.prompt.to_owned()),
            model: Some(request.model.to_owned()),
            max_tokens: Some(request.max_tokens),
            ..Self::default()
        }
    }
}

/// A prompt with the settings that are most often wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct InferenceRequest<'a> {
    /// Text that goes to the model as it is.
    pub prompt: &'a str,
    /// Most tokens to generate, from 1.
    pub max_tokens: u32,
    /// 0 (greedy) to 2.
    pub temperature: f32,
    /// The model; may be left out when exactly one can be served.
    pub model: Option<String>,
}

impl From<InferenceRequest<'_>> for TaskRequest {
    fn from(request: InferenceRequest<'_>) -> Self {
        Self {
            prompt: Some(request.prompt.to_owned()),
            max_tokens: Some(request.max_tokens),
            temperature: Some(request.temperature),
            model: request.model,
            ..Self::default()
        }
    }
}
