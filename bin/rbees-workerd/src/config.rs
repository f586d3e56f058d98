//! Flags and environment, checked into one configuration.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_types::{ErrorCode, ErrorDetail, PoolId, WorkerId};
use clap::{Parser, Subcommand};
use engine::{Backend, LoadOptions};

use crate::listen::Ports;
use crate::register::Orphaned;

/// One model per process behind HTTP.
#[derive(Debug, Clone, Parser)]
#[command(name = "rbees-workerd", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Something other than serving a model.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Id of this worker [default: worker-BACKEND-12HEX, drawn].
    #[arg(long)]
    pub worker_id: Option<WorkerId>,
    /// The model: path of a GGUF file or of a folder of safetensors, or fake:NAME?key=value&….
    #[arg(long)]
    pub model: Option<String>,
    /// The name requests use for the model [default: the file's name].
    #[arg(long)]
    pub model_name: Option<String>,
    /// Where the model came from, for example hf:org/repo.
    #[arg(long)]
    pub model_ref: Option<String>,
    /// cpu, cuda, metal, vulkan or fake [default: cpu, or fake for a fake model].
    #[arg(long)]
    pub backend: Option<Backend>,
    /// Numbers of the GPUs to use, with the backend of a GPU [default: 0].
    #[arg(long, value_delimiter = ',')]
    pub gpu: Vec<u32>,
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub bind: IpAddr,
    /// Port, or a range of which the lowest free one is taken; 0 takes any.
    #[arg(long, default_value = "8001-8999")]
    pub port: Ports,
    /// Jobs at once.
    #[arg(long, default_value_t = 4)]
    pub slots: u32,
    /// Tokens of context per job [default: the model's, at most 4096].
    #[arg(long)]
    pub context: Option<u32>,
    /// Threads that compute [default: all].
    #[arg(long)]
    pub threads: Option<u32>,
    /// URL of the orchestrator to register at.
    #[arg(long, alias = "orchestrator-url")]
    pub orchestrator: Option<String>,
    /// URL that is told once when the worker is ready.
    #[arg(long)]
    pub callback_url: Option<String>,
    /// File that always holds the worker's current health.
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// The pool that this worker belongs to.
    #[arg(long)]
    pub pool_id: Option<PoolId>,
    /// Let the orchestrator unload this worker when it is idle or another model needs its memory.
    #[arg(long, requires = "orchestrator")]
    pub evictable: bool,
    /// File with the secret that callers must present (or set RBEES_WORKER_SECRET).
    #[arg(long)]
    pub secret_file: Option<PathBuf>,
    /// File with the token that the orchestrator asks for (or set RBEES_ORCHESTRATOR_TOKEN).
    #[arg(long)]
    pub orchestrator_token_file: Option<PathBuf>,
    /// End, once all runs have ended, when no orchestrator has answered for 60 s.
    #[arg(long, requires = "orchestrator")]
    pub exit_when_orphaned: bool,
    /// Milliseconds of the orchestrator's silence after which the worker counts as orphaned.
    #[arg(long, hide = true, default_value_t = 60_000)]
    pub orphaned_after_ms: u64,
    /// Bytes of events a run may have unacknowledged before it pauses.
    #[arg(long, default_value_t = 8 * 1024 * 1024)]
    pub run_log_bytes: usize,
    /// MiB of memory for the KV cache of prompts that ended, beside the slots' own; 0 keeps none there.
    #[arg(long, default_value_t = 512)]
    pub prompt_cache_mib: u32,
    /// Print what this binary can do, and end.
    #[arg(long)]
    pub capabilities: bool,
    /// Print as JSON.
    #[arg(long, requires = "capabilities")]
    pub json: bool,
}

