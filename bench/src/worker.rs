//! `bench worker`: the worker beside llama-server of the same engine version, in turns, on one machine.

mod client;
mod loads;
mod report;
mod servers;

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::machine;
use crate::relay::fresh;
use report::{Bar, Report, Series};
use servers::{Kind, Server, Setup};

/// Measures total tokens per second, time to first token, gaps between tokens, warm prompts, start
/// and memory; and what the way through the orchestrator costs.
#[derive(clap::Args)]
pub struct Args {
    /// Two pairs of each load instead of nine: shows that everything runs, its figures mean little.
    #[arg(long)]
    quick: bool,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Rewrite the figures in `bench/README.md`.
    #[arg(long)]
    update: bool,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
    /// Threads that compute, the same for both.
    #[arg(long, default_value_t = 2)]
    threads: u32,
    /// GGUF files; each is measured by itself.
    #[arg(long = "model", required = true)]
    models: Vec<PathBuf>,
    #[command(flatten)]
    programs: Programs,
}

/// Where the programs lie.
#[derive(Debug, Clone, clap::Args)]
pub struct Programs {
    /// The worker's release build.
    #[arg(long)]
    rbees_workerd: PathBuf,
    /// The orchestrator's release build.
    #[arg(long)]
    rbees_orcd: Option<PathBuf>,
    /// llama-server of the worker's engine version.
    #[arg(long)]
    llama_server: PathBuf,
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// 1, 8 and 16 streams of 96 tokens.
    Streams,
    /// A long prompt that arrives while four streams decode.
    Intrusion,
    /// A prompt whose start was processed before.
    Warm,
    /// From the start of the process to its first token, and the memory it then holds.
    Start,
    /// The worker alone and behind the orchestrator.
    Orchestrator,
}

const PAIRS: usize = 9;
const STREAMS: [usize; 3] = [1, 8, 16];

/// Runs it.
///
/// # Errors
/// When a program does not start or a request fails: a figure with failures in it would mean nothing.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("making a folder for the servers")?;
    let load_before = machine::load_average();
    let pairs = if args.quick { 2 } else { PAIRS };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::new(load_before, pairs, args.threads);
    for model in &args.models {
        let bench = Bench { args, model, pairs, folder: folder.path() };
        report.add(model, runtime.block_on(bench.measure())?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.markdown());
    }
    if args.update {
        crate::report::update_section("worker", &report.markdown())?;
    }
    Ok(())
}

/// One model's measurement.
struct Bench<'a> {
    args: &'a Args,
    model: &'a Path,
    pairs: usize,
    folder: &'a Path,
}

