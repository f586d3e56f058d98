//! `cargo run -p sim --release -- --seeds 1000`

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use clap::Parser;
use sim::bugs::Bug;
use sim::world::Counts;
use sim::{Outcome, kept_seeds, run_seed};

/// Every so many seeds one is run twice and both traces are compared.
const CANARY_EVERY: u64 = 25;

/// Runs the brain in a seeded world of faults and checks the promises it makes.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run, besides those of seeds.txt.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run this seed alone and print everything that happens.
    #[arg(long, conflicts_with_all = ["seeds", "from", "find_bugs"])]
    seed: Option<u64>,
    /// Plant a bug; the run is then expected to fail.
    #[arg(long, value_enum)]
    bug: Option<Bug>,
    /// Plant each bug in turn and fail if one is not found within the seeds.
    #[arg(long, conflicts_with = "bug")]
    find_bugs: bool,
    /// Threads to run seeds on.
    #[arg(long, default_value_t = 1)]
    jobs: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return replay(seed, arguments.bug);
    }
    if arguments.find_bugs {
        return find_bugs(arguments.from, arguments.seeds);
    }
    sweep(&arguments)
}

/// One seed, with all that happens in it.
fn replay(seed: u64, bug: Option<Bug>) -> anyhow::Result<ExitCode> {
    let outcome = run_seed(seed, bug, true)?;
    println!("{:?}\ntrace {:016x}", outcome.counts, outcome.hash);
    Ok(verdict(&outcome, bug))
}

fn verdict(outcome: &Outcome, bug: Option<Bug>) -> ExitCode {
    if outcome.failures.is_empty() {
        println!("seed {}: every promise was kept", outcome.seed);
        return ExitCode::SUCCESS;
    }
    for failure in &outcome.failures {
        println!("seed {}: {failure}", outcome.seed);
    }
    let planted = bug.map_or(String::new(), |bug| format!(" --bug {}", bug.name()));
    println!("replay it with: cargo run -p sim --release -- --seed {}{planted}", outcome.seed);
    ExitCode::FAILURE
}

/// Many seeds; stops at the first that fails.
fn sweep(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut seeds = kept_seeds()?;
    seeds.extend(arguments.from..arguments.from + arguments.seeds);
    let outcomes = run_all(&seeds, arguments.bug, arguments.jobs.max(1))?;
    let mut counts = Counts::default();
    let mut hash = 0_u64;
    for outcome in &outcomes {
        counts.add(&outcome.counts);
        hash = hash.rotate_left(5) ^ outcome.hash;
        if !outcome.failures.is_empty() {
            return Ok(verdict(outcome, arguments.bug));
        }
    }
    println!("{} seeds, every promise was kept", outcomes.len());
    println!("{counts:?}\ntrace {hash:016x}");
    canary(&outcomes, arguments.bug)
}

/// Runs seeds on some threads. Outcomes come in the order of `seeds`, up to the first failure.
fn run_all(seeds: &[u64], bug: Option<Bug>, threads: u64) -> anyhow::Result<Vec<Outcome>> {
    let next = AtomicU64::new(0);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let outcome = run_seed(*seed, bug, false);
                    let failed = !outcome.as_ref().is_ok_and(|outcome| outcome.failures.is_empty());
                    if failed {
                        next.store(seeds.len() as u64, Ordering::Relaxed);
                    }
                    if sender.send(outcome).is_err() || failed {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut outcomes = receiver.iter().collect::<anyhow::Result<Vec<_>>>()?;
        outcomes.sort_by_key(|outcome| seeds.iter().position(|seed| *seed == outcome.seed));
        Ok(outcomes)
    })
}

/// The same seed must give the same run.
fn canary(outcomes: &[Outcome], bug: Option<Bug>) -> anyhow::Result<ExitCode> {
    for outcome in outcomes.iter().step_by(CANARY_EVERY as usize) {
        let again = run_seed(outcome.seed, bug, false)?;
        if again.hash != outcome.hash {
            println!(
                "seed {} is not deterministic: {:016x}, {:016x}",
                outcome.seed, outcome.hash, again.hash
            );
            return Ok(ExitCode::FAILURE);
        }
    }
    println!("{} seeds were run twice with the same trace", outcomes.len().div_ceil(CANARY_EVERY as usize));
    Ok(ExitCode::SUCCESS)
}

/// Each planted bug must be found, or the simulation is no test.
fn find_bugs(from: u64, seeds: u64) -> anyhow::Result<ExitCode> {
    let mut all_found = true;
    for bug in Bug::ALL {
        match first_failure(bug, from, seeds)? {
            Some(outcome) => {
                let (seed, failure) = (outcome.seed, outcome.failures.first().cloned().unwrap_or_default());
                println!("{}: found by seed {seed}: {}", bug.name(), shorten(&failure));
            }
            None => {
                println!("{}: not found within {seeds} seeds", bug.name());
                all_found = false;
            }
        }
    }
    Ok(if all_found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn first_failure(bug: Bug, from: u64, seeds: u64) -> anyhow::Result<Option<Outcome>> {
    for seed in from..from + seeds {
        let outcome = run_seed(seed, Some(bug), false)?;
        if !outcome.failures.is_empty() {
            return Ok(Some(outcome));
        }
    }
    Ok(None)
}

fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}
