//! The test runner, installed when the machine has none.

use std::process::Command;

use crate::process;
use crate::workspace::Workspace;

const VERSION: &str = "0.9.143";

/// A `cargo nextest` command of this workspace; the runner is built into the cache when missing.
pub fn command(workspace: &Workspace) -> anyhow::Result<Command> {
    let mut cargo = workspace.cargo();
    let own = workspace.tools().join("bin");
    if !process::succeeds(Command::new("cargo-nextest").args(["nextest", "--version"])) {
        if !own.join("cargo-nextest").is_file() {
            install(workspace)?;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        cargo.env("PATH", std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&path)))?);
    }
    cargo.arg("nextest");
    Ok(cargo)
}

fn install(workspace: &Workspace) -> anyhow::Result<()> {
    eprintln!("cargo-nextest is missing; building it once, which takes some minutes");
    let mut cargo = workspace.cargo();
    cargo.args(["install", "--locked", "--version", VERSION, "cargo-nextest", "--root"]);
    process::run(cargo.arg(workspace.tools()))
}
