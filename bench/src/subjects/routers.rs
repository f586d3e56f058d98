//! The LLM routers from the Python package index, near their defaults: round robin, metrics on,
//! quiet logs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::machine;
use crate::subjects::{Programs, Running, process};

/// Starts SGLang's router in front of `mock`.
pub fn sglang(
    programs: &Programs,
    folder: &Path,
    address: SocketAddr,
    mock: SocketAddr,
) -> anyhow::Result<Running> {
    let mut command = Command::new(programs.sglang_router.as_ref().context("its program is not given")?);
    command.arg("launch");
    router(command, folder, address, mock)
}

/// Starts vLLM's router in front of `mock`.
pub fn vllm(
    programs: &Programs,
    folder: &Path,
    address: SocketAddr,
    mock: SocketAddr,
) -> anyhow::Result<Running> {
    let command = Command::new(programs.vllm_router.as_ref().context("its program is not given")?);
    router(command, folder, address, mock)
}

/// Starts SMG in front of `mock`.
pub fn smg(
    programs: &Programs,
    folder: &Path,
    address: SocketAddr,
    mock: SocketAddr,
) -> anyhow::Result<Running> {
    let mut command = Command::new(programs.smg.as_ref().context("its program is not given")?);
    command.arg("launch");
    router(command, folder, address, mock)
}

fn router(
    mut command: Command,
    folder: &Path,
    address: SocketAddr,
    mock: SocketAddr,
) -> anyhow::Result<Running> {
    let metrics = process::free_address()?.port().to_string();
    command
        .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
        .args(["--worker-urls", &format!("http://{mock}")])
        .args(["--policy", "round_robin", "--log-level", "error"])
        .args(["--prometheus-host", "127.0.0.1", "--prometheus-port", &metrics])
        // It would look for a tokenizer on the network.
        .env("HF_HUB_OFFLINE", "1")
        .current_dir(folder);
    Running::start(machine::SUBJECT_CPU, command, folder)
}
