//! The life of a worker: bind, serve, load, register, run, drain, end.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use api_types::{ErrorCode, ErrorDetail};
use clients::OrchestratorClient;
use engine::EngineError;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::decode::Decoder;
use crate::form::Forms;
use crate::generation::failure;
use crate::prompt::Prompts;
use crate::state::{Model, WorkerState};
use crate::{http, listen, register, report, server};

/// How long readers get to take the last events once all runs have ended.
const READERS_GRACE: Duration = Duration::from_secs(5);
/// How often ended runs are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Serves until told to stop. 0 after a drain, 1 when the worker could not go on.
pub async fn run(config: Config) -> ExitCode {
    let (listener, state) = match open(&config).await {
        Ok(opened) => opened,
        Err(error) => {
            tell(&error);
            return ExitCode::FAILURE;
        }
    };
    let stop = CancellationToken::new();
    tokio::spawn(server::serve(listener, http::router(Arc::clone(&state)), stop.clone()));
    tokio::spawn(sweep(Arc::clone(&state)));
    if let Some(path) = config.report.clone() {
        tokio::spawn(report::keep_written(path, Arc::clone(&state)));
    }
    let outcome = live(&config, &state).await;
    let code = finish(&config, &state, outcome).await;
    stop.cancel();
    code
}

async fn open(config: &Config) -> Result<(TcpListener, Arc<WorkerState>), ErrorDetail> {
    let planned = format!("http://{}:{}", config.bind, config.ports);
    let bound = listen::bind(config.bind, config.ports).await.and_then(|listener| {
        let address = listener.local_addr().map_err(|error| internal(&error))?;
        Ok((listener, address))
    });
    let (listener, address) = bound.inspect_err(|error| {
        // Whoever waits for the report must learn of this too.
        let state = WorkerState::new(config, planned);
        state.failed(error.clone());
        if let Some(path) = &config.report {
            report::write_or_warn(path, &state);
        }
    })?;
    let address = listen::advertised(address, config.orchestrator.as_deref());
    let state = Arc::new(WorkerState::new(config, format!("http://{address}")));
    tracing::info!(event = "listening", worker_id = %config.worker_id, %address, model = config.model_name);
    if let Some(path) = &config.report {
        report::write(path, &state).map_err(|error| unwritable(path, &error))?;
    }
    Ok((listener, state))
}

/// Why a worker's life ended.
enum Outcome {
    /// All runs have ended, or were ended by a second signal.
    Drained,
    /// The model could not be loaded, or the engine broke.
    Failed(ErrorDetail),
}

async fn live(config: &Config, state: &Arc<WorkerState>) -> Outcome {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return Outcome::Failed(internal(&error)),
    };
    let abandon = Arc::new(AtomicBool::new(false));
    let mut thread = EngineThread::start(config, state, &abandon);
    tokio::select! {
        loaded = thread.loaded() => if let Err(error) = loaded {
            return Outcome::Failed(error);
        },
        () = signals.next() => {
            abandon.store(true, Ordering::Relaxed);
            return Outcome::Drained;
        }
    }
    let mut introduced = Introduced::start(config, state);
    let mut drain_wanted = state.drain_wanted();
    tokio::select! {
        broken = thread.ended() => return Outcome::Failed(broken),
        () = signals.next() => tracing::info!(event = "draining", reason = "signal"),
        _ = drain_wanted.wait_for(|wanted| *wanted) => tracing::info!(event = "draining", reason = "orchestrator"),
        () = introduced.orphaned() => tracing::info!(event = "draining", reason = "orphaned"),
    }
    state.draining();
    tokio::select! {
        broken = thread.ended() => Outcome::Failed(broken),
        () = idle(state) => Outcome::Drained,
        () = signals.next() => {
            tracing::warn!(event = "stopping_at_once", busy = state.runs.busy());
            state.runs.cancel_all();
            abandon.store(true, Ordering::Relaxed);
            let _ = tokio::time::timeout(Duration::from_secs(1), idle(state)).await;
            Outcome::Drained
        }
    }
}

/// Tells others that the worker is there, for as long as this value lives: the last words must not
/// be followed by another heartbeat.
struct Introduced {
    registering: Option<JoinHandle<()>>,
}

impl Introduced {
    fn start(config: &Config, state: &Arc<WorkerState>) -> Self {
        if let Some(url) = config.callback_url.clone() {
            tokio::spawn(register::call_back(Arc::clone(state), url));
        }
        let registering = orchestrator(config).map(|client| {
            let (state, orphaned) = (Arc::clone(state), config.orphaned);
            tokio::spawn(async move { register::keep_registered(&state, &client, orphaned).await })
        });
        Self { registering }
    }

    /// Ends when the worker is orphaned and is to end because of it.
    async fn orphaned(&mut self) {
        match &mut self.registering {
            Some(task) => {
                let _ = task.await;
            }
            None => std::future::pending().await,
        }
    }
}

impl Drop for Introduced {
    fn drop(&mut self) {
        if let Some(task) = &self.registering {
            task.abort();
        }
    }
}

/// The orchestrator, where there is one to tell.
fn orchestrator(config: &Config) -> Option<OrchestratorClient> {
    let url = config.orchestrator.as_ref()?;
    OrchestratorClient::new(url, config.orchestrator_token.clone())
        .inspect_err(|error| tracing::error!(event = "no_client", %error))
        .ok()
}