/// What the program can do besides serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Print the OpenAPI document of the worker's API.
    Openapi,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Id of this worker.
    pub worker_id: WorkerId,
    /// Path of the model, or `fake:…`.
    pub model: String,
    /// The name requests use.
    pub model_name: String,
    /// Where the model came from.
    pub model_ref: Option<String>,
    /// How to load it.
    pub load: LoadOptions,
    /// Address to listen on.
    pub bind: IpAddr,
    /// Ports to try.
    pub ports: Ports,
    /// The orchestrator.
    pub orchestrator: Option<String>,
    /// Who else is told when the worker is ready.
    pub callback_url: Option<String>,
    /// Where health is written.
    pub report: Option<PathBuf>,
    /// The pool.
    pub pool_id: Option<PoolId>,
    /// Whether the orchestrator may unload it.
    pub evictable: bool,
    /// What callers must present.
    pub secret: Option<String>,
    /// What the orchestrator asks for.
    pub orchestrator_token: Option<String>,
    /// What to do without an orchestrator.
    pub orphaned: Orphaned,
    /// Capacity of a run's log, in bytes.
    pub run_log_bytes: usize,
    /// Bytes of ended sequences that may be put aside.
    pub prompt_cache_bytes: u64,
}

/// Secrets that came by environment.
#[derive(Clone, Default)]
pub struct EnvSecrets {
    /// `RBEES_WORKER_SECRET`.
    pub callers: Option<String>,
    /// `RBEES_ORCHESTRATOR_TOKEN`.
    pub orchestrator: Option<String>,
}

impl Config {
    /// Checks the flags.
    ///
    /// # Errors
    /// `INVALID_CONFIG` with the flag that is wrong.
    pub fn new(args: Args, env: EnvSecrets) -> Result<Self, ErrorDetail> {
        let model = args.model.ok_or_else(|| {
            invalid("model", "--model is missing; give the path of a GGUF file or of a folder of safetensors, or fake:NAME")
        })?;
        let fake = model.starts_with("fake:");
        let backend = args.backend.unwrap_or(if fake { Backend::Fake } else { Backend::Cpu });
        if !args.gpu.is_empty() && matches!(backend, Backend::Cpu | Backend::Fake) {
            return Err(invalid("gpu", &format!("--gpu names a card, and the backend is {backend}"))
                .with_hint("add --backend cuda, metal or vulkan, or leave --gpu out"));
        }
        let token_file = args.orchestrator_token_file.as_deref();
        let orchestrator_token = secret("orchestrator-token-file", token_file, env.orchestrator)?;
        let secret = secret("secret-file", args.secret_file.as_deref(), env.callers)?;
        if !args.bind.is_loopback() && secret.is_none() {
            return Err(invalid(
                "bind",
                &format!("{} can be reached from other machines, so a secret is needed", args.bind),
            )
            .with_hint("set RBEES_WORKER_SECRET or --secret-file, or bind to 127.0.0.1"));
        }
        Ok(Self {
            worker_id: match args.worker_id {
                Some(id) => id,
                None => drawn_id(backend)?,
            },
            model_name: args.model_name.unwrap_or_else(|| name_of(&model)),
            model,
            model_ref: args.model_ref,
            load: LoadOptions {
                backend,
                gpus: args.gpu,
                slots: args.slots,
                context: args.context,
                threads: args.threads,
            },
            bind: args.bind,
            ports: args.port,
            orchestrator: url("orchestrator", args.orchestrator)?,
            callback_url: url("callback-url", args.callback_url)?,
            report: args.report,
            pool_id: args.pool_id,
            evictable: args.evictable,
            secret,
            orchestrator_token,
            orphaned: Orphaned {
                after: Duration::from_millis(args.orphaned_after_ms),
                exit: args.exit_when_orphaned,
            },
            run_log_bytes: args.run_log_bytes.max(1024),
            prompt_cache_bytes: u64::from(args.prompt_cache_mib) << 20,
        })
    }
}

fn invalid(flag: &str, message: &str) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::InvalidConfig, message).with_field(flag)
}

