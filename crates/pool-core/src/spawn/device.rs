//! Which backend and which GPU: inferred from the hardware, never swapped for another.

use std::fmt;

use api_types::pool::{Gpu, SpawnRequest};
use api_types::{ErrorCode, ErrorDetail};

use super::Facts;

/// Backends that need a GPU.
const ON_GPU: [&str; 3] = ["cuda", "metal", "vulkan"];
const BACKENDS: &str = "cpu, cuda, metal, vulkan or fake";

/// Where a worker runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `cpu`, `cuda`, `metal`, `vulkan`, `fake`.
    pub backend: String,
    /// Which GPU, on backends that have one.
    pub gpu: Option<u32>,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.backend)?;
        self.gpu.iter().try_for_each(|gpu| write!(f, ":{gpu}"))
    }
}

/// The backend that a positional argument and a flag name; both may, when they agree.
///
/// # Errors
/// `INVALID_FIELD` when they differ.
pub fn agree(positional: Option<String>, flag: Option<String>) -> Result<Option<String>, ErrorDetail> {
    match (positional, flag) {
        (Some(one), Some(other)) if one != other => {
            Err(contradiction("backend", format!("`{one}` and `--backend {other}` contradict each other")))
        }
        (one, other) => Ok(one.or(other)),
    }
}

/// The device for a request, and why, for people.
pub(super) fn choose(request: &SpawnRequest, facts: &Facts) -> Result<(Device, String), ErrorDetail> {
    let (backend, gpu) = wanted(request)?;
    let backend = match backend {
        None if facts.model.is_fake() => Some("fake".to_owned()),
        backend => backend,
    };
    match backend.as_deref() {
        Some(backend) => named(backend, gpu, facts),
        None => inferred(gpu, facts),
    }
}

/// What `backend`, `device` and `gpu_id` ask for together.
fn wanted(request: &SpawnRequest) -> Result<(Option<String>, Option<u32>), ErrorDetail> {
    let Some(device) = &request.device else { return Ok((request.backend.clone(), request.gpu_id)) };
    let (backend, number) = device.split_once(':').map_or((device.as_str(), None), |(b, n)| (b, Some(n)));
    let number = number.map(str::parse::<u32>).transpose().map_err(|_| {
        contradiction(
            "device",
            format!("`{device}` is not a device; allowed is `cpu` or BACKEND:N such as `cuda:0`"),
        )
    })?;
    let backend = agree(Some(backend.to_owned()), request.backend.clone())?;
    match (number, request.gpu_id) {
        (Some(one), Some(other)) if one != other => {
            Err(contradiction("gpu_id", format!("device `{device}` and GPU {other} contradict each other")))
        }
        (one, other) => Ok((backend, one.or(other))),
    }
}

fn named(backend: &str, gpu: Option<u32>, facts: &Facts) -> Result<(Device, String), ErrorDetail> {
    let is_fake = backend == "fake";
    if is_fake != facts.model.is_fake() {
        return Err(contradiction(
            "backend",
            "the backend `fake` and a model `fake:NAME` go together".to_owned(),
        ));
    }
    let why = format!("{backend}: asked for");
    if backend == "cpu" || is_fake {
        return match gpu {
            Some(gpu) => Err(contradiction(
                "gpu_id",
                format!("the backend `{backend}` uses no GPU, but GPU {gpu} is asked for"),
            )),
            None => Ok((Device { backend: backend.to_owned(), gpu: None }, why)),
        };
    }
    if !ON_GPU.contains(&backend) {
        return Err(contradiction("backend", format!("`{backend}` is not a backend; allowed is {BACKENDS}")));
    }
    let gpu = find(backend, gpu.unwrap_or(0), facts)?;
    Ok((Device { backend: backend.to_owned(), gpu: Some(gpu.index) }, format!("{why}, on {}", gpu.name)))
}

fn inferred(gpu: Option<u32>, facts: &Facts) -> Result<(Device, String), ErrorDetail> {
    if let Some(index) = gpu {
        let gpu = facts
            .hardware
            .gpus
            .iter()
            .find(|gpu| gpu.index == index)
            .ok_or_else(|| absent("gpu", index, facts))?;
        return Ok((on(gpu), format!("{}: the backend of GPU {index}, {}", gpu.backend, gpu.name)));
    }
    let built = |gpu: &&Gpu| facts.capabilities.backends.contains(&gpu.backend);
    if let Some(gpu) = facts.hardware.gpus.iter().find(built) {
        return Ok((on(gpu), format!("{}: this machine has {}", gpu.backend, gpu.name)));
    }
    let why = match facts.hardware.gpus.first() {
        Some(gpu) => {
            format!("cpu: this build of rbees-workerd has no backend `{}` for {}", gpu.backend, gpu.name)
        }
        None => "cpu: this machine shows no GPU".to_owned(),
    };
    Ok((Device { backend: "cpu".to_owned(), gpu: None }, why))
}

fn on(gpu: &Gpu) -> Device {
    Device { backend: gpu.backend.clone(), gpu: Some(gpu.index) }
}

fn find<'a>(backend: &str, index: u32, facts: &'a Facts) -> Result<&'a Gpu, ErrorDetail> {
    let drives = |gpu: &&Gpu| gpu.index == index && (gpu.backend == backend || backend == "vulkan");
    facts.hardware.gpus.iter().find(drives).ok_or_else(|| absent(backend, index, facts))
}

fn absent(backend: &str, index: u32, facts: &Facts) -> ErrorDetail {
    let known: Vec<String> = facts
        .hardware
        .gpus
        .iter()
        .map(|gpu| format!("{}:{} ({})", gpu.backend, gpu.index, gpu.name))
        .collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let message = format!("there is no {backend}:{index} on this machine; GPUs that are here: {known}");
    ErrorDetail::new(ErrorCode::DeviceNotFound, message)
        .with_field("gpu_id")
        .with_hint("see what the machine has: rbees-pool status; to use the processor, say cpu")
}

fn contradiction(field: &str, message: String) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::InvalidField, message).with_field(field)
}
