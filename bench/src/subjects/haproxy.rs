//! HAProxy: one thread, keep-alive on both sides, no delay of small writes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::machine;
use crate::subjects::{Programs, Running};

/// Starts it in front of `mock`.
pub fn start(
    programs: &Programs,
    folder: &Path,
    address: SocketAddr,
    mock: SocketAddr,
) -> anyhow::Result<Running> {
    let configuration = folder.join("haproxy.cfg");
    std::fs::write(&configuration, text(address, mock))?;
    let mut command = Command::new(programs.haproxy.as_ref().context("its program is not given")?);
    command.arg("-db").arg("-f").arg(configuration);
    Running::start(machine::SUBJECT_CPU, command, folder)
}

fn text(address: SocketAddr, mock: SocketAddr) -> String {
    format!(
        "global\n  maxconn 4000\n  nbthread 1\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n  \
         option http-no-delay\n\
         frontend front\n  bind {address}\n  default_backend back\n\
         backend back\n  http-reuse always\n  server mock {mock}\n"
    )
}
