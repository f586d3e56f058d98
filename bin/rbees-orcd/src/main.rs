//! `rbees-orcd`: flags, logs, signals, exit codes.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use api_types::ErrorCode;
use clap::{Parser, Subcommand};
use rbees_orcd::config::{Config, Layers, Problem};
use rbees_orcd::http::openapi;
use rbees_orcd::logs::Logs;
use rbees_orcd::server::{self, DriverError, Server, StartError};
use rbees_orcd::store::{Class, StoreError};
use tracing_subscriber::EnvFilter;

/// Requests and tokens come and go by the ten thousand per second, and every one allocates.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Something failed.
const FAILED: u8 = 1;
/// The database is damaged, of a newer rbees, or of another program.
const BAD_DATA: u8 = 65;
/// Another orchestrator uses the state root.
const IN_USE: u8 = 73;
/// The database failed; a restart may help.
const TRY_AGAIN: u8 = 75;
/// The database may not be written to.
const NO_PERMISSION: u8 = 77;
/// The configuration cannot be used.
const BAD_CONFIG: u8 = 78;

/// The orchestrator of rbees: one address, one queue, one scheduler that explains itself.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Configuration file; read after /etc/rbees and the user's own.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port to listen on [default: 127.0.0.1:8080]; port 0 takes a free one.
    #[arg(long, global = true, value_name = "ADDR:PORT")]
    bind: Option<String>,
    /// State root [default: $RBEES_HOME, else $XDG_DATA_HOME/rbees].
    #[arg(long, global = true, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Where the bound address is written once it is listened on.
    #[arg(long, hide = true, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Looks at the configuration without starting.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Looks at the database of a stopped orchestrator.
    #[command(subcommand)]
    Db(DbCommand),
    /// Prints the OpenAPI document.
    Openapi,
}

#[derive(Debug, Subcommand)]
enum DbCommand {
    /// Reads all of it, as a start would and every page beside; says whether it is sound.
    Check,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Says everything that is wrong with it.
    Check,
    /// Shows every key with its value.
    Show {
        /// Also where each value comes from.
        #[arg(long)]
        origin: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let layers = layers(&cli);
    match &cli.command {
        Some(Command::Openapi) => print_openapi(),
        Some(Command::Config(ConfigCommand::Check)) => match Config::from_layers(&layers) {
            Ok(_) => say("the configuration is fine\n"),
            Err(problems) => refuse_config(&problems),
        },
        Some(Command::Config(ConfigCommand::Show { origin })) => say(&layers.shown(*origin)),
        Some(Command::Db(DbCommand::Check)) => match Config::from_layers(&layers) {
            Ok(config) => check_database(&config),
            Err(problems) => refuse_config(&problems),
        },
        None => match Config::from_layers(&layers) {
            Ok(config) => serve(config, cli.ready_file.as_deref()),
            Err(problems) => refuse_config(&problems),
        },
    }
}

fn layers(cli: &Cli) -> Layers {
    let mut layers = Layers::read(cli.config.as_deref(), |name| std::env::var(name).ok());
    if let Some(bind) = &cli.bind {
        layers.set_flag("bind", bind);
    }
    if let Some(home) = &cli.home {
        layers.set_flag("home", &home.to_string_lossy());
    }
    layers
}

fn serve(config: Config, ready_file: Option<&Path>) -> ExitCode {
    let logs = match start_logging() {
        Ok(logs) => logs,
        Err(error) => {
            return fail(FAILED, &format!("the thread that writes logs could not be started: {error}"));
        }
    };
    let ended = serve_logged(config, ready_file);
    logs.iter().for_each(Logs::flush);
    ended
}

fn serve_logged(config: Config, ready_file: Option<&Path>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &format!("the runtime could not be started: {error}")),
    };
    runtime.block_on(async {
        let server = match Server::start(config).await {
            Ok(server) => server,
            Err(error) => {
                let (code, exit) = sorted(&error);
                return fail(exit, &format!("{code}: {error}"));
            }
        };
        if let Err(error) = announce(server.address, ready_file) {
            return fail(FAILED, &format!("the ready file could not be written: {error}"));
        }
        run(server).await
    })
}

