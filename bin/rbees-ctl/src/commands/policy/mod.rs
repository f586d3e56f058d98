//! `rbees policy …`: what decides, and trying something else.

mod replay;
mod report;

use std::path::{Path, PathBuf};

use api_types::policy::{PolicyCheck, PolicyReport, PutPolicy};
use api_types::{ErrorCode, ErrorDetail};
use clap::{Args, Subcommand};
use cli_kit::ExitStatus;
use llama_orch_sdk::Error;
use policy_script::limits::SOURCE_BYTES;

use super::Outcome;
use crate::context::Context;
use crate::detail;

/// Shows, tries and changes the policy that places jobs
#[derive(Debug, Args)]
#[command(
    after_help = "From a script to the live policy:\n  rbees policy check FILE     does it compile, what would it say\n  rbees policy replay FILE    what it would have done with recorded jobs\n  rbees policy shadow FILE    let it decide beside the live one\n  rbees policy shadow report  where they differ\n  rbees policy promote        make it the live one\n  rbees policy rollback       go back"
)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Compiles a script and tries it; needs no orchestrator
    Check(CheckArgs),
    /// Shows the policies in force
    Show,
    /// Makes a script the live policy
    Set(SetArgs),
    /// Lets a script decide beside the live policy, without effect
    Shadow(ShadowArgs),
    /// Gives recorded jobs to a script and compares their waits; without one, shows that what was
    /// decided can be had again
    Replay(replay::ReplayArgs),
    /// Makes the shadow the live policy
    Promote,
    /// Goes back to the policy before the live one
    Rollback,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The script
    file: PathBuf,
    /// Try it on the workers of the orchestrator instead of made-up ones
    #[arg(long)]
    fleet: bool,
}

#[derive(Debug, Args)]
struct SetArgs {
    /// The script
    #[arg(required_unless_present = "built_in")]
    file: Option<PathBuf>,
    /// Go back to the built-in policy
    #[arg(long, conflicts_with = "file")]
    built_in: bool,
}

#[derive(Debug, Args)]
struct ShadowArgs {
    /// The script, or `report` for what the shadow would have done
    #[arg(required_unless_present = "off", value_name = "FILE|report")]
    file: Option<PathBuf>,
    /// End it
    #[arg(long, conflicts_with = "file")]
    off: bool,
}

/// Runs one of them.
pub async fn run(context: &Context, args: PolicyArgs) -> Outcome {
    match args.command {
        PolicyCommand::Check(args) => check(context, &args).await,
        PolicyCommand::Show => show(context, context.client()?.policy().await),
        PolicyCommand::Set(args) => {
            let policy = match &args.file {
                Some(file) => read(file)?,
                None => PutPolicy { name: "default".to_owned(), source: None },
            };
            show(context, context.client()?.set_policy(&policy).await)
        }
        PolicyCommand::Shadow(args) => shadow(context, &args).await,
        PolicyCommand::Replay(args) => replay::run(context, &args).await,
        PolicyCommand::Promote => show(context, context.client()?.promote_policy().await),
        PolicyCommand::Rollback => show(context, context.client()?.rollback_policy().await),
    }
}

async fn check(context: &Context, args: &CheckArgs) -> Outcome {
    let policy = read(&args.file)?;
    let found = if args.fleet {
        context.client()?.check_policy(&policy).await.map_err(Error::into_detail)?
    } else {
        policy_script::check::check(&policy.name, policy.source.as_deref().unwrap_or_default(), &[])
    };
    if context.printer.is_json() {
        context.printer.json(&found);
    } else {
        report::checked(&context.printer, &args.file, &found);
    }
    Ok(status(&found))
}

const fn status(found: &PolicyCheck) -> ExitStatus {
    if found.ok { ExitStatus::Ok } else { ExitStatus::Failed }
}

async fn shadow(context: &Context, args: &ShadowArgs) -> Outcome {
    let client = context.client()?;
    let Some(file) = &args.file else { return show(context, client.shadow_policy(None).await) };
    if file.as_os_str() != "report" {
        return show(context, client.shadow_policy(Some(read(file)?)).await);
    }
    let policies = client.policy().await.map_err(Error::into_detail)?;
    let Some(shadow) = policies.shadow else {
        return Err(ErrorDetail::new(ErrorCode::PolicyNotFound, "no shadow policy is set")
            .with_hint("rbees policy shadow FILE"));
    };
    if context.printer.is_json() {
        context.printer.json(&shadow);
    } else {
        report::shadow(&context.printer, &shadow);
    }
    Ok(ExitStatus::Ok)
}

fn show(context: &Context, policies: Result<PolicyReport, Error>) -> Outcome {
    let policies = policies.map_err(Error::into_detail)?;
    if context.printer.is_json() {
        context.printer.json(&policies);
    } else {
        report::policies(&context.printer, &policies);
    }
    Ok(ExitStatus::Ok)
}

/// A script, named after its file.
fn read(file: &Path) -> Result<PutPolicy, ErrorDetail> {
    let length = std::fs::metadata(file).map_err(|error| detail::file("read", file, &error))?.len();
    if length > SOURCE_BYTES as u64 {
        let message = format!("{} has {length} bytes; a script may have {SOURCE_BYTES}", file.display());
        return Err(ErrorDetail::new(ErrorCode::ScriptError, message));
    }
    let source = std::fs::read_to_string(file).map_err(|error| detail::file("read", file, &error))?;
    let name = file.file_stem().map_or_else(|| "policy".into(), |stem| stem.to_string_lossy());
    Ok(PutPolicy { name: name.into_owned(), source: Some(source) })
}
