//! `rbees up`: from a bare machine to a streamed answer.

mod first_answer;
mod started;

use std::net::SocketAddr;
use std::path::PathBuf;

use api_types::ErrorDetail;
use api_types::pool::PoolStatus;
use clap::Args;
use cli_kit::{ExitStatus, ProgressView};
use clients::pool::Pool;
use llama_orch_sdk::Client;
use serde::de::IgnoredAny;

use super::Outcome;
use crate::context::Context;
use crate::signals::asked_to_stop;
use crate::stack::{orchestrator, propose, worker};
use crate::{detail, stack};
use first_answer::FirstAnswer;
use started::Started;

/// Starts everything on this machine and shows a first answer
#[derive(Debug, Args)]
#[command(
    after_help = "Finds the hardware, proposes a model that fits, downloads it, starts the orchestrator and a worker, and asks a first question. Stays until Ctrl-C and then stops what it started; what runs already is used and left alone.\n\nExamples:\n  rbees up\n  rbees up --model tinyllama --bind 127.0.0.1:9000\n  rbees up --detach      then: rbees down"
)]
pub struct UpArgs {
    /// The model; a fitting one is proposed when absent
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Where the orchestrator listens [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    bind: Option<SocketAddr>,
    /// Stops everything after the first answer
    #[arg(long, conflicts_with = "detach")]
    once: bool,
    /// Returns after the first answer and leaves everything running; `rbees down` stops it
    #[arg(long)]
    detach: bool,
}

/// Runs it.
pub async fn run(context: &Context, args: &UpArgs) -> Outcome {
    let up = Up { context, args, home: context.home()?, pool: context.local_pool()? };
    let mut started = Started::default();
    let answer = tokio::select! {
        answer = up.bring_up(&mut started) => answer,
        () = asked_to_stop() => Err(detail::interrupted().with_hint("what was started is stopped; run it again any time")),
    };
    let outcome = match answer {
        Ok(answer) => up.after(&answer, &mut started).await,
        Err(error) => Err(error),
    };
    if args.detach && outcome.is_ok() {
        return outcome;
    }
    let stopped = tokio::select! {
        stopped = started.stop(&up.pool) => stopped,
        // Whoever asks twice does not want to wait for streams to end.
        () = asked_to_stop() => Err(detail::interrupted().with_hint("rbees down stops what is left")),
    };
    outcome.and_then(|status| stopped.map(|()| status))
}

/// A model by the two names it has.
struct Model {
    /// What the pool calls it.
    spawned_as: String,
    /// What requests call it.
    served_as: String,
}

struct Up<'a> {
    context: &'a Context,
    args: &'a UpArgs,
    home: PathBuf,
    pool: Pool,
}

impl Up<'_> {
    async fn bring_up(&self, started: &mut Started) -> Result<FirstAnswer, ErrorDetail> {
        let printer = &self.context.printer;
        let view = ProgressView::new(printer);
        let status: PoolStatus = self.pool.json(&["status"]).await?;
        view.note(hardware_line(&status));
        let model = self.model(&status, &view).await?;

        let url =
            orchestrator::ensure(self.context, &self.home, self.args.bind, &mut started.orchestrator).await?;
        let how = if started.orchestrator.is_some() { "started" } else { "runs" };
        view.note(format!("orchestrator {how} at {url}"));

        let client = self.context.client_of(&url)?;
        let worker = self.worker(&client, &model, &url, started, &view).await?;
        view.clear();
        let record = worker::record(&self.pool, &worker).await;
        first_answer::ask(printer, &client, &url, &model.served_as, record).await
    }

    /// The model to serve, downloaded.
    async fn model(&self, status: &PoolStatus, view: &ProgressView) -> Result<Model, ErrorDetail> {
        let wanted = match &self.args.model {
            Some(model) => model.clone(),
            None => {
                let proposal = propose::propose(status)?;
                view.note(format!("model {}: {}", proposal.model, proposal.because));
                proposal.model
            }
        };
        // The engine for tests makes its text up and needs no file.
        if let Some(name) = wanted.strip_prefix("fake:") {
            return Ok(Model {
                served_as: name.split('?').next().unwrap_or(name).to_owned(),
                spawned_as: wanted,
            });
        }
        let known = status.models.iter().find(|model| model.id == wanted || model.aliases.contains(&wanted));
        if !known.is_some_and(|model| model.downloaded) {
            let args = ["models", "download", wanted.as_str()];
            let _: IgnoredAny = self.pool.json_with(&args, &mut |progress| view.show(&progress)).await?;
        }
        let id = known.map_or(wanted, |model| model.id.clone());
        Ok(Model { served_as: id.clone(), spawned_as: id })
    }

    /// A ready worker for the model.
    async fn worker(
        &self,
        client: &Client,
        model: &Model,
        url: &str,
        started: &mut Started,
        view: &ProgressView,
    ) -> Result<api_types::WorkerId, ErrorDetail> {
        let worker = match worker::serving(client, &model.served_as).await? {
            Some(worker) => worker,
            None => {
                started.spawning_since(&self.pool).await?;
                let pool = self.pool.clone().with_orchestrator_token(self.context.worker_token()?);
                let worker = worker::spawn(&pool, &model.spawned_as, url, view).await?;
                view.note(format!("worker {worker} serves {}", model.served_as));
                started.spawned(worker.clone());
                worker
            }
        };
        worker::await_ready(client, &model.served_as, &worker).await?;
        Ok(worker)
    }

    /// What happens once the first answer is there.
    async fn after(&self, answer: &FirstAnswer, started: &mut Started) -> Outcome {
        answer.print(&self.context.printer);
        if self.args.once {
            self.context.printer.note("--once: stopping now; `rbees up` keeps this address alive");
        }
        if self.args.once || self.args.detach || started.is_nothing() {
            return Ok(ExitStatus::Ok);
        }
        self.context.printer.note("stays until Ctrl-C, or `rbees down` from elsewhere");
        tokio::select! {
            () = asked_to_stop() => self.context.printer.note("stopping"),
            () = started.orchestrator_ended() => self.unexpected_end()?,
        }
        Ok(ExitStatus::Ok)
    }

    /// The orchestrator ended while we waited: fine when somebody asked it to.
    fn unexpected_end(&self) -> Result<(), ErrorDetail> {
        self.context.printer.note(format!(
            "the orchestrator has ended; its log: {}",
            stack::orchestrator::log_path(&self.home).display()
        ));
        Ok(())
    }
}

fn hardware_line(status: &PoolStatus) -> String {
    let hardware = &status.hardware;
    let gpus: Vec<String> = hardware
        .gpus
        .iter()
        .map(|gpu| format!("{} ({} free)", gpu.name, cli_kit::human_bytes(gpu.memory_free_bytes)))
        .collect();
    let gpus = if gpus.is_empty() { "no GPU".to_owned() } else { gpus.join(", ") };
    format!(
        "{}: {} {}, {} cores, {} memory free, {gpus}",
        status.host,
        hardware.os,
        hardware.arch,
        hardware.cores,
        cli_kit::human_bytes(hardware.ram_available_bytes)
    )
}
