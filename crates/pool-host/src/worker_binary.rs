//! The worker program: where it lies and what it can do.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use api_types::worker::WorkerCapabilities;
use api_types::{ErrorCode, ErrorDetail, PROTOCOL};
use tokio::process::Command;

const PROGRAM: &str = "rbees-workerd";
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// Looks in `RBEES_BIN_DIR`, beside this program, then on the PATH.
///
/// # Errors
/// `SPAWN_FAILED` with the command that builds it.
pub fn find() -> Result<PathBuf, ErrorDetail> {
    let named = std::env::var_os("RBEES_BIN_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = named.into_iter().chain(beside).chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(PROGRAM)).find(|program| is_program(program)).ok_or_else(|| {
        let message = "rbees-workerd is neither in RBEES_BIN_DIR, nor beside rbees-pool, nor on the PATH";
        ErrorDetail::new(ErrorCode::SpawnFailed, message).with_hint(
            "build it beside rbees-pool: cargo build --release -p rbees-workerd --features llama_cpp",
        )
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// What the program says it can do.
///
/// # Errors
/// `SPAWN_FAILED` when it does not say so, `VERSION_SKEW` when it speaks another protocol.
pub async fn capabilities(program: &Path) -> Result<WorkerCapabilities, ErrorDetail> {
    let failed = |reason: String| {
        let message = format!("{} does not say what it can do: {reason}", program.display());
        ErrorDetail::new(ErrorCode::SpawnFailed, message)
            .with_hint("build all programs of rbees from one version")
    };
    let mut command = Command::new(program);
    command.args(["--capabilities", "--json"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ANSWERS_WITHIN, command.output())
        .await
        .map_err(|_| failed("no answer in 20 s".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{} {}", output.status, said.lines().last().unwrap_or_default())));
    }
    let found: WorkerCapabilities =
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    if found.protocol != PROTOCOL {
        let message =
            format!("{} speaks protocol {}, rbees-pool speaks {PROTOCOL}", program.display(), found.protocol);
        return Err(
            ErrorDetail::new(ErrorCode::VersionSkew, message).with_hint("install one version of both")
        );
    }
    Ok(found)
}
