//! The orchestrator, with its defaults and a folder of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::machine;
use crate::subjects::{Programs, Running};

/// Starts it with these lines of configuration; the mock worker registers by itself.
pub fn start(
    programs: &Programs,
    folder: &Path,
    address: SocketAddr,
    lines: &str,
) -> anyhow::Result<Running> {
    let mut command = Command::new(programs.rbees_orcd.as_ref().context("its program is not given")?);
    command.arg("--bind").arg(address.to_string()).arg("--home").arg(folder.join("home"));
    // What the user configured must not change a figure.
    command.env("XDG_CONFIG_HOME", folder);
    // A closed loop of more connections than the queue has places would measure refusals.
    let configuration = folder.join("bench.toml");
    std::fs::write(&configuration, format!("queue_capacity = -1\n{lines}"))?;
    command.arg("--config").arg(configuration);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RBEES_") {
            command.env_remove(name);
        }
    }
    Running::start(machine::SUBJECT_CPU, command, folder)
}
