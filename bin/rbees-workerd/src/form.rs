//! The form that a run's text must have, made ready before the run begins: compiling a schema takes
//! longer than a step, so it is done beside the decode thread.

use api_types::sampling::{FieldProblem, Sampling};
use api_types::worker::Continuation;
use api_types::{ErrorCode, ErrorDetail};
use engine::constraint::{Constraint, ConstraintError, Vocabulary};

const SCHEMA_FIELD: &str = "response_format.json_schema.schema";

/// What a run must keep to, where it must: a constraint that stands behind the tokens which another
/// worker has made already.
///
/// # Errors
/// `INVALID_FIELD` when there can be no such constraint, or when those tokens do not follow it.
pub fn prepare(
    vocabulary: Option<&Vocabulary>,
    sampling: &Sampling,
    continuation: Option<&Continuation>,
) -> Result<Option<Box<Constraint>>, ErrorDetail> {
    let Some(schema) = sampling.response_format.as_ref().and_then(|format| format.schema()) else {
        return Ok(None);
    };
    let vocabulary = vocabulary.ok_or_else(|| refusal(&ConstraintError::Vocabulary))?;
    let mut constraint = vocabulary.json(&schema).map_err(|error| refusal(&error))?;
    if let Some(continuation) = continuation {
        constraint.accept_all(&continuation.tokens).map_err(|error| refusal(&error))?;
    }
    Ok(Some(Box::new(constraint)))
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
