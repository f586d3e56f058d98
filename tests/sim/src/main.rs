//! `cargo run -p sim --release -- --seeds 1000`

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use clap::Parser;
use serde_json::json;
use sim::bugs::Bug;
use sim::ledger::Ledger;
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
    #[command(flatten)]
    ledger: Ledger,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return replay(seed, arguments.bug);
    }
    if arguments.find_bugs {
        return find_bugs(&arguments);
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
    }
    let fewest = outcomes.iter().map(|outcome| outcome.counts.faults).min().unwrap_or(0);
    let failed = outcomes.iter().find(|outcome| !outcome.failures.is_empty());
    let (again, differing) = canary(&outcomes, arguments.bug)?;
    arguments.ledger.add(json!({
        "from": arguments.from, "seeds": outcomes.len(), "faults": counts.faults, "fewest_faults": fewest,
        "crashes": counts.crashes, "worker_deaths": counts.worker_deaths, "spawns": counts.spawns,
        "violations": failed.iter().len(), "run_twice": again, "differing": differing.len(),
        "trace": format!("{hash:016x}"),
    }))?;
    if let Some(outcome) = failed {
        return Ok(verdict(outcome, arguments.bug));
    }
    println!("{} seeds with {fewest} faults or more each, every promise was kept", outcomes.len());
    println!("{counts:?}\ntrace {hash:016x}");
    println!("{again} seeds were run twice, {} of them with another trace {differing:?}", differing.len());
    Ok(if differing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

/// The same seed must give the same run. Gives how many were run again, and those that differed.
fn canary(outcomes: &[Outcome], bug: Option<Bug>) -> anyhow::Result<(usize, Vec<u64>)> {
    let some = || outcomes.iter().step_by(CANARY_EVERY as usize);
    let mut differing = Vec::new();
    for outcome in some() {
        if run_seed(outcome.seed, bug, false)?.hash != outcome.hash {
            differing.push(outcome.seed);
        }
    }
    Ok((some().count(), differing))
}

/// Each planted bug must be found, or the simulation is no test.
fn find_bugs(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut found = serde_json::Map::new();
    for bug in Bug::ALL {
        match first_failure(bug, arguments.from, arguments.seeds)? {
            Some(outcome) => {
                let (seed, failure) = (outcome.seed, outcome.failures.first().cloned().unwrap_or_default());
                println!("{}: found by seed {seed}: {}", bug.name(), shorten(&failure));
                found.insert(bug.name(), json!(seed));
            }
            None => println!("{}: not found within {} seeds", bug.name(), arguments.seeds),
        }
    }
    let all_found = found.len() == Bug::ALL.len();
    arguments.ledger.add(json!({
        "from": arguments.from, "within": arguments.seeds, "planted": Bug::ALL.len(), "found_by_seed": found,
    }))?;
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
