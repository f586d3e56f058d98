//! From a model argument to a loaded engine.

use std::fs::File;
use std::path::Path;

use crate::error::EngineError;
use crate::fake;
use crate::traits::{Engine, LoadOptions};

/// Context per sequence when none is asked for and the model could hold more, in tokens.
pub const DEFAULT_CONTEXT: u32 = 4096;
/// Most sequences at once.
pub const MAX_SLOTS: u32 = 256;

/// Loads `model`: `fake:…` (see [`crate::fake`]) or the path of a GGUF file.
///
/// `progress` gets the share read so far, 0 to 1, and returns whether to go on.
///
/// # Errors
/// See [`EngineError`]. A damaged file is refused before native code sees it, and a backend or
/// device that is not there is refused instead of replaced.
pub fn open(
    model: &str,
    options: &LoadOptions,
    progress: Box<dyn FnMut(f32) -> bool + Send>,
) -> Result<Box<dyn Engine>, EngineError> {
    check_options(options)?;
    if let Some(spec) = model.strip_prefix("fake:") {
        return fake::open(spec, options, progress);
    }
    open_file(model, options, progress)
}

fn check_options(options: &LoadOptions) -> Result<(), EngineError> {
    if !(1..=MAX_SLOTS).contains(&options.slots) {
        let message = format!("slots is {}; allowed is 1 to {MAX_SLOTS}", options.slots);
        return Err(EngineError::InvalidOption { field: "slots", message });
    }
    if options.context.is_some_and(|context| context < 16) {
        let message = "context is below 16 tokens; allowed is 16 or more".to_owned();
        return Err(EngineError::InvalidOption { field: "context", message });
    }
    if options.threads == Some(0) {
        let message = "threads is 0; allowed is 1 or more".to_owned();
        return Err(EngineError::InvalidOption { field: "threads", message });
    }
    Ok(())
}

fn open_file(
    model: &str,
    options: &LoadOptions,
    progress: Box<dyn FnMut(f32) -> bool + Send>,
) -> Result<Box<dyn Engine>, EngineError> {
    if options.backend == crate::Backend::Fake {
        let message = "the fake backend runs only models named fake:NAME".to_owned();
        return Err(EngineError::InvalidOption { field: "backend", message });
    }
    let header = read_header(Path::new(model))?;
    if !options.backend.is_built() {
        return Err(EngineError::BackendNotBuilt(options.backend));
    }
    let missing = crate::cpu::missing_features();
    if !missing.is_empty() {
        return Err(EngineError::UnsupportedCpu(missing));
    }
    open_gguf(model, &header, options, progress)
}

/// Reads and checks the header of the file at `path`, before native code sees it.
///
/// # Errors
/// [`EngineError::CorruptModel`] with offset and reason, or [`EngineError::Unreadable`].
pub fn read_header(path: &Path) -> Result<gguf::Header, EngineError> {
    let unreadable = |error: std::io::Error| EngineError::Unreadable(format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(EngineError::Unreadable(format!("{}: not a file", path.display())));
    }
    gguf::read(file, metadata.len()).map_err(EngineError::CorruptModel)
}

#[cfg(feature = "llama_cpp")]
fn open_gguf(
    model: &str,
    header: &gguf::Header,
    options: &LoadOptions,
    progress: Box<dyn FnMut(f32) -> bool + Send>,
) -> Result<Box<dyn Engine>, EngineError> {
    crate::llama_cpp::open(Path::new(model), header, options, progress)
}

#[cfg(not(feature = "llama_cpp"))]
fn open_gguf(
    _: &str,
    _: &gguf::Header,
    options: &LoadOptions,
    _: Box<dyn FnMut(f32) -> bool + Send>,
) -> Result<Box<dyn Engine>, EngineError> {
    Err(EngineError::BackendNotBuilt(options.backend))
}
