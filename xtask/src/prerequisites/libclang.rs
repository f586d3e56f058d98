//! Finding libclang, and the compiler headers it needs beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::prerequisites::BuildEnv;
use crate::process;

/// Whether the bindings generator will find a libclang by itself.
pub fn is_there() -> bool {
    find().is_some()
}

/// A libclang that comes without the compiler's own headers (`stddef.h`, ...) gets those of the C++
/// compiler.
pub fn add_headers(env: &mut BuildEnv) {
    let beside_a_libclang = folders().iter().chain(&find()).any(|folder| has_headers(folder));
    if beside_a_libclang || process::find("clang").is_some() {
        return;
    }
    if let Ok(include) = process::read(Command::new("c++").arg("-print-file-name=include")) {
        env.set("BINDGEN_EXTRA_CLANG_ARGS", format!("-isystem {}", include.trim()));
    }
}

/// The folder of the first libclang.
fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LIBCLANG_PATH") {
        return Some(path.into());
    }
    folders().into_iter().find(|folder| holds_libclang(folder))
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = [
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/Library/Developer/CommandLineTools/usr/lib",
        "/Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib",
        "/opt/homebrew/opt/llvm/lib",
        "/usr/local/opt/llvm/lib",
    ]
    .map(PathBuf::from)
    .to_vec();
    for entry in entries(Path::new("/usr/lib")) {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("llvm") {
            folders.push(entry.join("lib"));
        } else if name.ends_with("-linux-gnu") {
            folders.push(entry);
        }
    }
    folders
}

/// A link that leads nowhere is no libclang.
fn holds_libclang(folder: &Path) -> bool {
    entries(folder)
        .iter()
        .any(|path| path.is_file() && is_libclang(&path.file_name().unwrap_or_default().to_string_lossy()))
}

/// `libclang.so`, `libclang-14.so.1`, `libclang.dylib`; not `libclang-cpp.so` and its kind.
fn is_libclang(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("libclang") else { return false };
    let rest = rest
        .strip_prefix('-')
        .map_or(rest, |version| version.trim_start_matches(|c: char| c.is_ascii_digit()));
    rest == ".dylib" || rest.starts_with(".so") || (rest.starts_with('.') && rest.contains(".so"))
}

fn has_headers(folder: &Path) -> bool {
    entries(&folder.join("clang")).iter().any(|version| version.join("include/stddef.h").is_file())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(read) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = read.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::is_libclang;

    #[test]
    fn other_libraries_of_clang_are_not_libclang() {
        for name in [
            "libclang.so",
            "libclang-14.so",
            "libclang-14.so.14",
            "libclang.so.1",
            "libclang-14.0.6.so",
            "libclang.dylib",
        ] {
            assert!(is_libclang(name), "{name}");
        }
        for name in ["libclang-cpp.so", "libclangBasic.a", "libclang-cpp.so.14", "libclangd.so", "libclang.a"]
        {
            assert!(!is_libclang(name), "{name}");
        }
    }
}
