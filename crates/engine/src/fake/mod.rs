//! An engine without a model: seeded text, a pace, and faults on request.
//!
//! Its scores depend on its seed and the tokens so far, so the same prompt and sampling give the
//! same completion on every fake worker, and the real sampler and decode loop run on top of it.
//!
//! The model argument is `fake:NAME?key=value&…`; see [`Spec`] for the keys. Markers in the prompt
//! act on that one sequence: `[[crash]]`, `[[stall]]`, `[[error]]` before the first token, or
//! `[[crash:N]]` (and so on) before token N; `[[eos:N]]` ends the answer after N tokens.

mod engine;
mod spec;
mod vocabulary;

pub use engine::FakeEngine;
pub use spec::Spec;
pub use vocabulary::Vocabulary;

use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::error::EngineError;
use crate::traits::{Engine, LoadOptions};

/// Opens the fake model that `spec` describes (what follows `fake:`).
///
/// # Errors
/// An unknown key or value, another backend than `fake`, or the failure that the spec asks for.
pub fn open(
    spec: &str,
    options: &LoadOptions,
    mut progress: Box<dyn FnMut(f32) -> bool + Send>,
) -> Result<Box<dyn Engine>, EngineError> {
    if options.backend != Backend::Fake {
        let message = format!("a fake model runs only on the backend fake, not on {}", options.backend);
        return Err(EngineError::InvalidOption { field: "backend", message });
    }
    let spec = Spec::parse(spec).map_err(|message| EngineError::InvalidOption { field: "model", message })?;
    load_slowly(spec.load, &mut progress)?;
    if let Some(reason) = &spec.refuse {
        return Err(EngineError::LoadFailed(format!("the spec asks for this failure: {reason}")));
    }
    Ok(Box::new(FakeEngine::new(spec, options)?))
}

fn load_slowly(
    total: Duration,
    progress: &mut Box<dyn FnMut(f32) -> bool + Send>,
) -> Result<(), EngineError> {
    let begin = Instant::now();
    loop {
        let share = if total.is_zero() { 1.0 } else { begin.elapsed().as_secs_f32() / total.as_secs_f32() };
        if !progress(share.min(1.0)) {
            return Err(EngineError::LoadAbandoned);
        }
        if share >= 1.0 {
            return Ok(());
        }
        std::thread::sleep((total / 20).min(total.saturating_sub(begin.elapsed())));
    }
}
