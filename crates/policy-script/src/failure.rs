//! The interpreter's errors in the words of the core.

use orchestrator_core::policy::{FailureKind, Hook, PolicyFailure};
use rhai::{EvalAltResult, ParseError, ParseErrorType, Position};

use crate::engine::{CUT, OUT_OF_OPERATIONS};
use crate::limits;

/// A failure at a place in the script.
pub(crate) fn failure(
    hook: Option<Hook>,
    kind: FailureKind,
    message: impl Into<String>,
    position: Position,
) -> PolicyFailure {
    let number = |of: Option<usize>| of.and_then(|n| u32::try_from(n).ok());
    let position = number(position.line()).map(|line| (line, number(position.position()).unwrap_or(1)));
    PolicyFailure { hook, kind, message: message.into(), position }
}

fn limit(hook: Option<Hook>, name: &str, message: String, position: Position) -> PolicyFailure {
    failure(hook, FailureKind::Limit(name.to_owned()), message, position)
}

/// Why a script does not compile.
pub(crate) fn of_parsing(error: &ParseError) -> PolicyFailure {
    of_syntax(None, error.err_type(), error.position())
}

fn of_syntax(hook: Option<Hook>, error: &ParseErrorType, at: Position) -> PolicyFailure {
    match error {
        ParseErrorType::ExprTooDeep => {
            let (least, most) = (limits::FUNCTION_EXPRESSION_DEPTH, limits::EXPRESSION_DEPTH);
            let message =
                format!("an expression is nested deeper than {least} levels in a function ({most} outside)");
            limit(hook, "expression depth", message, at)
        }
        ParseErrorType::TooManyFunctions => {
            limit(hook, "functions", format!("more than {} functions", limits::FUNCTIONS), at)
        }
        ParseErrorType::LiteralTooLarge(what, most) => {
            limit(hook, "size", format!("{what} is larger than {most}"), at)
        }
        other => failure(hook, FailureKind::Syntax, other.to_string(), at),
    }
}

/// Why a hook gave no answer.
pub(crate) fn of_run(hook: Hook, error: EvalAltResult) -> PolicyFailure {
    use EvalAltResult as E;
    let hook = Some(hook);
    match innermost(error) {
        E::ErrorTooManyOperations(at) => out_of_operations(hook, at),
        E::ErrorTerminated(token, at) => match token.into_immutable_string() {
            Ok(token) if token == OUT_OF_OPERATIONS => out_of_operations(hook, at),
            Ok(token) if token == CUT => {
                let message = format!("the watchdog stopped it after {} ms", limits::WATCHDOG_MS);
                failure(hook, FailureKind::Interrupted, message, at)
            }
            Ok(_) | Err(_) => failure(hook, FailureKind::Runtime, "it was stopped", at),
        },
        E::ErrorStackOverflow(at) => {
            let message = format!("functions call one another deeper than {} levels", limits::CALL_DEPTH);
            limit(hook, "call depth", message, at)
        }
        E::ErrorTooManyVariables(at) => {
            limit(hook, "variables", format!("more than {} variables", limits::VARIABLES), at)
        }
        E::ErrorDataTooLarge(what, at) => {
            let message = format!(
                "{what}: a text may have {} bytes, an array or map {} items",
                limits::TEXT_BYTES,
                limits::ITEMS
            );
            limit(hook, "size", message, at)
        }
        E::ErrorParsing(error, at) => of_syntax(hook, &error, at),
        other => {
            let at = other.position();
            let mut bare = other;
            bare.clear_position();
            failure(hook, FailureKind::Runtime, bare.to_string(), at)
        }
    }
}

fn out_of_operations(hook: Option<Hook>, at: Position) -> PolicyFailure {
    limit(hook, "operations", format!("more than {} operations for one answer", limits::OPERATIONS), at)
}

/// The error itself, without the calls around it.
fn innermost(error: EvalAltResult) -> EvalAltResult {
    let mut error = error;
    loop {
        match error {
            EvalAltResult::ErrorInFunctionCall(_, _, inner, at) => {
                error = *inner;
                if error.position().is_none() {
                    error.set_position(at);
                }
            }
            other => return other,
        }
    }
}
