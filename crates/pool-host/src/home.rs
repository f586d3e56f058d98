//! Where a pool keeps its files.

use std::path::{Path, PathBuf};

use api_types::{ErrorCode, ErrorDetail, WorkerId};
use etcetera::BaseStrategy;

use crate::errors::storage;

/// The state root of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// The folder of `--home`, else of `RBEES_HOME`, else `$XDG_DATA_HOME/rbees`; made when absent.
    ///
    /// # Errors
    /// `INVALID_CONFIG` when no folder can be named, `STORAGE_FAILED` when it cannot be made.
    pub fn open(flag: Option<&Path>) -> Result<Self, ErrorDetail> {
        let variable = std::env::var_os("RBEES_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
        match flag.map(Path::to_path_buf).or(variable) {
            Some(root) => Self::at(&root),
            None => Self::at(&default_root()?),
        }
    }

    /// A home in this folder.
    ///
    /// # Errors
    /// `INVALID_CONFIG` for a path that is not UTF-8, `STORAGE_FAILED` when it cannot be made.
    pub fn at(root: &Path) -> Result<Self, ErrorDetail> {
        let root = std::path::absolute(root).map_err(|error| storage("named", root, &error))?;
        if root.to_str().is_none() {
            let message = format!("the home {} is not UTF-8", root.display());
            return Err(ErrorDetail::new(ErrorCode::InvalidConfig, message).with_field("home"));
        }
        let home = Self(root);
        for folder in [home.root().to_path_buf(), home.models(), home.workers(), home.logs()] {
            private_folder(&folder)?;
        }
        Ok(home)
    }

    /// The folder itself, absolute.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// The folder as text.
    pub fn text(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }

    /// The models and their catalog.
    pub fn models(&self) -> PathBuf {
        self.0.join("models")
    }

    /// The catalog.
    pub fn catalog(&self) -> PathBuf {
        self.models().join("catalog.json")
    }

    /// What the operator bounds.
    pub fn config(&self) -> PathBuf {
        self.0.join("pool.toml")
    }

    /// Records and reports of workers.
    pub fn workers(&self) -> PathBuf {
        self.0.join("runtime/workers")
    }

    /// The record of a worker.
    pub fn record(&self, id: &WorkerId) -> PathBuf {
        self.workers().join(format!("{id}.json"))
    }

    /// The report of a worker.
    pub fn report(&self, id: &WorkerId) -> PathBuf {
        self.workers().join(format!("{id}.report.json"))
    }

    /// Held by whoever starts the worker of this id.
    pub fn spawn_lock(&self, id: &WorkerId) -> PathBuf {
        self.workers().join(format!("{id}.lock"))
    }

    /// Logs of workers.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// Where a file of the catalog lies: relative to the models folder, or absolute.
    pub fn model_file(&self, path: &str) -> PathBuf {
        self.models().join(path)
    }

    /// A path as the catalog keeps it.
    pub fn catalog_path(&self, path: &Path) -> String {
        path.strip_prefix(self.models()).unwrap_or(path).to_string_lossy().into_owned()
    }
}

fn default_root() -> Result<PathBuf, ErrorDetail> {
    let base = etcetera::choose_base_strategy().map_err(|error| {
        ErrorDetail::new(ErrorCode::InvalidConfig, format!("no home folder is known: {error}"))
            .with_hint("say where: --home DIR, or RBEES_HOME")
    })?;
    Ok(base.data_dir().join("rbees"))
}

fn private_folder(folder: &Path) -> Result<(), ErrorDetail> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| storage("made", folder, &error))
}
