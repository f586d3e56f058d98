//! The program `rbees-workerd`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use api_types::ErrorDetail;
use clap::Parser;
use rbees_workerd::config::{Args, Command, Config, EnvSecrets};
use rbees_workerd::{capabilities, http, worker};
use tracing_subscriber::EnvFilter;

/// Holds the secret that callers must present.
const SECRET: &str = "RBEES_WORKER_SECRET";
/// Holds what this worker presents to its orchestrator.
const ORCHESTRATOR_TOKEN: &str = "RBEES_ORCHESTRATOR_TOKEN";
/// What is logged unless `RUST_LOG` says otherwise: llama.cpp's own lines only when they are errors.
const LOG_FILTER: &str = "info,llama-cpp-2=error";

/// How the native engine's threads wait for each other; read when the program is loaded.
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";
/// How often they look before they sleep. Measured on two idle cores, so short a look gives most
/// of what endless spinning gives (decode 1.2 to 1.3 times as fast as sleeping at once), and on
/// busy cores it takes nothing from the thread that is waited for.
const SPIN_COUNT: (&str, &str) = ("GOMP_SPINCOUNT", "1000");

fn main() -> ExitCode {
    let args = Args::parse();
    if args.command == Some(Command::Openapi) {
        return print(http::openapi::as_json().map_err(anyhow::Error::from));
    }
    if args.capabilities {
        let can = capabilities::capabilities();
        return print(if args.json {
            serde_json::to_string_pretty(&can).map(|text| text + "\n").map_err(anyhow::Error::from)
        } else {
            Ok(capabilities::as_text(&can))
        });
    }
    log_to_stderr();
    if cfg!(all(feature = "llama_cpp", unix)) {
        begin_again_with_sleeping_threads();
    }
    let secrets = EnvSecrets {
        callers: std::env::var(SECRET).ok(),
        orchestrator: std::env::var(ORCHESTRATOR_TOKEN).ok(),
    };
    match Config::new(args, secrets) {
        Ok(config) => serve(config),
        Err(error) => usage(&error),
    }
}

/// Starts this program over in the same process, with engine threads that soon sleep while they
/// wait.
///
/// OpenMP's threads spin by default. On a machine that does anything else beside inference they
/// then take the time that the thread they wait for would need: tokens come ten times slower. The
/// setting is read before `main`, so it can only be given to a program that starts. Whoever sets
/// it already is left alone.
fn begin_again_with_sleeping_threads() {
    use std::os::unix::process::CommandExt;
    if std::env::var_os(WAIT_POLICY).is_some() {
        return;
    }
    let outcome = std::env::current_exe().map(|program| {
        let mut again = std::process::Command::new(program);
        again.args(std::env::args_os().skip(1)).env(WAIT_POLICY, "passive");
        if std::env::var_os(SPIN_COUNT.0).is_none() {
            again.env(SPIN_COUNT.0, SPIN_COUNT.1);
        }
        again.exec()
    });
    let (Ok(error) | Err(error)) = outcome;
    tracing::warn!(event = "threads_will_spin", %error);
}

fn serve(config: Config) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(worker::run(config));
            // A step that never ends must not hold the process.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            tracing::error!(event = "no_runtime", %error);
            ExitCode::FAILURE
        }
    }
}

fn print(text: anyhow::Result<String>) -> ExitCode {
    match text.and_then(|text| Ok(std::io::stdout().write_all(text.as_bytes())?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(error: &ErrorDetail) -> ExitCode {
    let mut stderr = std::io::stderr();
    let _ = writeln!(stderr, "error: {}", error.message);
    if let Some(hint) = &error.hint {
        let _ = writeln!(stderr, "hint: {hint}");
    }
    ExitCode::from(2)
}

/// Lines for people on a terminal, JSON otherwise.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().flatten_event(true).init();
    }
}
