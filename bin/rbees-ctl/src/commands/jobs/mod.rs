//! `rbees jobs …`: hand in, list, look at, watch, cancel, explain, erase.

mod cancel;
mod erase;
mod list;
mod show;
mod submit;
mod watch;
mod why;

use api_types::{ErrorCode, ErrorDetail, JobId};
use clap::{Args, Subcommand};
use llama_orch_sdk::TaskRequest;

use super::Outcome;
use crate::context::Context;

/// Hands in, lists, shows, watches, cancels, explains and erases jobs
#[derive(Debug, Args)]
pub struct JobsArgs {
    #[command(subcommand)]
    command: JobsCommand,
}

#[derive(Debug, Subcommand)]
enum JobsCommand {
    Submit(Box<submit::SubmitArgs>),
    List(list::ListArgs),
    /// Shows where a job stands, and its result once it has ended
    Show(JobArg),
    Watch(watch::WatchArgs),
    /// Cancels a job; harmless when it has ended
    Cancel(JobArg),
    Erase(erase::EraseArgs),
    /// Says why a job went where it went, or why it waits
    Why(JobArg),
}

#[derive(Debug, Args)]
pub struct JobArg {
    /// The job, `job_…`
    job: String,
}

impl JobArg {
    /// The job's id.
    fn id(&self) -> Result<JobId, ErrorDetail> {
        job_id(&self.job)
    }
}

fn job_id(text: &str) -> Result<JobId, ErrorDetail> {
    text.parse().map_err(|error| {
        ErrorDetail::new(ErrorCode::InvalidField, format!("`{text}`: {error}")).with_hint("rbees jobs list")
    })
}

/// How the next token is chosen; the same for every command that generates.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// Most tokens to generate, from 1
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 (greedy) to 2
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Keeps the likeliest tokens up to this probability, above 0 and up to 1
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Keeps this many likeliest tokens; 0 keeps all
    #[arg(long, value_name = "N")]
    top_k: Option<u32>,
    /// Drops tokens less likely than this share of the likeliest, 0 to 1
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Seed of the draws
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Ends the text before this string; may be given up to 16 times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// Writes what was given into a request.
    pub fn fill(self, request: TaskRequest) -> TaskRequest {
        TaskRequest {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed,
            stop: self.stop,
            ..request
        }
    }
}

/// Runs one of them.
pub async fn run(context: &Context, args: JobsArgs) -> Outcome {
    match args.command {
        JobsCommand::Submit(args) => submit::run(context, *args).await,
        JobsCommand::List(args) => list::run(context, args).await,
        JobsCommand::Show(args) => show::run(context, &args).await,
        JobsCommand::Watch(args) => watch::run(context, &args).await,
        JobsCommand::Cancel(args) => cancel::run(context, &args).await,
        JobsCommand::Erase(args) => erase::run(context, &args).await,
        JobsCommand::Why(args) => why::run(context, &args).await,
    }
}