fn drawn_id(backend: Backend) -> Result<WorkerId, ErrorDetail> {
    let hex = uuid::Uuid::new_v4().simple().to_string();
    let id = format!("worker-{backend}-{}", hex.get(..12).unwrap_or_default());
    id.parse().map_err(|error: api_types::id::InvalidId| invalid("worker-id", &error.to_string()))
}

/// The file's name without its ending; of a fake model what stands before the question mark.
fn name_of(model: &str) -> String {
    if let Some(fake) = model.strip_prefix("fake:") {
        return fake.split('?').next().unwrap_or_default().to_owned();
    }
    // A folder's name may have dots of its own, as in Qwen2.5-0.5B.
    let name = Path::new(model).file_name().map_or_else(|| model.into(), |name| name.to_string_lossy());
    name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
}

fn url(flag: &'static str, url: Option<String>) -> Result<Option<String>, ErrorDetail> {
    match url {
        Some(url) if !(url.starts_with("http://") || url.starts_with("https://")) => {
            Err(invalid(flag, &format!("--{flag} must begin with http:// or https://")))
        }
        url => Ok(url),
    }
}

/// A secret from the file of `flag`, else from the environment.
fn secret(
    flag: &'static str,
    file: Option<&Path>,
    env: Option<String>,
) -> Result<Option<String>, ErrorDetail> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| invalid(flag, &format!("{}: {error}", path.display())))
    };
    let secret = match (file, env) {
        (Some(path), _) => read(path)?,
        (None, Some(env)) => env,
        (None, None) => return Ok(None),
    };
    let secret = secret.trim().to_owned();
    if secret.len() < 16 || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = "the secret must have at least 16 printable ASCII characters and no space";
        return Err(invalid(flag, message));
    }
    Ok(Some(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str], secret: Option<&str>) -> Result<Config, ErrorDetail> {
        let args = Args::try_parse_from([&["rbees-workerd"], flags].concat()).expect("known flags");
        Config::new(args, EnvSecrets { callers: secret.map(str::to_owned), orchestrator: None })
    }

    #[test]
    fn names_and_backends_follow_from_the_model() {
        let fake = config(&["--model", "fake:bee?seed=1"], None).expect("good");
        assert_eq!((fake.model_name.as_str(), fake.load.backend), ("bee", Backend::Fake));
        assert!(fake.worker_id.as_str().starts_with("worker-fake-"));
        let file = config(&["--model", "models/tiny.gguf"], None).expect("good");
        assert_eq!((file.model_name.as_str(), file.load.backend), ("tiny", Backend::Cpu));
        let folder = config(&["--model", "models/Qwen2.5-0.5B/"], None).expect("good");
        assert_eq!(folder.model_name, "Qwen2.5-0.5B");
        let cards = ["--model", "tiny.gguf", "--backend", "cuda", "--gpu", "1,2"];
        assert_eq!(config(&cards, None).expect("good").load.gpus, [1, 2]);
    }

    #[test]
    fn an_open_address_needs_a_secret() {
        let open = ["--model", "fake:a", "--bind", "0.0.0.0"];
        assert_eq!(config(&open, None).expect_err("open").field.as_deref(), Some("bind"));
        assert!(config(&open, Some("0123456789abcdef")).is_ok());
        assert!(config(&open, Some("short")).is_err());
    }

    #[test]
    fn wrong_flags_are_named() {
        assert_eq!(config(&[], None).expect_err("no model").field.as_deref(), Some("model"));
        let card = config(&["--model", "tiny.gguf", "--gpu", "0"], None).expect_err("on the CPU");
        assert_eq!(card.field.as_deref(), Some("gpu"), "never the CPU instead");
        for alone in ["--json", "--exit-when-orphaned"] {
            assert!(Args::try_parse_from(["rbees-workerd", "--model", "fake:a", alone]).is_err(), "{alone}");
        }
        let odd = ["--model", "fake:a", "--orchestrator-url", "localhost:8080"];
        assert_eq!(config(&odd, None).expect_err("no scheme").field.as_deref(), Some("orchestrator"));
    }
}
