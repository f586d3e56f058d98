//! What everybody in the process may look at: the worker's status, facts and table of runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use api_types::prefix::RetainedPrefix;
use api_types::worker::{JSON_SCHEMA, PREFIX_CACHE, ReadyCall, WorkerFacts, WorkerHealth, WorkerStatus};
use api_types::{ErrorCode, ErrorDetail, Incarnation, InstanceId, PROTOCOL};
use engine::{Backend, ModelInfo};
use tokio::sync::watch;

use crate::config::Config;
use crate::decode::Command;
use crate::form::Forms;
use crate::memory;
use crate::metrics::{Metrics, Snapshot};
use crate::prompt::Prompts;
use crate::runs::Runs;

/// How long a request from a newer incarnation waits for a registration that is in flight.
const REGISTRATION_IN_FLIGHT: Duration = Duration::from_secs(2);

/// The shared state of a worker.
pub struct WorkerState {
    /// All runs.
    pub runs: Arc<Runs>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// What callers must present.
    pub secret: Option<String>,
    /// Whether only this machine can reach the port.
    pub loopback: bool,
    model: OnceLock<Model>,
    current: RwLock<Current>,
    changed: watch::Sender<u64>,
    incarnation: watch::Sender<Option<Incarnation>>,
    registering: AtomicBool,
    drain_wanted: watch::Sender<bool>,
    /// What the decode thread keeps of prompts.
    pub retained: Arc<Retained>,
}

/// What is kept of prompts, as the decode thread last told.
#[derive(Debug, Default)]
pub struct Retained {
    prefixes: Mutex<Vec<RetainedPrefix>>,
}

impl Retained {
    /// From now on this is kept.
    pub fn set(&self, prefixes: Vec<RetainedPrefix>) {
        *self.prefixes.lock().unwrap_or_else(PoisonError::into_inner) = prefixes;
    }

