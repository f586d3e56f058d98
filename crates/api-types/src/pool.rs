//! Pools: hardware, catalog, workers as processes, and how a pool is asked.

use serde::{Deserialize, Serialize};

use crate::error::ErrorDetail;
use crate::id::{PoolId, WorkerId};
use crate::worker::WorkerStatus;

/// `rbees-pool status --json`: the handshake with a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolStatus {
    /// Version of rbees there.
    pub version: String,
    /// See [`crate::PROTOCOL`].
    pub protocol: u32,
    /// Host name of the machine.
    pub host: String,
    /// Where the pool keeps its files.
    pub home: String,
    /// The `rbees-pool` that answered.
    pub binary: String,
    /// What the machine has.
    pub hardware: Hardware,
    /// Its catalog.
    pub models: Vec<CatalogModel>,
    /// Its worker processes.
    pub workers: Vec<WorkerRecord>,
    /// For each downloaded model: what a worker with the usual slots and context would need, and
    /// whether it fits now.
    #[serde(default)]
    pub fits: Vec<Fit>,
}

/// What a machine has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hardware {
    /// `linux`, `macos`.
    pub os: String,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// Model name of the processor.
    pub cpu: String,
    /// Processor cores that may be used.
    pub cores: u32,
    /// Instruction sets that matter to the engine, such as `avx2`.
    pub cpu_features: Vec<String>,
    /// Bytes of memory, or of the container's limit.
    pub ram_total_bytes: u64,
    /// Bytes of memory that a new process could take.
    pub ram_available_bytes: u64,
    /// Bytes free where models are kept.
    pub disk_free_bytes: u64,
    /// Its GPUs, in the order of their PCI addresses.
    pub gpus: Vec<Gpu>,
    /// Facts about what could not be looked at, such as a missing NVIDIA driver.
    pub notes: Vec<String>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Gpu {
    /// Position, as `--gpu` takes it.
    pub index: u32,
    /// The vendor's stable id.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Backend that drives it: `cuda`, `metal`, `vulkan`.
    pub backend: String,
    /// Bytes of memory.
    pub memory_total_bytes: u64,
    /// Bytes of free memory.
    pub memory_free_bytes: u64,
    /// Degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// Watts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<f32>,
    /// Who uses it.
    pub processes: Vec<GpuProcess>,
}

/// A process on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GpuProcess {
    /// Its number.
    pub pid: u32,
    /// Its name, where it can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Bytes it takes, where the driver says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Whether it is one of this pool's workers.
    pub ours: bool,
}

/// One entry of a pool's catalog, as `models/catalog.json` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CatalogModel {
    /// The name used in requests and commands.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Other ids that mean this entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// `org/name` on the Hub, or the reference it was registered from.
    pub repo: String,
    /// The commit its files were pinned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Its files, relative to the models folder once downloaded.
    pub files: Vec<ModelFile>,
    /// For example `llama`.
    pub architecture: String,
    /// `gguf` or `safetensors`.
    pub format: String,
    /// For example `Q4_1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// Tokens of context it was trained for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
    /// Whether every file is there with its size and sha256.
    pub downloaded: bool,
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// Where it can be fetched from, in order: `hf:`, `https:`, `file:`, `pypi:`.
    pub sources: Vec<String>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelFile {
    /// Where it lies: relative to the models folder, or absolute for `file:` models.
    pub path: String,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// 64 lower-case hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// `POST /v2/pools/{id}/workers/spawn`, and what `rbees-pool worker spawn` makes of its flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SpawnRequest {
    /// `cpu`, `cuda`, `metal`, `vulkan`, `fake`; inferred from the hardware when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// A catalog id; the only downloaded one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A model reference; give this or `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_ref: Option<String>,
    /// Which GPU; 0 when absent and the backend needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_id: Option<u32>,
    /// The same as a text, `cpu` or `cuda:1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The id to give it; drawn when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<WorkerId>,
    /// Jobs at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Tokens of context per job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Threads of the engine; the cores that may be used when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// The port; the lowest free one of 8001 to 8999 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where the worker registers itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orchestrator: Option<String>,
    /// The pool's name in the orchestrator's registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_id: Option<PoolId>,
    /// Whether the orchestrator may unload it when it is idle or another model needs its memory;
    /// otherwise it is pinned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub evictable: bool,
}

