//! From a model argument to a loaded engine.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::EngineError;
use crate::fake;
use crate::traits::{Engine, LoadOptions};

/// Context per sequence when none is asked for and the model could hold more, in tokens.
pub const DEFAULT_CONTEXT: u32 = 4096;
/// Most sequences at once.
pub const MAX_SLOTS: u32 = 256;

/// Loads `model`: `fake:…` (see [`crate::fake`]), the path of a GGUF file, or the path of a Hugging
/// Face folder of safetensors, which is converted once into [`conversion_cache`].
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
    open_with_cache(model, options, &conversion_cache(), progress)
}

/// [`open`], with converted folders kept in `cache`.
///
/// # Errors
/// See [`open`].
pub fn open_with_cache(
    model: &str,
    options: &LoadOptions,
    cache: &Path,
    progress: Box<dyn FnMut(f32) -> bool + Send>,
) -> Result<Box<dyn Engine>, EngineError> {
    check_options(options)?;
    if let Some(spec) = model.strip_prefix("fake:") {
        return fake::open(spec, options, progress);
    }
    if Path::new(model).is_dir() {
        return open_folder(model, options, cache, progress);
    }
    open_file(model, options, progress)
}

/// Where converted folders are kept: `RBEES_CONVERTED`, else `models/converted` under `RBEES_HOME`,
/// else `rbees/converted` under `XDG_CACHE_HOME` or `~/.cache`.
pub fn conversion_cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("RBEES_CONVERTED") {
        return folder;
    }
    if let Some(home) = set("RBEES_HOME") {
        return home.join("models").join("converted");
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("rbees").join("converted")
}

/// Converting is the first half of the progress, loading the second.
fn open_folder(
    model: &str,
    options: &LoadOptions,
    cache: &Path,
    mut progress: Box<dyn FnMut(f32) -> bool + Send>,
) -> Result<Box<dyn Engine>, EngineError> {
    check_backend(options)?;
    let converted =
        convert::cached(Path::new(model), cache, &mut |share| progress(share * 0.5)).map_err(|error| {
            match error {
                convert::ConvertError::Abandoned => EngineError::LoadAbandoned,
                other => EngineError::Conversion(other),
            }
        })?;
    tracing::info!(
        event = if converted.is_new { "converted" } else { "conversion reused" },
        path = %converted.path.display()
    );
    let path = converted.path.display().to_string();
    open_file(&path, options, Box::new(move |share| progress(0.5 + share * 0.5)))
}

/// Whether the backend could run any file here; asked before the long work of a conversion.
fn check_backend(options: &LoadOptions) -> Result<(), EngineError> {
    if options.backend == crate::Backend::Fake {
        let message = "the fake backend runs only models named fake:NAME".to_owned();
        return Err(EngineError::InvalidOption { field: "backend", message });
    }
    if !options.backend.is_built() {
        return Err(EngineError::BackendNotBuilt(options.backend));
    }
    let missing = crate::cpu::missing_features();
    if missing.is_empty() { Ok(()) } else { Err(EngineError::UnsupportedCpu(missing)) }
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
