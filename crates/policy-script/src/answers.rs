//! What a hook may answer, and what is said of anything else.

use orchestrator_core::policy::{Admission, Again, FailureKind, Hook, MAX_SCORE, PolicyFailure, Score};
use rhai::Dynamic;

/// Characters of a refusal's reason.
const REASON_CHARS: usize = 500;

/// `true`, a reason, or milliseconds to wait.
pub(crate) fn admission(answer: Dynamic) -> Result<Admission, PolicyFailure> {
    if let Ok(admitted) = answer.as_bool() {
        let refused = || Admission::Refuse("it gives no reason".to_owned());
        return Ok(if admitted { Admission::Admit } else { refused() });
    }
    if let Ok(ms) = answer.as_int() {
        let wrong = || wrong(Hook::Admit, "milliseconds to wait are not negative", &answer);
        return u64::try_from(ms).map(Admission::Hold).map_err(|_| wrong());
    }
    match answer.as_immutable_string_ref() {
        Ok(reason) => Ok(Admission::Refuse(reason.chars().take(REASON_CHARS).collect())),
        Err(_) => Err(wrong(
            Hook::Admit,
            "it answers `true`, a text that says why not, or milliseconds to wait",
            &answer,
        )),
    }
}

/// A whole number.
pub(crate) fn order(answer: Dynamic) -> Result<i64, PolicyFailure> {
    answer
        .as_int()
        .map_err(|_| wrong(Hook::Order, "it answers a whole number; the lowest goes first", &answer))
}

/// A number from 0 to [`MAX_SCORE`], or `()`.
pub(crate) fn score(answer: Dynamic) -> Result<Score, PolicyFailure> {
    if answer.is_unit() {
        return Ok(Score::KeepFree);
    }
    match number(&answer).filter(|points| (0.0..=MAX_SCORE).contains(points)) {
        Some(points) => Ok(Score::Points(points)),
        None => Err(wrong(
            Hook::Score,
            "it answers a number from 0 to 1000, or `()` to keep the worker free of the job",
            &answer,
        )),
    }
}

/// A number that is finite.
pub(crate) fn evict(answer: Dynamic) -> Result<f64, PolicyFailure> {
    number(&answer)
        .filter(|key| key.is_finite())
        .ok_or_else(|| wrong(Hook::Evict, "it answers a finite number; the highest goes first", &answer))
}

/// Whether it is tried again.
pub(crate) fn again(answer: Dynamic) -> Result<Again, PolicyFailure> {
    match answer.as_bool() {
        Ok(true) => Ok(Again::GoOn),
        Ok(false) => Ok(Again::GiveUp),
        Err(_) => {
            Err(wrong(Hook::Retry, "it answers `true` for another attempt or `false` to give up", &answer))
        }
    }
}

fn number(answer: &Dynamic) -> Option<f64> {
    answer.as_float().or_else(|_| answer.as_int().map(|whole| whole as f64)).ok()
}

fn wrong(hook: Hook, rule: &str, answer: &Dynamic) -> PolicyFailure {
    let mut shown: String = answer.to_string().chars().take(40).collect();
    if shown.is_empty() {
        shown = "()".to_owned();
    }
    PolicyFailure {
        hook: Some(hook),
        kind: FailureKind::WrongAnswer,
        message: format!("{rule}; this one answered {shown} ({})", answer.type_name()),
        position: None,
    }
}