    /// What is kept now.
    pub fn get(&self) -> Vec<RetainedPrefix> {
        self.prefixes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A loaded model as request handlers use it.
pub struct Model {
    /// Makes prompts.
    pub prompts: Arc<Prompts>,
    /// Makes what runs must keep to.
    pub forms: Arc<Forms>,
    /// Reaches the decode thread.
    pub commands: Sender<Command>,
}

#[derive(Debug, Clone)]
struct Current {
    status: WorkerStatus,
    progress: f32,
    error: Option<ErrorDetail>,
    facts: WorkerFacts,
}

impl WorkerState {
    /// The state of a worker that begins to load.
    pub fn new(config: &Config, uri: String) -> Self {
        let (changed, _) = watch::channel(0);
        Self {
            runs: Arc::new(Runs::new(config.load.slots, config.run_log_bytes)),
            metrics: Arc::new(Metrics::new()),
            secret: config.secret.clone(),
            loopback: config.bind.is_loopback(),
            model: OnceLock::new(),
            current: RwLock::new(Current {
                status: WorkerStatus::Loading,
                progress: 0.0,
                error: None,
                facts: first_facts(config, uri),
            }),
            changed,
            incarnation: watch::Sender::new(None),
            registering: AtomicBool::new(false),
            drain_wanted: watch::Sender::new(false),
            retained: Arc::default(),
        }
    }

    /// The health of this moment. Never waits for inference.
    pub fn health(&self) -> WorkerHealth {
        let current = self.read().clone();
        WorkerHealth {
            status: current.status,
            load_progress: (current.status == WorkerStatus::Loading).then_some(current.progress),
            error: current.error,
            slots_busy: self.runs.busy(),
            incarnation: *self.incarnation.borrow(),
            free_memory_bytes: Some(memory::available_bytes()).filter(|bytes| *bytes > 0),
            facts: current.facts,
        }
    }

    /// What the worker is.
    pub fn facts(&self) -> WorkerFacts {
        self.read().facts.clone()
    }

    /// What it is doing.
    pub fn status(&self) -> WorkerStatus {
        self.read().status
    }

    /// The introduction to an orchestrator or pool.
    pub fn ready_call(&self) -> ReadyCall {
        let current = self.read().clone();
        ReadyCall {
            facts: current.facts,
            status: current.status,
            runs: self.runs.listed(),
            secret: self.secret.clone(),
        }
    }

    /// What a scrape reads off.
    pub fn snapshot(&self) -> Snapshot {
        let current = self.read();
        Snapshot {
            slots: current.facts.slots,
            slots_busy: self.runs.busy(),
            ready: current.status == WorkerStatus::Ready,
            load_progress: if current.status == WorkerStatus::Loading { current.progress } else { 1.0 },
        }
    }

    /// The loaded model.
    ///
    /// # Errors
    /// `WORKER_LOADING` before, the reason when it failed.
    pub fn model(&self) -> Result<&Model, ErrorDetail> {
        let current = self.read();
        if let Some(error) = &current.error {
            return Err(error.clone());
        }
        self.model.get().ok_or_else(|| {
            let percent = (current.progress * 100.0) as u32;
            ErrorDetail::new(ErrorCode::WorkerLoading, format!("the model is being read ({percent} %)"))
                .with_retry_after_ms(1000)
                .with_hint("ask /health until status is ready")
        })
    }

    /// More of the model has been read.
    pub fn progressed(&self, share: f32) {
        self.change(|current| current.progress = share.clamp(0.0, 1.0));
    }

    /// The model is loaded.
    pub fn loaded(&self, model: Model) {
        let info = model.prompts.info().clone();
        let _ = self.model.set(model);
        self.change(|current| {
            fill_in(&mut current.facts, &info);
            current.progress = 1.0;
            if current.status == WorkerStatus::Loading {
                current.status = WorkerStatus::Ready;
            }
        });
    }

    /// The worker cannot go on.
    pub fn failed(&self, error: ErrorDetail) {
        self.change(|current| {
            current.status = WorkerStatus::Failed;
            current.error = Some(error);
        });
    }

    /// From now on the worker only finishes what it has.
    pub fn draining(&self) {
        self.runs.drain();
        self.change(|current| {
            if current.status != WorkerStatus::Failed {
                current.status = WorkerStatus::Draining;
            }
        });
    }

    /// Somebody wants the worker drained and ended.
    pub fn want_drain(&self) {
        self.drain_wanted.send_replace(true);
    }

    /// Follows whether a drain is wanted.
    pub fn drain_wanted(&self) -> watch::Receiver<bool> {
        self.drain_wanted.subscribe()
    }

    /// Follows every change of status, progress and facts.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A registration is about to be sent.
    pub fn registering(&self) {
        self.registering.store(true, Ordering::Release);
    }

    /// The registration ended, with a number when it succeeded.
    pub fn registered(&self, incarnation: Option<Incarnation>) {
        self.registering.store(false, Ordering::Release);
        // Waiting requests look again even when nothing was won.
        self.incarnation.send_modify(|current| *current = incarnation.or(*current));
    }

    /// The number that the orchestrator gave last.
    pub fn incarnation(&self) -> Option<Incarnation> {
        *self.incarnation.borrow()
    }

    /// Follows the numbers that orchestrators give.
    pub fn incarnations(&self) -> watch::Receiver<Option<Incarnation>> {
        self.incarnation.subscribe()
    }

    /// Refuses a message meant for another incarnation. One that is newer than what this worker
    /// knows may have overtaken the answer to its registration, so that is waited for.
    ///
    /// # Errors
    /// `STALE_INCARNATION`.
    pub async fn check_incarnation(&self, meant: Incarnation) -> Result<(), ErrorDetail> {
        let mut current = self.incarnation.subscribe();
        let settled = current.wait_for(|current| {
            current.is_some_and(|current| current >= meant) || !self.registering.load(Ordering::Acquire)
        });
        let known = match tokio::time::timeout(REGISTRATION_IN_FLIGHT, settled).await {
            Ok(Ok(known)) => *known,
            _ => self.incarnation(),
        };
        if known == Some(meant) {
            return Ok(());
        }
        let known = known.map_or_else(|| "none".to_owned(), |known| known.to_string());
        Err(ErrorDetail::new(
            ErrorCode::StaleIncarnation,
            format!("the message is for incarnation {meant}; this worker's is {known}"),
        ))
    }

    fn change(&self, edit: impl FnOnce(&mut Current)) {
        edit(&mut self.current.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_modify(|count| *count += 1);
    }

    fn read(&self) -> RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known before the model is read.
fn first_facts(config: &Config, uri: String) -> WorkerFacts {
    WorkerFacts {
        worker_id: config.worker_id.clone(),
        instance: InstanceId(uuid::Uuid::new_v4()),
        pool_id: config.pool_id.clone(),
        uri,
        model: config.model_name.clone(),
        model_ref: config.model_ref.clone(),
        backend: config.load.backend.to_string(),
        devices: Vec::new(),
        slots: config.load.slots,
        context_length: config.load.context.unwrap_or(0),
        vram_bytes: 0,
        ram_bytes: 0,
        quantization: None,
        tokenizer: None,
        capabilities: Vec::new(),
        evictable: config.evictable,
        engine: engine_name(config.load.backend),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
    }
}

fn engine_name(backend: Backend) -> String {
    if backend == Backend::Fake { "fake".to_owned() } else { "llama.cpp".to_owned() }
}

/// What the engine really did.
fn fill_in(facts: &mut WorkerFacts, info: &ModelInfo) {
    facts.devices.clone_from(&info.devices);
    facts.context_length = info.context_length;
    facts.vram_bytes = info.vram_bytes;
    facts.ram_bytes = info.ram_bytes;
    facts.quantization.clone_from(&info.quantization);
    facts.tokenizer.clone_from(&info.tokenizer);
    facts.engine.clone_from(&info.engine);
    facts.capabilities = vec!["completion".to_owned()];
    facts.capabilities.extend(info.chat_template.as_ref().map(|_| "chat".to_owned()));
    facts.capabilities.push(JSON_SCHEMA.to_owned());
    facts.capabilities.push(PREFIX_CACHE.to_owned());
    facts.capabilities.push(info.backend.to_string());
}
