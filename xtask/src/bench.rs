//! `cargo xtask bench`: builds what is measured, brings what it is measured against, and runs it.

use std::ffi::OsString;

use crate::models;
use crate::prerequisites::{self, Need};
use crate::process;
use crate::python::Venv;
use crate::release;
use crate::workspace::Workspace;
use llama_server::LlamaServer;

mod llama_server;

/// Measures rbees beside its peers; `--help` of the bench tells more.
#[derive(clap::Args)]
pub struct Args {
    /// The bench and its options, for example `relay --quick`.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Builds in release, installs the peers into the cache, and runs the bench.
pub fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    match args.rest.first().and_then(|bench| bench.to_str()) {
        Some("placement") => return placement(workspace, args),
        Some("worker") => return worker(workspace, args),
        _ => {}
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

/// The worker beside llama-server, on the small model in its own format and in Q8_0.
fn worker(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    let env = prerequisites::ensure(workspace, &Need::FOR_BUILD)?;
    release::build(workspace, &env)?;
    process::run(workspace.cargo().args(["build", "--release", "--locked", "--package", "bench"]))?;
    let peer = LlamaServer::ensure(workspace, &env)?;
    let model = models::ensure(workspace)?.join("smollm2-135m-instruct-q4_1.gguf");
    let mut bench = std::process::Command::new(workspace.program("bench"));
    bench.args(&args.rest).current_dir(&workspace.root);
    bench.arg("--rbees-workerd").arg(workspace.program("rbees-workerd"));
    bench.arg("--rbees-orcd").arg(workspace.program("rbees-orcd"));
    bench.arg("--llama-server").arg(peer.program());
    bench.arg("--model").arg(&model).arg("--model").arg(peer.as_q8_0(workspace, &model)?);
    process::run(&mut bench)
}

/// The brain in the bench's own process needs no peer and no daemon.
fn placement(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    process::run(workspace.cargo().args(["build", "--release", "--locked", "--package", "bench"]))?;
    let mut bench = std::process::Command::new(workspace.program("bench"));
    process::run(bench.args(&args.rest).current_dir(&workspace.root))
}
