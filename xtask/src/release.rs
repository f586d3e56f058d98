//! The release build: one set of packages and features for running, testing and measuring, so that
//! the native engine is compiled once.

use std::process::Command;

use crate::prerequisites::BuildEnv;
use crate::process;
use crate::workspace::Workspace;

/// What the release build holds.
const PACKAGES: [&str; 4] = ["rbees-orcd", "rbees-pool", "rbees-ctl", "rbees-workerd"];
const FEATURES: &str = "rbees-workerd/llama_cpp";

/// Adds the packages and features of the release build to a cargo command.
pub fn select(command: &mut Command) -> &mut Command {
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    command.args(["--release", "--locked", "--features", FEATURES])
}

/// Builds the programs, and `llorch` beside `rbees`.
///
/// # Errors
/// When the build fails, or `llorch` cannot be made.
pub fn build(workspace: &Workspace, env: &BuildEnv) -> anyhow::Result<()> {
    let mut cargo = workspace.cargo();
    cargo.arg("build");
    env.apply(&mut cargo);
    process::run(select(&mut cargo))?;
    link_llorch(workspace)
}

/// `llorch` is another name of `rbees`, not another program.
#[cfg(unix)]
fn link_llorch(workspace: &Workspace) -> anyhow::Result<()> {
    let link = workspace.program("llorch");
    if std::fs::read_link(&link).is_ok_and(|to| to.as_os_str() == "rbees") {
        return Ok(());
    }
    if link.symlink_metadata().is_ok() {
        std::fs::remove_file(&link)?;
    }
    Ok(std::os::unix::fs::symlink("rbees", &link)?)
}

#[cfg(not(unix))]
fn link_llorch(workspace: &Workspace) -> anyhow::Result<()> {
    std::fs::copy(workspace.program("rbees.exe"), workspace.program("llorch.exe"))?;
    Ok(())
}
