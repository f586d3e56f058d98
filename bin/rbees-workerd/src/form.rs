//! The form that a run's text must have, made ready before the run begins: compiling a schema takes
//! longer than a step, so it is done beside the decode thread.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use api_types::sampling::{FieldProblem, Sampling};
use api_types::worker::Continuation;
use api_types::{ErrorCode, ErrorDetail};
use engine::constraint::{Constraint, ConstraintError, Vocabulary};
use engine::{ModelInfo, Tokenizer};

const SCHEMA_FIELD: &str = "response_format.json_schema.schema";

/// Makes constraints for one model. Cheap to share between threads.
pub struct Forms {
    tokenizer: Arc<dyn Tokenizer>,
    info: ModelInfo,
    vocabulary: OnceLock<Result<Vocabulary, ConstraintError>>,
}

impl Forms {
    /// Forms for the model that `info` describes. Its vocabulary is read on a thread of its own, which
    /// takes seconds for a large one: no run without a form waits for it.
    pub fn begin(tokenizer: Arc<dyn Tokenizer>, info: ModelInfo) -> Arc<Self> {
        let forms = Arc::new(Self { tokenizer, info, vocabulary: OnceLock::new() });
        let reading = Arc::clone(&forms);
        let thread = std::thread::Builder::new().name("vocabulary".to_owned());
        // Without the thread, the first run with a form reads it.
        let _ = thread.spawn(move || reading.vocabulary().is_ok());
        forms
    }

    /// The vocabulary; waits until it has been read.
    fn vocabulary(&self) -> Result<&Vocabulary, &ConstraintError> {
        let read = || {
            let begin = Instant::now();
            let read = Vocabulary::new(&*self.tokenizer, &self.info);
            match &read {
                Ok(_) => {
                    let took_ms = begin.elapsed().as_millis() as u64;
                    tracing::debug!(event = "vocabulary_read", took_ms);
                }
                Err(error) => tracing::warn!(event = "no_response_formats", %error),
            }
            read
        };
        self.vocabulary.get_or_init(read).as_ref()
    }

    /// What a run must keep to, where it must: a constraint that stands behind the tokens which another
    /// worker has made already. Not for an async thread.
    ///
    /// # Errors
    /// `INVALID_FIELD` when there can be no such constraint, or when those tokens do not follow it.
    pub fn prepare(
        &self,
        sampling: &Sampling,
        continuation: Option<&Continuation>,
    ) -> Result<Option<Box<Constraint>>, ErrorDetail> {
        let Some(schema) = sampling.response_format.as_ref().and_then(|format| format.schema()) else {
            return Ok(None);
        };
        let vocabulary = self.vocabulary().map_err(refusal)?;
        let mut constraint = vocabulary.json(&schema).map_err(|error| refusal(&error))?;
        if let Some(continuation) = continuation {
            constraint.accept_all(&continuation.tokens).map_err(|error| refusal(&error))?;
        }
        Ok(Some(Box::new(constraint)))
    }
}

/// A failure before the run.
fn refusal(error: &ConstraintError) -> ErrorDetail {
    let (field, reason) = match error {
        ConstraintError::Vocabulary => ("response_format".to_owned(), "not_supported"),
        ConstraintError::Schema(_) => (SCHEMA_FIELD.to_owned(), "not_supported"),
        ConstraintError::Token { index } => (format!("continuation.tokens.{index}"), "conflict"),
        ConstraintError::DeadEnd => return failure(error),
    };
    FieldProblem::new(field, reason, error.to_string()).into()
}

/// A failure while the run goes on.
pub fn failure(error: &ConstraintError) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::FormatFailed, error.to_string())
        .with_hint("ask for a simpler schema: fewer alternatives, shorter patterns")
}
