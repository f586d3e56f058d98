//! Starting `rbees-orcd`, or finding the one that runs.

use std::fs::{File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use api_types::{ErrorCode, ErrorDetail};
use tokio::process::{Child, Command};

use super::lock::{self, Holder, Running};
use super::port;
use crate::context::Context;
use crate::detail;

const PROGRAM: &str = "rbees-orcd";
/// Where it listens unless told otherwise.
const DEFAULT_BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// How long a start may take; opening a large database is the slowest part of it.
const START: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(50);
/// How much of its log is shown when it does not start, in bytes.
const SHOWN_LOG: usize = 2_000;

/// Finds the orchestrator of `home`, or starts one on `bind`; gives its address once it answers.
///
/// A process that is started is put into `child` at once, so that whoever drops this future
/// half-way still knows what to stop.
pub async fn ensure(
    context: &Context,
    home: &Path,
    bind: Option<SocketAddr>,
    child: &mut Option<Child>,
) -> Result<String, ErrorDetail> {
    let began = Instant::now();
    loop {
        match lock::holder(home)? {
            Holder::Nobody => return start(context, home, bind.unwrap_or(DEFAULT_BIND), child).await,
            Holder::Running(running) if answers(context, &running).await => return reuse(running, bind),
            Holder::Running(_) | Holder::Starting if began.elapsed() < START => {
                tokio::time::sleep(TICK).await
            }
            Holder::Running(_) | Holder::Starting => {
                let message = "an orchestrator holds this home and does not answer";
                return Err(
                    ErrorDetail::new(ErrorCode::NoCapacity, message).with_hint("rbees down, then try again")
                );
            }
        }
    }
}

/// The one that runs, unless another port was asked for.
fn reuse(running: Running, bind: Option<SocketAddr>) -> Result<String, ErrorDetail> {
    let elsewhere =
        |bind: SocketAddr| bind.port() != 0 && !running.url.ends_with(&format!(":{}", bind.port()));
    if bind.is_some_and(elsewhere) {
        let message = format!("an orchestrator of this home runs already, at {}", running.url);
        return Err(ErrorDetail::new(ErrorCode::PortTaken, message)
            .with_hint("leave out --bind to use it, or stop it: rbees down"));
    }
    Ok(running.url)
}

async fn answers(context: &Context, running: &Running) -> bool {
    match context.client_of(&running.url) {
        Ok(client) => client.health().await.is_ok(),
        Err(_) => false,
    }
}

async fn start(
    context: &Context,
    home: &Path,
    bind: SocketAddr,
    child: &mut Option<Child>,
) -> Result<String, ErrorDetail> {
    port::check_free(bind)?;
    let log_path = log_path(home);
    let log = open_log(&log_path)?;
    let log_from = log.metadata().map_or(0, |meta| meta.len());
    let started = child.insert(launch(home, bind, log, &log_path)?);
    await_start(context, home, started, &log_path, log_from).await
}

fn launch(home: &Path, bind: SocketAddr, log: File, log_path: &Path) -> Result<Child, ErrorDetail> {
    let program = beside(PROGRAM)?;
    let errors = log.try_clone().map_err(|error| detail::file("opened", log_path, &error))?;
    Command::new(&program)
        .arg("--bind")
        .arg(bind.to_string())
        .arg("--home")
        .arg(home)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        // Ctrl-C in this terminal is for this command, which then stops it in order.
        .process_group(0)
        .spawn()
        .map_err(|error| detail::file("started", &program, &error))
}

async fn await_start(
    context: &Context,
    home: &Path,
    child: &mut Child,
    log: &Path,
    log_from: u64,
) -> Result<String, ErrorDetail> {
    let began = Instant::now();
    while began.elapsed() < START {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(ended(&format!("the orchestrator ended at once ({status})"), log, log_from));
        }
        // The lock is only read here: asking for it could get in the way of the one that starts.
        let ours = lock::written(home).filter(|running| Some(running.pid) == child.id());
        if let Some(running) = ours
            && answers(context, &running).await
        {
            return Ok(running.url);
        }
        tokio::time::sleep(TICK).await;
    }
    Err(ended("the orchestrator did not answer in time", log, log_from))
}

fn ended(what: &str, log: &Path, from: u64) -> ErrorDetail {
    let text = std::fs::read(log).unwrap_or_default();
    let new = text.get(usize::try_from(from).unwrap_or(0)..).unwrap_or_default();
    let tail = new.get(new.len().saturating_sub(SHOWN_LOG)..).unwrap_or_default();
    let said = String::from_utf8_lossy(tail);
    ErrorDetail::new(ErrorCode::Internal, format!("{what}; its log says: {}", said.trim()))
        .with_hint(format!("the whole log: {}", log.display()))
}

/// Where the orchestrator's log goes.
pub fn log_path(home: &Path) -> PathBuf {
    home.join("logs/orchestrator.log")
}

fn open_log(path: &Path) -> Result<File, ErrorDetail> {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| OpenOptions::new().create(true).append(true).open(path))
        .map_err(|error| detail::file("opened", path, &error))
}

/// A program of ours beside this one.
pub fn beside(name: &str) -> Result<PathBuf, ErrorDetail> {
    let exe = std::env::current_exe()
        .map_err(|error| detail::internal(format!("this program's own path: {error}")))?;
    // `llorch` may be a link in a folder of its own.
    let exe = exe.canonicalize().unwrap_or(exe);
    let path = exe.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(ErrorDetail::new(
        ErrorCode::NotFound,
        format!("{name} is not beside this program: {}", path.display()),
    )
    .with_hint(format!("build it: cargo build --release -p {name}")))
}
