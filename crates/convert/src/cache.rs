//! Each content is converted once.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::ConvertError;
use crate::folder::open_file;
use crate::{CONVERTER_VERSION, convert};

/// How often a process that waits for another's conversion looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A converted model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The GGUF file.
    pub path: PathBuf,
    /// Whether it was made just now.
    pub is_new: bool,
}

/// The GGUF file for the model in `folder`, made in `cache` unless it is there already.
///
/// Files are named by the hash of what they were made from. One process converts a content at a
/// time, the others wait for it; a process that dies leaves no lock and no file that looks whole.
/// `progress` gets the share done, 0 to 1, and returns whether to go on.
///
/// # Errors
/// See [`ConvertError`].
pub fn cached(
    folder: &Path,
    cache: &Path,
    progress: &mut dyn FnMut(f32) -> bool,
) -> Result<Cached, ConvertError> {
    let hash = content_hash(folder, &mut |share| progress(share * 0.3))?;
    std::fs::create_dir_all(cache).map_err(|error| ConvertError::write(cache, &error, 0))?;
    let path = cache.join(format!("{hash}.gguf"));
    if path.is_file() {
        return Ok(Cached { path, is_new: false });
    }
    let lock = cache.join(format!("{hash}.lock"));
    let _held = wait_for(&lock, progress)?;
    if path.is_file() {
        return Ok(Cached { path, is_new: false });
    }
    convert(folder, &path, &mut |share| progress(0.3 + share * 0.7))?;
    Ok(Cached { path, is_new: true })
}

/// Holds the lock as long as the file is open.
fn wait_for(path: &Path, progress: &mut dyn FnMut(f32) -> bool) -> Result<File, ConvertError> {
    let failed = |error: std::io::Error| ConvertError::write(path, &error, 0);
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(failed)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_AGAIN),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if !progress(0.3) {
            return Err(ConvertError::Abandoned);
        }
    }
}

/// The hash of every file that a conversion may read.
fn content_hash(folder: &Path, progress: &mut dyn FnMut(f32) -> bool) -> Result<String, ConvertError> {
    let files = names(folder)?;
    let mut opened = Vec::new();
    for name in &files {
        opened.push((name, open_file(folder, name)?));
    }
    let all: u64 = opened.iter().map(|(_, (_, length))| length).sum();
    let mut hash = Sha256::new();
    hash.update(CONVERTER_VERSION.to_le_bytes());
    // The model is called by its folder.
    let called = crate::folder::name_of(folder);
    hash.update((called.len() as u64).to_le_bytes());
    hash.update(called.as_bytes());
    let mut done = 0;
    let mut buffer = vec![0; 1024 * 1024];
    for (name, (mut file, length)) in opened {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(length.to_le_bytes());
        loop {
            let read =
                file.read(&mut buffer).map_err(|error| ConvertError::io(&folder.join(name), &error))?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            done += read as u64;
            if !progress(done as f32 / all.max(1) as f32) {
                return Err(ConvertError::Abandoned);
            }
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// JSON, templates and weights, ascending.
fn names(folder: &Path) -> Result<Vec<String>, ConvertError> {
    let failed = |error: std::io::Error| ConvertError::io(folder, &error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if [".json", ".jinja", ".safetensors"].iter().any(|end| name.ends_with(end)) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
