//! From a request and the facts to the one command that starts a worker.

mod device;

use api_types::pool::{Hardware, SpawnRequest};
use api_types::worker::WorkerCapabilities;
use api_types::{ErrorCode, ErrorDetail, WorkerId};

pub use device::{Device, agree};

use crate::fit;

/// Ports that workers take when nobody names one.
pub const PORTS: (u16, u16) = (8001, 8999);
/// Marks a process as a worker of a pool; holds the worker id.
pub const ENV_WORKER_ID: &str = "RBEES_POOL_WORKER_ID";
/// Marks a process as a worker of a pool; holds the pool's home.
pub const ENV_HOME: &str = "RBEES_POOL_HOME";
/// Holds what a worker presents to its orchestrator.
pub const ENV_ORCHESTRATOR_TOKEN: &str = "RBEES_ORCHESTRATOR_TOKEN";

/// The model a worker is to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelChoice {
    /// The name that requests use.
    pub name: String,
    /// What the worker gets as `--model`: a path, or `fake:…`.
    pub argument: String,
    /// Where it came from.
    pub reference: Option<String>,
    /// Tokens of context it was trained for.
    pub trained_context: Option<u32>,
}

impl ModelChoice {
    /// The built-in stand-in, where `text` names it: `fake:NAME[?options]`.
    pub fn fake(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("fake:")?;
        let name = rest.split('?').next().filter(|name| !name.is_empty())?;
        Some(Self {
            name: name.to_owned(),
            argument: text.to_owned(),
            reference: None,
            trained_context: None,
        })
    }

    /// Bytes of memory that a stand-in says it takes (`memory_mb=N`); 0 where it says nothing.
    pub fn stated_bytes(&self) -> u64 {
        let settings = self.argument.split_once('?').map_or("", |(_, settings)| settings);
        let stated = settings.split('&').find_map(|setting| setting.strip_prefix("memory_mb="));
        stated.and_then(|mib| mib.parse::<u64>().ok()).map_or(0, |mib| mib.saturating_mul(1 << 20))
    }

    /// Whether this is the stand-in.
    pub fn is_fake(&self) -> bool {
        self.argument.starts_with("fake:")
    }
}

/// What is known before anything is started.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// The pool's home.
    pub home: String,
    /// The worker program.
    pub program: String,
    /// What it can do.
    pub capabilities: WorkerCapabilities,
    /// What the machine has.
    pub hardware: Hardware,
    /// The model.
    pub model: ModelChoice,
    /// Twelve hex digits, drawn by the shell, for an id that nobody named.
    pub fresh: String,
}

/// One worker to start: nothing is left to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpawnPlan {
    /// Its id.
    pub worker_id: WorkerId,
    /// Where it runs.
    pub device: Device,
    /// Its model.
    pub model: String,
    /// Jobs at once.
    pub slots: u32,
    /// Tokens of context per job.
    pub context: u32,
    /// The program.
    pub program: String,
    /// Its arguments; no secret is among them.
    pub args: Vec<String>,
    /// What is added to its environment.
    pub env: Vec<(String, String)>,
    /// Its log file, relative to the home.
    pub log: String,
    /// Its report file, relative to the home.
    pub report: String,
    /// Why this device, for people.
    pub why: String,
}

/// Plans a worker.
///
/// # Errors
/// `DEVICE_NOT_FOUND` when a GPU is asked for that is not there (never the CPU instead),
/// `BACKEND_NOT_BUILT`, `UNSUPPORTED_CPU`, and `INVALID_FIELD` for numbers out of range and flags
/// that contradict each other.
pub fn plan(request: &SpawnRequest, facts: &Facts) -> Result<SpawnPlan, ErrorDetail> {
    check_numbers(request)?;
    let (device, why) = device::choose(request, facts)?;
    check_build(&device, &facts.capabilities)?;
    let worker_id = worker_id(request, &device, &facts.fresh)?;
    let slots = request.slots.unwrap_or(fit::DEFAULT_SLOTS);
    let context = request.context.unwrap_or_else(|| fit::default_context(facts.model.trained_context));
    let report = format!("runtime/workers/{worker_id}.report.json");
    let mut plan = SpawnPlan {
        log: format!("logs/{worker_id}.log"),
        model: facts.model.name.clone(),
        program: facts.program.clone(),
        args: Vec::new(),
        env: environment(&worker_id, &device, facts),
        worker_id,
        device,
        slots,
        context,
        report,
        why,
    };
    plan.args = arguments(request, facts, &plan);
    Ok(plan)
}

