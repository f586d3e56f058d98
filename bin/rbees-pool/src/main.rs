//! `rbees-pool`: models, hardware and worker processes of the machine it runs on.
//!
//! Listens to nothing and needs no daemon. `remote` is the same program with its arguments on
//! standard input, which is how other machines ask it.

mod cli;
mod commands;
mod interrupt;
mod remote;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use api_types::ErrorDetail;
use clap::Parser;
use cli_kit::{ExitStatus, Printer, ProgressView, finish};
use pool_host::{Home, Host, Settings};

use cli::{Args, Command};
use interrupt::Interrupt;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return told(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            return ExitStatus::Failed.into();
        }
    };
    let code = runtime.block_on(begin(args));
    // Work that was given up, such as hashing a large file, is not waited for.
    runtime.shutdown_background();
    code
}

async fn begin(args: Args) -> ExitCode {
    if !matches!(args.command, Command::Remote) {
        let printer = Printer::new(args.output.format());
        return run(args, None, printer, Interrupt::signals()).await;
    }
    let printer = Printer::new(args.output.format());
    match remote::read_request().await {
        Ok((request, stdin)) => run_remote(&args, request, stdin).await,
        Err(error) => finish(&printer, Err(error)),
    }
}

/// Runs the arguments of a request as if they stood on the command line.
async fn run_remote(outer: &Args, request: api_types::pool::RemoteRequest, stdin: remote::Input) -> ExitCode {
    let words = std::iter::once("rbees-pool".to_owned()).chain(request.args).map(OsString::from);
    let mut inner = match Args::try_parse_from(words) {
        Ok(inner) => inner,
        Err(error) => return told(&error),
    };
    inner.home = inner.home.or_else(|| outer.home.clone());
    let printer = Printer::for_remote(inner.output.format(), request.columns);
    if matches!(inner.command, Command::Remote) {
        return finish(&printer, Err(remote::nested()));
    }
    run(inner, request.orchestrator_token, printer, Interrupt::signals_or_lost_caller(stdin)).await
}

/// Runs a command; an interruption drops it, which keeps part files and kills half-started workers.
async fn run(args: Args, token: Option<String>, printer: Printer, mut interrupt: Interrupt) -> ExitCode {
    let progress = Arc::new(ProgressView::new(&printer));
    let outcome = tokio::select! {
        outcome = command(&args, token, &printer, &progress) => outcome,
        () = interrupt.wait() => Err(interrupt::error()),
    };
    progress.clear();
    finish(&printer, outcome)
}

async fn command(
    args: &Args,
    orchestrator_token: Option<String>,
    printer: &Printer,
    progress: &Arc<ProgressView>,
) -> Result<ExitStatus, ErrorDetail> {
    let home = Home::open(args.home.as_deref())?;
    let shown = Arc::clone(progress);
    let mut settings = Settings { orchestrator_token, ..Settings::from_env() };
    if let Some(timeout) = args.command.timeout() {
        settings.spawn_timeout = timeout;
    }
    if let Some(grace) = args.command.grace() {
        settings.stop_grace = grace;
    }
    let host = Host::new(home, settings, Arc::new(move |step| shown.show(&step)));
    commands::run(&args.command, &host, printer).await?;
    Ok(ExitStatus::Ok)
}

/// Help and mistakes of the command line, as clap words them.
fn told(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    let code = u8::try_from(error.exit_code()).unwrap_or(2);
    ExitStatus::from_code(code).into()
}
