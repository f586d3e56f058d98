//! Turns a Hugging Face folder (configuration, tokenizer, safetensors) into one GGUF file.
//!
//! Nothing in the folder is trusted: sizes are bounded before memory is taken, offsets are checked
//! before they are followed, names of shards cannot leave the folder. Weights pass through in
//! pieces and keep their precision; vectors become F32. [`cached`] does it once per content.

mod architecture;
mod cache;
mod config;
mod error;
mod folder;
mod json;
mod rope;
mod safetensors;
mod tokenizer;
mod weights;

use std::path::Path;

use gguf::{Document, Entry};

pub use architecture::SUPPORTED;
pub use cache::{Cached, cached};
pub use error::ConvertError;

use crate::folder::Folder;
use crate::weights::Plan;

/// Changes whenever the same folder would give another file.
const CONVERTER_VERSION: u32 = 1;

/// Whether `path` is a folder that holds safetensors.
pub fn is_model_folder(path: &Path) -> bool {
    path.is_dir() && path.join(folder::CONFIG).is_file()
}

/// Converts the model in `folder` into a GGUF file at `target`, which appears whole or not at all.
///
/// `progress` gets the share done, 0 to 1, and returns whether to go on.
///
/// # Errors
/// See [`ConvertError`]; it names the file that is wrong.
pub fn convert(
    folder: &Path,
    target: &Path,
    progress: &mut dyn FnMut(f32) -> bool,
) -> Result<(), ConvertError> {
    let folder = Folder::open(folder)?;
    let config = config::read(&folder)?;
    let plan = Plan::make(&folder, &config)?;
    let vocabulary = tokenizer::read(&folder, plan.vocabulary())?;
    let mut document = Document::new();
    document.put("general.architecture", Entry::Text(config.family.gguf_name().to_owned()));
    document.put("general.type", Entry::Text("model".to_owned()));
    document.put("general.name", Entry::Text(folder.name()));
    document.put("general.file_type", Entry::U32(plan.file_type()));
    config.describe(&mut document);
    vocabulary.describe(&mut document);
    plan.describe(&mut document);
    plan.write(&document.header(), target, progress)
}