fn check_numbers(request: &SpawnRequest) -> Result<(), ErrorDetail> {
    let rows = [
        ("slots", request.slots, 1, 256),
        ("context", request.context, 16, 16_777_216),
        ("threads", request.threads, 1, 1024),
        ("port", request.port.map(u32::from), 1, 65_535),
    ];
    for (field, value, low, high) in rows {
        if value.is_some_and(|value| !(low..=high).contains(&value)) {
            let message = format!("{field} must be {low} to {high}");
            return Err(ErrorDetail::new(ErrorCode::InvalidField, message).with_field(field));
        }
    }
    match &request.orchestrator {
        Some(url) if !is_plain_url(url) => Err(ErrorDetail::new(
            ErrorCode::InvalidField,
            "orchestrator must be an address such as http://127.0.0.1:8080, without a user or password",
        )
        .with_field("orchestrator")),
        Some(_) | None => Ok(()),
    }
}

fn is_plain_url(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    url.len() <= 2048
        && rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('@'))
        && url.bytes().all(|byte| byte.is_ascii_graphic())
}

fn check_build(device: &Device, built: &WorkerCapabilities) -> Result<(), ErrorDetail> {
    if !built.missing_cpu_features.is_empty() && device.backend != "fake" {
        let missing = built.missing_cpu_features.join(", ");
        let message =
            format!("this build of rbees-workerd needs instructions that the processor lacks: {missing}");
        return Err(ErrorDetail::new(ErrorCode::UnsupportedCpu, message)
            .with_hint("build rbees-workerd on this machine"));
    }
    if built.backends.contains(&device.backend) {
        return Ok(());
    }
    let message = format!(
        "this build of rbees-workerd has no backend `{}`; it has: {}",
        device.backend,
        built.backends.join(", ")
    );
    let feature = if device.backend == "cpu" { "llama_cpp" } else { &device.backend };
    Err(ErrorDetail::new(ErrorCode::BackendNotBuilt, message)
        .with_field("backend")
        .with_hint(format!("build it: cargo build --release -p rbees-workerd --features {feature}")))
}

fn worker_id(request: &SpawnRequest, device: &Device, fresh: &str) -> Result<WorkerId, ErrorDetail> {
    if let Some(id) = &request.worker_id {
        return Ok(id.clone());
    }
    format!("worker-{}-{fresh}", device.backend)
        .parse()
        .map_err(|_| ErrorDetail::new(ErrorCode::Internal, "a drawn worker id has a wrong form"))
}

fn environment(worker_id: &WorkerId, device: &Device, facts: &Facts) -> Vec<(String, String)> {
    let mut env =
        vec![(ENV_WORKER_ID.to_owned(), worker_id.to_string()), (ENV_HOME.to_owned(), facts.home.clone())];
    if device.backend == "cuda" {
        // Positions are those of the PCI bus here; CUDA's own order is fastest first.
        env.push(("CUDA_DEVICE_ORDER".to_owned(), "PCI_BUS_ID".to_owned()));
    }
    env
}

fn arguments(request: &SpawnRequest, facts: &Facts, plan: &SpawnPlan) -> Vec<String> {
    let report = format!("{}/{}", facts.home.trim_end_matches('/'), plan.report);
    let port = request.port.map_or_else(|| format!("{}-{}", PORTS.0, PORTS.1), |port| port.to_string());
    // The stand-in says its own context.
    let said_context = request.context.is_some() || !facts.model.is_fake();
    let evictable = request.evictable.then(|| "--evictable".to_owned());
    let pairs = [
        ("--worker-id", Some(plan.worker_id.to_string())),
        ("--model", Some(facts.model.argument.clone())),
        ("--model-name", Some(facts.model.name.clone())),
        ("--model-ref", facts.model.reference.clone()),
        ("--backend", Some(plan.device.backend.clone())),
        ("--gpu", plan.device.gpu.map(|gpu| gpu.to_string())),
        ("--port", Some(port)),
        ("--slots", Some(plan.slots.to_string())),
        ("--context", said_context.then(|| plan.context.to_string())),
        ("--threads", request.threads.map(|threads| threads.to_string())),
        ("--orchestrator", request.orchestrator.clone()),
        ("--pool-id", request.pool_id.as_ref().map(ToString::to_string)),
        ("--report", Some(report)),
    ];
    let pairs = pairs.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?])).flatten();
    pairs.chain(evictable).collect()
}

#[cfg(test)]
mod tests;
