//! What a build or a test needs of the machine: found, else installed, else named with the exact
//! command.
//!
//! The warm path only looks at files and starts one Python, so that it costs next to nothing.

mod libclang;
mod need;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;

use anyhow::bail;

pub use need::Need;

use crate::process;
use crate::workspace::Workspace;

/// What inner commands get so that they find what we installed for ourselves.
#[derive(Debug, Default)]
pub struct BuildEnv {
    folders: Vec<PathBuf>,
    variables: Vec<(&'static str, OsString)>,
}

impl BuildEnv {
    /// Puts `folder` in front of `PATH`.
    pub fn add_folder(&mut self, folder: PathBuf) {
        self.folders.push(folder);
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &'static str, value: impl AsRef<OsStr>) {
        self.variables.push((name, value.as_ref().to_owned()));
    }

    /// Applies all of it to a command.
    pub fn apply(&self, command: &mut Command) {
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        if !self.folders.is_empty() {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = self.folders.iter().cloned().chain(std::env::split_paths(&path));
            if let Ok(joined) = std::env::join_paths(folders) {
                command.env("PATH", joined);
            }
        }
    }
}

/// Makes sure that all of `needs` are met.
///
/// As root on Debian, what is missing comes from apt; else, and where apt fails, what a Python
/// package can give goes into the cache.
///
/// # Errors
/// When something is still missing: each with the command that installs it.
pub fn ensure(workspace: &Workspace, needs: &[Need]) -> anyhow::Result<BuildEnv> {
    let mut env = BuildEnv::default();
    let missing: Vec<Need> = needs.iter().copied().filter(|need| !need.is_met()).collect();
    if !missing.is_empty() && can_use_apt() {
        install_with_apt(&missing);
    }
    let mut unmet = Vec::new();
    for need in missing.into_iter().filter(|need| !need.is_met()) {
        if !need.take_from_python(workspace, &mut env)? {
            unmet.push(need);
        }
    }
    if !unmet.is_empty() {
        let lines: Vec<String> = unmet.iter().map(|need| need.advice()).collect();
        bail!("this machine lacks:\n  {}\nInstall that and run the same command again.", lines.join("\n  "));
    }
    if needs.contains(&Need::Libclang) {
        libclang::add_headers(&mut env);
    }
    Ok(env)
}

fn can_use_apt() -> bool {
    process::find("apt-get").is_some() && process::is_root()
}

/// A failure is not fatal here: what is still missing afterwards is looked at again by the caller.
fn install_with_apt(missing: &[Need]) {
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.debian_packages()).copied().collect();
    eprintln!("installing with apt-get: {}", packages.join(" "));
    for arguments in [&["update", "-q"][..], &["install", "-q", "-y", "--no-install-recommends"]] {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        if arguments.contains(&"install") {
            apt.args(&packages);
        }
        if let Err(error) = process::run(&mut apt) {
            eprintln!("warning: {error:#}");
        }
    }
}