/// Serves until a signal or until the database fails.
async fn run(mut server: Server) -> ExitCode {
    let stopped = tokio::select! {
        signal = signalled() => {
            tracing::info!(code = "STOPPING", signal, "stopping; jobs that run go on in their workers");
            server.stop().await
        }
        ended = server.driver_failed() => ended,
    };
    match stopped {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(code = "DRIVER_FAILED", %error, "the driver ended; nothing was done that is not on disk");
            ExitCode::from(match &error {
                DriverError::Store(error) => sorted_store(error).1,
                DriverError::Panicked => TRY_AGAIN,
            })
        }
    }
}

async fn signalled() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!(code = "NO_SIGNALS", "signals cannot be listened for; only SIGKILL ends this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Tells people and programs where we listen.
fn announce(address: SocketAddr, ready_file: Option<&Path>) -> std::io::Result<()> {
    let _ = writeln!(std::io::stdout(), "listening on http://{address}");
    let _ = std::io::stdout().flush();
    tracing::info!(code = "READY", %address, version = env!("CARGO_PKG_VERSION"), "rbees-orcd is ready");
    if let Some(path) = ready_file {
        let draft = path.with_extension("tmp");
        std::fs::write(&draft, format!("http://{address}\n"))?;
        std::fs::rename(draft, path)?;
    }
    Ok(())
}

/// Pretty on a terminal, JSON elsewhere; always to standard error. Gives what is to be flushed at
/// the end.
fn start_logging() -> std::io::Result<Option<Logs>> {
    let filter = EnvFilter::try_from_env("RBEES_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    if std::io::stderr().is_terminal() {
        builder.with_writer(std::io::stderr).init();
        return Ok(None);
    }
    let logs = Logs::start()?;
    builder.with_writer(logs.clone()).json().flatten_event(true).init();
    Ok(Some(logs))
}

fn print_openapi() -> ExitCode {
    match openapi::text() {
        Ok(text) => say(&text),
        Err(error) => fail(FAILED, &format!("the document could not be written: {error}")),
    }
}

fn refuse_config(problems: &[Problem]) -> ExitCode {
    for problem in problems {
        let _ = writeln!(std::io::stderr(), "rbees-orcd: {problem}");
    }
    ExitCode::from(BAD_CONFIG)
}

/// The stable word and the exit code of a failed start.
fn sorted(error: &StartError) -> (ErrorCode, u8) {
    match error {
        StartError::InUse { .. } => (ErrorCode::InvalidConfig, IN_USE),
        StartError::Store { error, .. } => sorted_store(error),
        StartError::Bind { error, .. } if error.kind() == std::io::ErrorKind::AddrInUse => {
            (ErrorCode::PortTaken, FAILED)
        }
        StartError::Bind { .. } => (ErrorCode::InvalidConfig, BAD_CONFIG),
        StartError::Home { error, .. } if is_not_permitted(error) => {
            (ErrorCode::StorageFailed, NO_PERMISSION)
        }
        StartError::Policy(error) => (error.code, BAD_CONFIG),
        StartError::Home { .. } => (ErrorCode::StorageFailed, FAILED),
        StartError::Thread(_) => (ErrorCode::Internal, FAILED),
    }
}

fn sorted_store(error: &StoreError) -> (ErrorCode, u8) {
    match error.class() {
        Class::Full => (ErrorCode::StorageFull, TRY_AGAIN),
        Class::Busy | Class::Broken => (ErrorCode::StorageFailed, TRY_AGAIN),
        Class::NotWritable => (ErrorCode::StorageFailed, NO_PERMISSION),
        Class::Unusable => (ErrorCode::StorageFailed, BAD_DATA),
    }
}

fn is_not_permitted(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
}

fn check_database(config: &Config) -> ExitCode {
    match server::check_database(&config.home) {
        Ok(report) => say(&format!(
            "the database is sound: {} jobs, {} of them not ended, {} workers, {} pools\n",
            report.jobs, report.open, report.workers, report.pools
        )),
        Err(error) => {
            let (code, exit) = sorted(&error);
            fail(exit, &format!("{code}: {error}"))
        }
    }
}

fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}

fn fail(code: u8, message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "rbees-orcd: {message}");
    ExitCode::from(code)
}
