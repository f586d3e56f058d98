//! What is measured: the mock itself, proxies, routers and rbees, each alone on its CPU.

mod haproxy;
pub mod postgres;
mod process;
mod rbees;
mod routers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;

pub use process::{Running, free_address};

use crate::load::Target;
use crate::machine;

/// Where the programs lie; a peer without one is left out.
#[derive(Debug, Clone, clap::Args)]
pub struct Programs {
    /// The orchestrator's release build.
    #[arg(long)]
    pub rbees_orcd: Option<PathBuf>,
    /// HAProxy.
    #[arg(long)]
    pub haproxy: Option<PathBuf>,
    /// The router of SGLang.
    #[arg(long)]
    pub sglang_router: Option<PathBuf>,
    /// The router of vLLM.
    #[arg(long)]
    pub vllm_router: Option<PathBuf>,
    /// SMG, the successor of SGLang's router.
    #[arg(long)]
    pub smg: Option<PathBuf>,
}

/// A kind of subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The mock with nobody in between.
    Direct,
    /// HAProxy.
    Haproxy,
    /// The router of SGLang, round robin.
    SglangRouter,
    /// The router of vLLM, round robin.
    VllmRouter,
    /// SMG, round robin.
    Smg,
    /// rbees, jobs in memory only.
    RbeesMemory,
    /// rbees, each job on disk before it goes on.
    RbeesDurable,
}

impl Kind {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 7] = [
        Self::Direct,
        Self::Haproxy,
        Self::SglangRouter,
        Self::VllmRouter,
        Self::Smg,
        Self::RbeesMemory,
        Self::RbeesDurable,
    ];

    /// Its name in tables and options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::SglangRouter => "sglang-router",
            Self::VllmRouter => "vllm-router",
            Self::Smg => "smg",
            Self::RbeesMemory => "rbees-memory",
            Self::RbeesDurable => "rbees-durable",
        }
    }

    /// Whether it is ours.
    pub const fn is_rbees(self) -> bool {
        matches!(self, Self::RbeesMemory | Self::RbeesDurable)
    }

    /// Whether it is one of the LLM routers we compare with.
    pub const fn is_router(self) -> bool {
        matches!(self, Self::SglangRouter | Self::VllmRouter | Self::Smg)
    }
}

/// What is special about a subject.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Options for the mock: `--workers N`, `--slots N`.
    pub mock: Vec<String>,
    /// More lines for the configuration; ours only.
    pub configuration: Option<String>,
}

/// A subject that runs and answers.
pub struct Subject {
    /// What it is.
    pub kind: Kind,
    address: SocketAddr,
    running: Running,
    _behind: Option<Running>,
}

impl Subject {
    /// Starts it, with a mock worker of its own behind it, and waits until it answers a chat.
    ///
    /// # Errors
    /// When a program does not start or does not answer; with what it said.
    pub async fn start(kind: Kind, programs: &Programs, folder: &Path) -> anyhow::Result<Self> {
        Self::with(kind, programs, folder, &Setup::default()).await
    }

    /// As [`Self::start`], with something special about it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn with(kind: Kind, programs: &Programs, folder: &Path, setup: &Setup) -> anyhow::Result<Self> {
        let folder = folder.join(kind.name());
        std::fs::create_dir_all(&folder)?;
        let mut subject = Self::launch(kind, programs, &folder, setup).await?;
        let chat = subject.chat(1, 0, false);
        subject.running.until_answers(&chat).await?;
        Ok(subject)
    }

    async fn launch(kind: Kind, programs: &Programs, folder: &Path, setup: &Setup) -> anyhow::Result<Self> {
        if kind == Kind::Direct {
            let (running, address) = process::mock(machine::SUBJECT_CPU, folder, None, &setup.mock).await?;
            return Ok(Self { kind, address, running, _behind: None });
        }
        let address = free_address()?;
        let orchestrator = kind.is_rbees().then_some(address);
        let (behind, mock) = process::mock(machine::LOAD_CPU, folder, orchestrator, &setup.mock).await?;
        let running = match kind {
            Kind::Haproxy => haproxy::start(programs, folder, address, mock)?,
            Kind::SglangRouter => routers::sglang(programs, folder, address, mock)?,
            Kind::VllmRouter => routers::vllm(programs, folder, address, mock)?,
            Kind::Smg => routers::smg(programs, folder, address, mock)?,
            Kind::Direct | Kind::RbeesMemory | Kind::RbeesDurable => {
                rbees::start(programs, folder, address, setup.configuration.as_deref().unwrap_or_default())?
            }
        };
        Ok(Self { kind, address, running, _behind: Some(behind) })
    }

    /// The process to account CPU and memory to.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// A chat completion of `tokens` tokens, one each `gap_us` microseconds.
    pub fn chat(&self, tokens: u32, gap_us: u64, stream: bool) -> Target {
        self.chat_about("Count.", tokens, gap_us, stream)
    }

    /// The same with a prompt of `bytes` bytes, of one token at once.
    pub fn long_chat(&self, bytes: usize) -> Target {
        self.chat_about(&"Twelve words of text that nobody reads. ".repeat(bytes / 40), 1, 0, false)
    }

    fn chat_about(&self, text: &str, tokens: u32, gap_us: u64, stream: bool) -> Target {
        let durability = match self.kind {
            Kind::RbeesMemory => r#","durability":"memory""#,
            Kind::RbeesDurable => r#","durability":"durable""#,
            Kind::Direct | Kind::Haproxy | Kind::SglangRouter | Kind::VllmRouter | Kind::Smg => "",
        };
        let body = format!(
            r#"{{"model":"mock","messages":[{{"role":"user","content":"gap_us={gap_us} {text}"}}],"max_tokens":{tokens},"stream":{stream},"temperature":0{durability}}}"#
        );
        self.target("/v1/chat/completions", body)
    }

    /// A submission of one token without waiting for the result.
    pub fn submission(&self) -> Target {
        self.submission_of("Count.")
    }

    /// The same with another prompt.
    pub fn submission_of(&self, prompt: &str) -> Target {
        let durability = if self.kind == Kind::RbeesMemory { "memory" } else { "durable" };
        let body =
            format!(r#"{{"model":"mock","prompt":"{prompt}","max_tokens":1,"durability":"{durability}"}}"#);
        self.target("/v2/tasks", body)
    }

    fn target(&self, path: &str, body: String) -> Target {
        Target { address: self.address, path: path.into(), body: Bytes::from(body) }
    }
}
