//! Where the programs under test and their models lie.

use std::path::{Path, PathBuf};

/// The release binary `name`.
///
/// # Panics
/// When it has not been built, naming the command that does.
pub fn binary(name: &str) -> PathBuf {
    let path = folder().join(name);
    assert!(path.is_file(), "{} is missing; `cargo xtask test release` builds it first", path.display());
    path
}

/// The folder of the programs: `RBEES_BIN_DIR`, else the release folder of the target directory.
pub fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("RBEES_BIN_DIR") {
        return folder.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    target.join("release")
}

/// The small real model.
///
/// # Panics
/// When it has not been fetched, naming the command that does.
pub fn real_model() -> PathBuf {
    let folder = std::env::var_os("RBEES_TEST_MODELS").expect(
        "RBEES_TEST_MODELS names no folder; `cargo xtask test release` fetches the models and sets it",
    );
    Path::new(&folder).join("smollm2-135m-instruct-q4_1.gguf")
}
