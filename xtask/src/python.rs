//! Python environments of our own, in the cache: nothing is installed into the user's Python.

use std::path::PathBuf;
use std::process::Command;

use crate::process;
use crate::workspace::Workspace;

/// A virtual environment that holds exactly the packages it was made for.
pub struct Venv {
    folder: PathBuf,
}

impl Venv {
    /// Makes `name` with `packages` (`name==version`) unless it is there already.
    ///
    /// # Errors
    /// When Python cannot make one, or pip cannot install a package.
    pub fn with(workspace: &Workspace, name: &str, packages: &[&str]) -> anyhow::Result<Self> {
        let venv = Self { folder: workspace.cache.join("venv").join(name) };
        let mark = venv.folder.join("rbees-packages.txt");
        let wanted = packages.join("\n");
        if std::fs::read_to_string(&mark).is_ok_and(|made| made == wanted) {
            return Ok(venv);
        }
        eprintln!("installing {} into {}", packages.join(" "), venv.folder.display());
        process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv.folder))?;
        process::run(venv.python_command().args(["-m", "pip", "install", "--quiet"]).args(packages))?;
        std::fs::write(&mark, wanted)?;
        Ok(venv)
    }

    /// Where its programs lie.
    pub fn bin(&self) -> PathBuf {
        self.folder.join(if cfg!(windows) { "Scripts" } else { "bin" })
    }

    /// Its interpreter.
    pub fn python(&self) -> PathBuf {
        self.bin().join("python")
    }

    /// The folder its packages were unpacked into.
    ///
    /// # Errors
    /// When its Python does not answer.
    pub fn packages(&self) -> anyhow::Result<PathBuf> {
        let ask = "import sysconfig; print(sysconfig.get_paths()['platlib'])";
        Ok(process::read(self.python_command().args(["-c", ask]))?.trim().into())
    }

    fn python_command(&self) -> Command {
        Command::new(self.python())
    }
}
