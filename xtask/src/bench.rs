//! `cargo xtask bench`: builds what is measured, brings what it is measured against, and runs it.

use std::ffi::OsString;

use crate::prerequisites::{self, Need};
use crate::process;
use crate::python::Venv;
use crate::release;
use crate::workspace::Workspace;

/// Measures relay and admission beside HAProxy and two routers; `--help` of the bench tells more.
#[derive(clap::Args)]
pub struct Args {
    /// The bench and its options, for example `relay --quick`.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Builds in release, installs the peers into the cache, and runs the bench.
pub fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    if args.rest.first().is_some_and(|bench| bench == "placement") {
        return placement(workspace, args);
    }
    let env = prerequisites::ensure(workspace, &[&Need::FOR_BUILD[..], &[Need::Venv]].concat())?;
    if let Err(error) = prerequisites::ensure(workspace, &[Need::Haproxy]) {
        eprintln!("warning: {error:#}");
    }
    release::build(workspace, &env)?;
    process::run(workspace.cargo().args(["build", "--release", "--locked", "--package", "bench"]))?;
    let sglang = Venv::with(workspace, "sglang-router", &["sglang-router==0.3.2"])?;
    let vllm = Venv::with(workspace, "vllm-router", &["vllm-router==0.1.17"])?;
    let smg = Venv::with(workspace, "smg", &["smg==1.13.0"])?;
    let mut bench = std::process::Command::new(workspace.program("bench"));
    bench.args(&args.rest).current_dir(&workspace.root);
    bench.arg("--rbees-orcd").arg(workspace.program("rbees-orcd"));
    bench.arg("--sglang-router").arg(sglang.bin().join("sglang-router"));
    bench.arg("--vllm-router").arg(vllm.bin().join("vllm-router"));
    bench.arg("--smg").arg(smg.bin().join("smg"));
    if args.rest.first().is_some_and(|bench| bench == "queue")
        && let Some(folder) =
            process::find("postgres").and_then(|path| Some(path.canonicalize().ok()?.parent()?.to_owned()))
    {
        bench.arg("--postgres-bin").arg(folder);
    }
    if let Some(haproxy) = process::find("haproxy") {
        bench.arg("--haproxy").arg(haproxy);
    }
    process::run(&mut bench)
}

/// The brain in the bench's own process needs no peer and no daemon.
fn placement(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    process::run(workspace.cargo().args(["build", "--release", "--locked", "--package", "bench"]))?;
    let mut bench = std::process::Command::new(workspace.program("bench"));
    process::run(bench.args(&args.rest).current_dir(&workspace.root))
}
