//! Which stages make up which suite.

use std::path::Path;
use std::process::Command;

use crate::chaos::{self, Campaign};
use crate::prerequisites::{self, BuildEnv, Need};
use crate::python::Venv;
use crate::test::stage::Runner;
use crate::test::{Suite, nextest};
use crate::workspace::Workspace;
use crate::{bans, layers, models, openapi, process, release};

/// The client that the conformance tests drive us with.
const OPENAI_CLIENT: &str = "openai==3.52.0";

/// Runs the stages of `suite`: what needs nothing of the machine first, then the cheap ones.
pub fn run(workspace: &Workspace, suite: Suite, runner: &mut Runner) {
    if suite != Suite::Release {
        reading(workspace, runner);
    }
    let needs = if suite == Suite::Fast { &Need::FOR_FAST_TESTS[..] } else { &Need::FOR_TESTS };
    let env = runner.stage("prerequisites", || prerequisites::ensure(workspace, needs)).unwrap_or_default();
    if suite != Suite::Release {
        runner.stage("fast tests", || fast_tests(workspace));
    }
    if suite != Suite::Fast {
        release(workspace, suite, &env, runner);
    }
}

/// What is read rather than run.
fn reading(workspace: &Workspace, runner: &mut Runner) {
    runner.stage("formatting", || process::run(workspace.cargo().args(["fmt", "--all", "--check"])));
    runner.stage("layers", || layers::run(workspace));
    runner.stage("bans", || bans::run(workspace));
    runner.stage("lints", || {
        process::run(
            workspace.cargo().args(["clippy", "--workspace", "--all-targets", "--locked"]).args(DENY),
        )
    });
    runner.stage("documentation tests", || {
        process::run(workspace.cargo().args(["test", "--workspace", "--doc", "--locked", "--quiet"]))
    });
}

fn fast_tests(workspace: &Workspace) -> anyhow::Result<()> {
    process::run(nextest::command(workspace)?.args(["run", "--workspace", "--locked", "--no-fail-fast"]))
}

/// After `clippy`'s own arguments.
const DENY: [&str; 3] = ["--", "-D", "warnings"];

fn release(workspace: &Workspace, suite: Suite, env: &BuildEnv, runner: &mut Runner) {
    runner.stage("release build", || release::build(workspace, env));
    runner.stage("API documents", || openapi::check(workspace, &workspace.release_folder()));
    simulation(workspace, suite, runner);
    chaos(workspace, suite, runner);
    runner.stage("lints with the native engine", || native_lints(workspace, env));
    let inputs = runner.stage("models and clients", || Inputs::fetch(workspace));
    runner.stage("release tests", || {
        let inputs = inputs.ok_or_else(|| anyhow::anyhow!("models or clients are missing"))?;
        release_tests(workspace, suite, env, &inputs)
    });
}

fn simulation(workspace: &Workspace, suite: Suite, runner: &mut Runner) {
    let full = suite == Suite::Long;
    let sim = |name: &str, arguments: &[&str]| {
        let mut cargo = workspace.cargo();
        cargo.args(["run", "--quiet", "--release", "--locked", "--package", "sim", "--"]).args(arguments);
        if full {
            cargo.args(["--commit", &chaos::commit(workspace)?]);
            cargo.arg("--ledger").arg(chaos::ledger(workspace, name)?);
        }
        process::run(&mut cargo)
    };
    let jobs = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let seeds = if full { "10000" } else { "1000" };
    runner.stage("simulation", || sim("simulation", &["--seeds", seeds, "--jobs", &jobs]));
    let fleets = if full { "1000" } else { "100" };
    runner.stage("reasons of placements", || sim("why", &["--fleets", fleets, "--jobs", &jobs]));
    if full {
        let mut cargo = workspace.cargo();
        cargo.args(["test", "--release", "--locked", "--package", "orchestrator-core", "--test", "overload"]);
        runner
            .stage("overload in model time", || process::run(cargo.args(["--", "--ignored", "--nocapture"])));
    }
    runner.stage("simulation finds planted bugs", || sim("simulation", &["--find-bugs"]));
}

/// The campaigns of `cargo xtask chaos`: a tenth of their full size, or all of it, which is kept.
fn chaos(workspace: &Workspace, suite: Suite, runner: &mut Runner) {
    let full = suite == Suite::Long;
    let (cycles, images, points, seconds) = if full { (200, 5_000, 200, 60) } else { (20, 500, 20, 6) };
    runner.stage("chaos build", || chaos::build(workspace));
    let run = |campaign| chaos::campaign(workspace, campaign, None, full);
    runner.stage("kill -9 under load", || run(Campaign::Kill { cycles }));
    runner.stage("failing system calls", || run(Campaign::Faults { points }));
    runner.stage("overload", || run(Campaign::Overload { seconds }));
    runner.stage("power loss", || run(Campaign::Powerloss { images }));
}

fn native_lints(workspace: &Workspace, env: &BuildEnv) -> anyhow::Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["clippy", "--all-targets"]);
    env.apply(&mut cargo);
    process::run(release::select(&mut cargo).args(["--package", "engine"]).args(DENY))
}

/// What release tests find through the environment.
struct Inputs {
    models: std::path::PathBuf,
    python: std::path::PathBuf,
}

impl Inputs {
    fn fetch(workspace: &Workspace) -> anyhow::Result<Self> {
        let models = models::ensure(workspace)?;
        let python = Venv::with(workspace, "openai", &[OPENAI_CLIENT])?.python();
        Ok(Self { models, python })
    }

    fn apply(&self, command: &mut Command, programs: &Path) {
        command.env("RBEES_TEST_MODELS", &self.models);
        command.env("RBEES_TEST_PYTHON", &self.python);
        command.env("RBEES_BIN_DIR", programs);
    }
}

/// Selects the same packages as the release build, so that nothing is built twice, and runs those
/// tests of theirs that need a release build.
fn release_tests(workspace: &Workspace, suite: Suite, env: &BuildEnv, inputs: &Inputs) -> anyhow::Result<()> {
    let mut nextest = nextest::command(workspace)?;
    let profile = if suite == Suite::Long { "long" } else { "release" };
    nextest.args(["run", "--profile", profile, "--no-fail-fast"]);
    nextest.args(["--package", "e2e", "--package", "engine", "--package", "model-folder"]);
    env.apply(&mut nextest);
    inputs.apply(&mut nextest, &workspace.release_folder());
    if suite == Suite::Long {
        // Some of the long tests fetch more than the models, some keep their results.
        nextest.env("RBEES_TEST_NETWORK", "1");
        nextest.env("RBEES_TEST_LEDGER", workspace.root.join("docs").join("ledger"));
        nextest.env("RBEES_TEST_COMMIT", chaos::commit(workspace)?);
    }
    // nextest has its own --profile; cargo's is what --release asks for.
    process::run(release::select(&mut nextest))
}
