//! Where things lie: the checkout, cargo's target folder, the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde::Deserialize;

use crate::process;

/// The folders that every task needs.
pub struct Workspace {
    /// The root of the checkout.
    pub root: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
    /// What is fetched once and kept between checkouts: `$XDG_CACHE_HOME/rbees`, else `~/.cache/rbees`.
    pub cache: PathBuf,
    /// The packages of the workspace, by name.
    pub members: Vec<Member>,
}

/// A package of the workspace.
#[derive(Debug, Clone, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its `Cargo.toml`.
    pub manifest_path: PathBuf,
    /// What it names as a dependency, of every kind.
    pub dependencies: Vec<Dependency>,
}

/// A dependency as a manifest names it.
#[derive(Debug, Clone, Deserialize)]
pub struct Dependency {
    /// The package.
    pub name: String,
}

#[derive(Deserialize)]
struct Metadata {
    workspace_root: PathBuf,
    target_directory: PathBuf,
    packages: Vec<Member>,
}

impl Workspace {
    /// Asks cargo about the checkout that this program was built from.
    ///
    /// # Errors
    /// When cargo cannot read the workspace, or neither `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn locate() -> anyhow::Result<Self> {
        let mut cargo = Command::new(cargo());
        cargo.args(["metadata", "--no-deps", "--format-version", "1"]);
        cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        let metadata: Metadata =
            serde_json::from_str(&process::read(&mut cargo)?).context("reading `cargo metadata`")?;
        let mut members = metadata.packages;
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            root: metadata.workspace_root,
            target: metadata.target_directory,
            cache: cache_folder()?,
            members,
        })
    }

    /// `cargo`, run in the root of the checkout.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(cargo());
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        // Set by the cargo that runs this program; they would make the inner one rebuild things.
        for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"] {
            command.env_remove(name);
        }
        command
    }

    /// The release build of program `name`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.release_folder().join(name)
    }

    /// Where release builds lie.
    pub fn release_folder(&self) -> PathBuf {
        self.target.join("release")
    }

    /// The folder for our own copies of tools.
    pub fn tools(&self) -> PathBuf {
        self.cache.join("tools")
    }
}

fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn cache_folder() -> anyhow::Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set; set it or XDG_CACHE_HOME")?)
            .join(".cache"),
    };
    Ok(base.join("rbees"))
}
