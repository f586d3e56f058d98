//! `cargo xtask chaos`: campaigns against the real orchestrator, whose results are kept.

use std::path::PathBuf;
use std::process::Command;

use crate::prerequisites::{self, Need};
use crate::process;
use crate::release;
use crate::workspace::Workspace;

/// Campaigns that kill the orchestrator, cut its power or overload it, and count what was lost.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    campaign: Campaign,
    /// Where every number of the campaign comes from; drawn from the clock when absent.
    #[arg(long, global = true)]
    seed: Option<u64>,
}

/// Which campaign, and how long.
#[derive(Debug, Clone, Copy, clap::Subcommand)]
pub enum Campaign {
    /// Kills the orchestrator again and again under load: every acknowledged job must end once, every
    /// stream must go on token by token.
    Kill {
        /// How often it is killed.
        #[arg(long, default_value_t = 200)]
        cycles: u32,
    },
    /// Has one system call on the database fail per run: the orchestrator must go on or end with the
    /// right code, and every acknowledged job must be there afterwards.
    Faults {
        /// Calls that are made to fail.
        #[arg(long, default_value_t = 200)]
        points: u32,
    },
    /// Asks for five times what the fleet can do, then for twice that with deadlines: goodput stays, refusals
    /// come at once, and what was taken in is in time.
    Overload {
        /// How long each load lasts.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Cuts the power at random points of a recording: every acknowledged job must be on the disk. An
    /// orchestrator that does not sync its commits runs too, and must fail.
    Powerloss {
        /// Disks that are made up and recovered from.
        #[arg(long, default_value_t = 5_000)]
        images: u32,
    },
}

/// Builds what the campaign needs, runs it, and adds its result to `docs/ledger`.
pub fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    let env = prerequisites::ensure(workspace, &[&Need::FOR_BUILD[..], &[Need::Strace]].concat())?;
    release::build(workspace, &env)?;
    build(workspace)?;
    campaign(workspace, args.campaign, args.seed, true)
}

/// Builds what the campaigns need beside the release build.
pub fn build(workspace: &Workspace) -> anyhow::Result<()> {
    let chaos = ["build", "--release", "--locked", "--package", "e2e", "--bin", "chaos"];
    process::run(workspace.cargo().args(chaos))?;
    // The control of the power-loss campaign needs the switch that only a development build has.
    process::run(workspace.cargo().args(["build", "--locked", "--package", "rbees-orcd"]))
}

/// Runs a campaign whose programs are built.
pub fn campaign(
    workspace: &Workspace,
    campaign: Campaign,
    seed: Option<u64>,
    keep: bool,
) -> anyhow::Result<()> {
    let mut chaos = Command::new(workspace.program("chaos"));
    let name = match campaign {
        Campaign::Kill { cycles } => {
            chaos.args(["kill", "--cycles", &cycles.to_string()]);
            "kill"
        }
        Campaign::Faults { points } => {
            chaos.args(["faults", "--points", &points.to_string()]);
            "faults"
        }
        Campaign::Overload { seconds } => {
            chaos.args(["overload", "--seconds", &seconds.to_string()]);
            "overload"
        }
        Campaign::Powerloss { images } => {
            chaos.args(["powerloss", "--images", &images.to_string(), "--weak-orchestrator"]);
            chaos.arg(workspace.target.join("debug").join("rbees-orcd"));
            "powerloss"
        }
    };
    if let Some(seed) = seed {
        chaos.args(["--seed", &seed.to_string()]);
    }
    if keep {
        chaos.args(["--commit", &commit(workspace)?, "--ledger"]).arg(ledger(workspace, name)?);
    }
    process::run(chaos.env("RBEES_BIN_DIR", workspace.release_folder()))
}

/// The commit of the checkout; marked when files differ from it.
pub fn commit(workspace: &Workspace) -> anyhow::Result<String> {
    let git =
        |arguments: &[&str]| process::read(Command::new("git").current_dir(&workspace.root).args(arguments));
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ":!docs/ledger"])?;
    Ok(format!("{}{}", commit.trim(), if changed.trim().is_empty() { "" } else { "-dirty" }))
}

/// The file of the repository that keeps results of this name.
pub fn ledger(workspace: &Workspace, name: &str) -> anyhow::Result<PathBuf> {
    let folder = workspace.root.join("docs").join("ledger");
    std::fs::create_dir_all(&folder)?;
    Ok(folder.join(format!("{name}.jsonl")))
}