async fn idle(state: &WorkerState) {
    let _ = state.runs.busy_changes().wait_for(|busy| *busy == 0).await;
}

async fn finish(config: &Config, state: &WorkerState, outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Drained => {
            let begin = Instant::now();
            let client = orchestrator(config);
            // An orchestrator acknowledges a run once its result is on disk.
            let taken = || state.runs.readers() == 0 && (client.is_none() || state.runs.listed().is_empty());
            while !taken() && begin.elapsed() < READERS_GRACE {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if let Some(path) = &config.report {
                report::write_or_warn(path, state);
            }
            if let Some(client) = client {
                register::report_end(state, &client).await;
            }
            tracing::info!(event = "ended");
            ExitCode::SUCCESS
        }
        Outcome::Failed(error) => {
            tell(&error);
            state.failed(error.clone());
            if let Some(path) = &config.report {
                report::write_or_warn(path, state);
            }
            state.runs.fail_all(&failure(error.clone()));
            if let Some(client) = orchestrator(config) {
                register::report_failure(state, &client, error).await;
            }
            ExitCode::FAILURE
        }
    }
}

/// The engine's thread, from loading to its end.
struct EngineThread {
    loaded: Option<oneshot::Receiver<Result<(), ErrorDetail>>>,
    ended: oneshot::Receiver<ErrorDetail>,
}

impl EngineThread {
    fn start(config: &Config, state: &Arc<WorkerState>, abandon: &Arc<AtomicBool>) -> Self {
        let (tell_loaded, loaded) = oneshot::channel();
        let (tell_ended, ended) = oneshot::channel();
        let (config, state, abandon) = (config.clone(), Arc::clone(state), Arc::clone(abandon));
        let body = move || {
            let worked = std::panic::catch_unwind(AssertUnwindSafe(|| {
                load_and_decode(&config, &state, &abandon, tell_loaded)
            }));
            let error = match worked {
                Ok(Ok(())) => ErrorDetail::new(ErrorCode::ShuttingDown, "the decode thread was told to end"),
                Ok(Err(error)) => error.detail(),
                Err(_) => {
                    ErrorDetail::new(ErrorCode::EngineFailed, "the decode thread panicked; see the log")
                }
            };
            let _ = tell_ended.send(error);
        };
        if let Err(error) = std::thread::Builder::new().name("decode".to_owned()).spawn(body) {
            tracing::error!(event = "no_thread", %error);
        }
        Self { loaded: Some(loaded), ended }
    }

    /// Waits for the model.
    async fn loaded(&mut self) -> Result<(), ErrorDetail> {
        match self.loaded.take() {
            Some(loaded) => match loaded.await {
                Ok(result) => result,
                Err(_) => Err(self.ended().await),
            },
            None => Ok(()),
        }
    }

    /// Waits for the thread to end, which it does by itself only when the engine broke.
    async fn ended(&mut self) -> ErrorDetail {
        (&mut self.ended).await.unwrap_or_else(|_| {
            ErrorDetail::new(ErrorCode::EngineFailed, "the decode thread could not be started")
        })
    }
}

fn load_and_decode(
    config: &Config,
    state: &Arc<WorkerState>,
    abandon: &Arc<AtomicBool>,
    tell_loaded: oneshot::Sender<Result<(), ErrorDetail>>,
) -> Result<(), EngineError> {
    let begin = Instant::now();
    let (progressing, giving_up) = (Arc::clone(state), Arc::clone(abandon));
    let progress = Box::new(move |share| {
        progressing.progressed(share);
        !giving_up.load(Ordering::Relaxed)
    });
    let engine = match engine::open(&config.model, &config.load, progress) {
        Ok(engine) => engine,
        Err(error) => {
            let _ = tell_loaded.send(Err(error.detail()));
            return Err(error);
        }
    };
    let info = engine.info().clone();
    tracing::info!(
        event = "loaded",
        took_ms = begin.elapsed().as_millis() as u64,
        devices = info.devices.join(", "),
        context = info.context_length,
        ram_bytes = info.ram_bytes,
        vram_bytes = info.vram_bytes
    );
    let (commands, inbox) = mpsc::channel();
    let forms = Forms::begin(engine.tokenizer(), info.clone());
    let prompts = Arc::new(Prompts::new(engine.tokenizer(), info));
    state.loaded(Model { prompts, forms, commands });
    let _ = tell_loaded.send(Ok(()));
    let mut decoder = Decoder::new(
        engine,
        config.prompt_cache_bytes,
        Arc::clone(&state.retained),
        Arc::clone(&state.runs),
        Arc::clone(&state.metrics),
        Arc::clone(abandon),
    );
    decoder.run(&inbox)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn sweep(state: Arc<WorkerState>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        state.runs.sweep(Instant::now());
    }
}

fn tell(error: &ErrorDetail) {
    tracing::error!(event = "failed", code = %error.code, message = error.message, hint = error.hint);
}

fn internal(error: &std::io::Error) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::Internal, error.to_string())
}

fn unwritable(path: &Path, error: &std::io::Error) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::InvalidConfig, format!("{}: {error}", path.display()))
        .with_field("report")
        .with_hint("give --report a file in a folder that exists and can be written")
}