impl Bench<'_> {
    async fn measure(&self) -> anyhow::Result<Vec<Series>> {
        let mut all = Shown(Vec::new());
        if self.wants(Part::Streams) {
            for streams in STREAMS {
                all.take(self.streams(streams).await?);
            }
        }
        if self.wants(Part::Intrusion) {
            all.take(self.intrusion().await?);
        }
        if self.wants(Part::Warm) {
            all.take(self.warm().await?);
        }
        if self.wants(Part::Start) {
            all.take(self.start().await?);
        }
        if self.wants(Part::Orchestrator) && self.args.programs.rbees_orcd.is_some() {
            all.take(self.orchestrator().await?);
        }
        Ok(all.0)
    }

    fn wants(&self, part: Part) -> bool {
        self.args.only.is_empty() || self.args.only.contains(&part)
    }

    async fn server(&self, kind: Kind, setup: Setup) -> anyhow::Result<Server> {
        let folder = fresh(self.folder, kind.name())?;
        Server::start(kind, &self.args.programs, self.model, setup, &folder).await
    }

    const fn setup(&self, slots: usize, context: usize) -> Setup {
        Setup { slots, context, threads: self.args.threads }
    }

    /// Both servers, theirs first.
    async fn both(&self, setup: Setup) -> anyhow::Result<[Server; 2]> {
        Ok([self.server(Kind::LlamaServer, setup).await?, self.server(Kind::Worker, setup).await?])
    }

    async fn streams(&self, streams: usize) -> anyhow::Result<Vec<Series>> {
        eprintln!("{}: {streams} streams", self.name());
        let servers = self.both(self.setup(16, 1024)).await?;
        let of = |what: &str| format!("{what}, {streams} streams");
        let mut rate = Series::new(of("tokens/s"), Bar::AtLeast(0.98));
        let first_bar = if streams == 8 { Bar::AtMost(1.05) } else { Bar::None };
        let mut first = Series::new(of("first token ms, median"), first_bar);
        let mut gap = Series::new(of("gap between tokens ms, p99"), first_bar);
        for pair in 0..self.pairs {
            for side in order(pair) {
                let Some(server) = servers.get(side) else { continue };
                let seen = loads::burst(server, streams, 96, pair).await?;
                rate.push(side, seen.tokens_per_second);
                first.push(side, seen.first_token_ms);
                gap.push(side, seen.gap_p99_ms);
            }
        }
        Ok(vec![rate, first, gap])
    }

    async fn intrusion(&self) -> anyhow::Result<Vec<Series>> {
        eprintln!("{}: a long prompt arrives", self.name());
        let servers = self.both(self.setup(5, 4608)).await?;
        let mut gap =
            Series::new("worst gap of 4 streams ms while a long prompt arrives".to_owned(), Bar::AtMost(1.0));
        let mut first = Series::new("first token ms of that prompt".to_owned(), Bar::None);
        for pair in 0..self.pairs.min(3) {
            for side in order(pair) {
                let Some(server) = servers.get(side) else { continue };
                let seen = loads::intrusion(server, pair).await?;
                gap.push(side, seen.worst_gap_ms);
                first.push(side, seen.first_token_ms);
            }
        }
        Ok(vec![gap, first])
    }

    async fn warm(&self) -> anyhow::Result<Vec<Series>> {
        eprintln!("{}: warm prompts", self.name());
        let servers = self.both(self.setup(4, 2048)).await?;
        let mut cold = Series::new("first token ms, cold prompt".to_owned(), Bar::None);
        let mut warm = Series::new("first token ms, its second turn".to_owned(), Bar::None);
        let mut again = Series::new("prompt tokens not reused in it".to_owned(), Bar::None);
        for pair in 0..self.pairs {
            for side in order(pair) {
                let Some(server) = servers.get(side) else { continue };
                let seen = loads::warm(server, pair).await?;
                cold.push(side, seen.cold_ms);
                warm.push(side, seen.warm_ms);
                again.push(side, seen.recomputed);
            }
        }
        Ok(vec![cold, warm, again])
    }

    async fn start(&self) -> anyhow::Result<Vec<Series>> {
        eprintln!("{}: starts", self.name());
        let mut start = Series::new("process start to first token ms".to_owned(), Bar::AtMost(1.0));
        let mut memory = Series::new("resident MiB after 8 streams".to_owned(), Bar::AtMost(1.1));
        for pair in 0..self.pairs {
            for side in order(pair) {
                let kind = if side == 0 { Kind::LlamaServer } else { Kind::Worker };
                let begin = std::time::Instant::now();
                let server = self.server(kind, self.setup(16, 1024)).await?;
                loads::burst(&server, 1, 1, pair).await?;
                start.push(side, begin.elapsed().as_secs_f64() * 1e3);
                loads::burst(&server, 8, 32, pair).await?;
                memory.push(side, machine::resident_bytes(server.pid()) as f64 / f64::from(1 << 20));
            }
        }
        Ok(vec![start, memory])
    }

    /// With one thread, so that neither the orchestrator nor the reader waits for a CPU.
    async fn orchestrator(&self) -> anyhow::Result<Vec<Series>> {
        eprintln!("{}: through the orchestrator", self.name());
        let setup = Setup { slots: 8, context: 1024, threads: 1 };
        let servers =
            [self.server(Kind::Worker, setup).await?, self.server(Kind::Orchestrated, setup).await?];
        let mut rate = Series::new("through rbees: tokens/s, 8 streams".to_owned(), Bar::AtLeast(0.97));
        let mut first =
            Series::new("through rbees: first token ms, 1 stream".to_owned(), Bar::AddsAtMost(1.0));
        for pair in 0..self.pairs {
            for side in order(pair) {
                let Some(server) = servers.get(side) else { continue };
                rate.push(side, loads::burst(server, 8, 96, pair).await?.tokens_per_second);
                first.push(side, loads::burst(server, 1, 1, pair).await?.first_token_ms);
            }
        }
        Ok(vec![rate, first])
    }

    fn name(&self) -> String {
        self.model.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Series that are told as soon as they are there: the whole takes many minutes.
struct Shown(Vec<Series>);

impl Shown {
    fn take(&mut self, series: Vec<Series>) {
        series.iter().for_each(|series| eprintln!("  {}", series.line()));
        self.0.extend(series);
    }
}

/// Who goes first changes from pair to pair.
const fn order(pair: usize) -> [usize; 2] {
    if pair.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}