/// A worker process as the pool's records know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerRecord {
    /// Its id.
    pub worker_id: WorkerId,
    /// `cpu`, `cuda`, ...
    pub backend: String,
    /// Where it runs: `cpu`, `cuda:0`, ...; absent in records of older builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Catalog id of its model.
    pub model: String,
    /// The port it bound; absent before it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Its process, with what makes the number unmistakable.
    pub process: ProcessIdentity,
    /// What the records say of it.
    pub state: RecordState,
    /// What the worker itself last reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<WorkerStatus>,
    /// Its log file.
    pub log: String,
    /// When it was started; RFC 3339, UTC.
    pub spawned_at: String,
    /// Memory the fit check predicted, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_bytes: Option<u64>,
    /// Memory measured once it was ready, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_bytes: Option<u64>,
}

/// A process number with what makes it unmistakable after reuse and reboots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProcessIdentity {
    /// The number.
    pub pid: u32,
    /// When it started, in the kernel's own ticks since boot.
    pub start_ticks: u64,
    /// The boot it belongs to.
    pub boot_id: String,
}

/// Life of a worker process in the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RecordState {
    /// Started, not yet ready.
    Spawned,
    /// Ready.
    Ready,
    /// Told to stop.
    Stopping,
    /// Its process is no longer there.
    Gone,
}

/// A pool as the orchestrator's registry shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolView {
    /// Its name.
    pub pool_id: PoolId,
    /// `local`, `ssh` or `http`.
    pub carrier: String,
    /// The address behind it; absent for the local one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether it answered when it was last asked.
    pub reachable: bool,
    /// Whether it takes no new workers.
    pub draining: bool,
    /// What it last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<PoolStatus>,
    /// Why it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
}

/// `GET /v2/pools`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolList {
    /// By id.
    pub pools: Vec<PoolView>,
}

/// `POST /v2/pools`: add a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AddPool {
    /// Its name from now on.
    pub pool_id: PoolId,
    /// The SSH destination; absent means this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// A checkout on that machine whose build is preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo_dir: Option<String>,
}

/// Answer to a spawn: the worker is on its way, or ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SpawnAccepted {
    /// The worker.
    pub worker_id: WorkerId,
}

/// What goes to the constant remote command `rbees-pool remote` on its standard input, one JSON
/// object: no argument is ever read by a remote shell.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteRequest {
    /// See [`crate::PROTOCOL`].
    pub protocol: u32,
    /// The arguments of `rbees-pool`, without the program name.
    pub args: Vec<String>,
    /// Width of the terminal that shows standard output; absent when a pipe or file takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<u16>,
    /// What a worker that is started presents to its orchestrator. A secret: it stands here because
    /// standard input is seen by nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orchestrator_token: Option<String>,
}

impl std::fmt::Debug for RemoteRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteRequest")
            .field("protocol", &self.protocol)
            .field("args", &self.args)
            .field("columns", &self.columns)
            .field("has_orchestrator_token", &self.orchestrator_token.is_some())
            .finish()
    }
}

/// One line of progress on standard error under `--json`, as one JSON object per line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Progress {
    /// Bytes of a file arrive.
    Download {
        /// The file.
        file: String,
        /// Bytes there.
        done_bytes: u64,
        /// Bytes in all, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total_bytes: Option<u64>,
    },
    /// A file is being hashed.
    Verify {
        /// The file.
        file: String,
        /// Bytes hashed.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// A worker reads its model.
    Load {
        /// The worker.
        worker_id: WorkerId,
        /// 0 to 1.
        progress: f32,
    },
    /// A choice or a step worth telling.
    Note {
        /// For people.
        message: String,
    },
}

/// Whether a model fits a device, before anything is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Fit {
    /// The model.
    pub model: String,
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// Whether it fits with the margin.
    pub fits: bool,
    /// Bytes of weights.
    pub weights_bytes: u64,
    /// Bytes of KV cache for all slots at full context.
    pub kv_bytes: u64,
    /// Bytes of buffers and process.
    pub overhead_bytes: u64,
    /// The sum.
    pub needed_bytes: u64,
    /// Bytes free on the device.
    pub free_bytes: u64,
    /// Bytes that the device has, or that the pool may use of it.
    #[serde(default)]
    pub total_bytes: u64,
    /// Bytes that are left alone.
    pub margin_bytes: u64,
    /// Jobs at once.
    pub slots: u32,
    /// Tokens of context per job.
    pub context: u32,
}
