//! `cargo run -p sim --release -- --seeds 1000`

mod ledger;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use campaign::Ledger;
use clap::Parser;
use ledger::{Hunt, Run, Sweep, Why};
use sim::bugs::Bug;
use sim::plan::Plan;
use sim::twins::run_twins;
use sim::world::Counts;
use sim::{Outcome, kept_seeds, run_fleet, run_seed};

/// Every so many seeds one is run twice and both traces are compared.
const CANARY_EVERY: usize = 25;

/// Seeds that broke a promise of which the promises are shown.
const FAILURES_SHOWN: usize = 5;

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
    /// Run so many fleets instead: are their placements explained by what is written down of them?
    /// And does the default policy decide alike, built in and as a script?
    #[arg(long, conflicts_with_all = ["seeds", "find_bugs", "seed", "bug"])]
    fleets: Option<u64>,
    /// Run the fleet of this seed alone and print everything that happens.
    #[arg(long, conflicts_with_all = ["seeds", "from", "find_bugs", "seed", "bug", "fleets"])]
    fleet: Option<u64>,
    /// Threads to run seeds on.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    #[command(flatten)]
    ledger: Ledger,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return Ok(tell(&run_seed(seed, arguments.bug, true)?, &again(seed, arguments.bug)));
    }
    if let Some(seed) = arguments.fleet {
        return Ok(tell(&run_fleet(seed, true)?, &format!("--fleet {seed}")));
    }
    if arguments.find_bugs {
        return find_bugs(&arguments);
    }
    if let Some(count) = arguments.fleets {
        return fleets(&arguments, count);
    }
    sweep(&arguments)
}

/// What came of a world that was run with all that happened in it; `again` runs it once more.
fn tell(outcome: &Outcome, again: &str) -> ExitCode {
    println!("{:?}\ntrace {:016x}", outcome.counts, outcome.hash);
    if outcome.failures.is_empty() {
        println!("seed {}: every promise was kept", outcome.seed);
        return ExitCode::SUCCESS;
    }
    tell_failure(outcome, again);
    ExitCode::FAILURE
}

fn tell_failure(outcome: &Outcome, again: &str) {
    for failure in &outcome.failures {
        println!("seed {}: {}", outcome.seed, shorten(failure));
    }
    println!("replay it with: cargo run -p sim --release -- {again}");
}

/// The arguments that run a seed alone.
fn again(seed: u64, bug: Option<Bug>) -> String {
    let planted = bug.map_or(String::new(), |bug| format!(" --bug {}", bug.name()));
    format!("--seed {seed}{planted}")
}

/// Many seeds, all of them whatever they give.
fn sweep(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let mut seeds = kept_seeds()?;
    let kept_seeds = seeds.len() as u64;
    seeds.extend(arguments.from..arguments.from + arguments.seeds);
    let run = |seed: &u64| run_seed(*seed, arguments.bug, false);
    let outcomes =
        on_threads(arguments.jobs, &seeds, run)?.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let mut sweep = Sweep { from: arguments.from, seeds: arguments.seeds, kept_seeds, ..Sweep::default() };
    add_up(&outcomes, &mut sweep);
    canary(arguments, &outcomes, &mut sweep)?;
    let failed = outcomes.iter().filter(|outcome| !outcome.failures.is_empty());
    failed
        .take(FAILURES_SHOWN)
        .for_each(|outcome| tell_failure(outcome, &again(outcome.seed, arguments.bug)));
    println!(
        "{} seeds, {} of them broke a promise; {} faults had an effect, {} at least in each; \
         {} seeds were run twice, {} with another trace",
        outcomes.len(),
        sweep.violations,
        sweep.faults,
        sweep.faults_min,
        sweep.rerun,
        sweep.rerun_differ
    );
    let passed = sweep.violations + sweep.rerun_differ == 0;
    arguments.ledger.add(Run { run: "seeds", seconds: started.elapsed().as_secs(), result: sweep })?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn add_up(outcomes: &[Outcome], sweep: &mut Sweep) {
    let mut counts = Counts::default();
    let mut hash = 0_u64;
    for outcome in outcomes {
        counts.add(&outcome.counts);
        hash = hash.rotate_left(5) ^ outcome.hash;
        if let Some(failure) = outcome.failures.first() {
            sweep.violations += 1;
            sweep.first_violation.get_or_insert_with(|| (outcome.seed, shorten(failure)));
        }
    }
    println!("{counts:?}");
    sweep.faults = counts.faults;
    sweep.faults_min = outcomes.iter().map(|outcome| outcome.counts.faults).min().unwrap_or_default();
    (sweep.crashes, sweep.spawns, sweep.unloads) = (counts.crashes, counts.spawns, counts.unloads);
    (sweep.policy_failures, sweep.withdrawn) = (counts.policy_failures, counts.withdrawn);
    sweep.trace = format!("{hash:016x}");
}

/// The same seed must give the same run.
fn canary(arguments: &Arguments, outcomes: &[Outcome], sweep: &mut Sweep) -> anyhow::Result<()> {
    let chosen: Vec<&Outcome> = outcomes.iter().step_by(CANARY_EVERY).collect();
    let again = |once: &&Outcome| run_seed(once.seed, arguments.bug, false).map(|again| again.hash);
    let hashes = on_threads(arguments.jobs, &chosen, again)?;
    for (once, again) in chosen.iter().zip(hashes) {
        let again = again?;
        sweep.rerun += 1;
        if again != once.hash {
            sweep.rerun_differ += 1;
            println!("seed {} is not deterministic: {:016x}, {again:016x}", once.seed, once.hash);
        }
    }
    Ok(())
}

/// Fleets and their reasons, and each fleet's life under the default policy in both of its forms.
fn fleets(arguments: &Arguments, count: u64) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let seeds: Vec<u64> = (arguments.from..arguments.from + count).collect();
    let run = |seed: &u64| anyhow::Ok((run_fleet(*seed, false)?, run_twins(*seed, Plan::fleet)?));
    let mut why = Why { from: arguments.from, fleets: count, ..Why::default() };
    let mut counts = Counts::default();
    for found in on_threads(arguments.jobs, &seeds, run)? {
        let (fleet, twins) = found?;
        why.reasons.add(&fleet.reasons);
        counts.add(&fleet.counts);
        why.twin_steps += twins.steps;
        why.twin_placements += twins.placements;
        why.violations += u64::from(!fleet.failures.is_empty());
        why.twins_differ += u64::from(twins.differ.is_some());
        if !fleet.failures.is_empty() {
            tell_failure(&fleet, &format!("--fleet {}", fleet.seed));
        }
        if let Some(differ) = twins.differ {
            println!("fleet {} is another under the script: {}", fleet.seed, shorten(&differ));
        }
    }
    (why.evicted, why.policy_failures) = (counts.unloads, counts.policy_failures);
    let passed = why.violations + why.twins_differ == 0 && why.reasons.reproduced == why.reasons.placements;
    arguments.ledger.add(Run { run: "fleets", seconds: started.elapsed().as_secs(), result: why })?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Each planted bug must be found, or the simulation is no test.
fn find_bugs(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let first_failure = |bug: &Bug| {
        let runs =
            (arguments.from..arguments.from + arguments.seeds).map(|seed| run_seed(seed, Some(*bug), false));
        let failed =
            |run: &anyhow::Result<Outcome>| run.as_ref().map_or(true, |outcome| !outcome.failures.is_empty());
        runs.into_iter().find(failed).transpose()
    };
    let firsts = on_threads(arguments.jobs, &Bug::ALL, first_failure)?;
    let mut hunt =
        Hunt { from: arguments.from, within: arguments.seeds, bugs: Bug::ALL.len(), ..Hunt::default() };
    for (bug, first) in Bug::ALL.into_iter().zip(firsts) {
        if let Some(outcome) = first? {
            let failure = outcome.failures.first().cloned().unwrap_or_default();
            println!("{}: found by seed {}: {}", bug.name(), outcome.seed, shorten(&failure));
            hunt.found.push((bug.name(), outcome.seed));
        } else {
            println!("{}: not found within {} seeds", bug.name(), arguments.seeds);
            hunt.missed.push(bug.name());
        }
    }
    let passed = hunt.missed.is_empty();
    arguments.ledger.add(Run { run: "bugs", seconds: started.elapsed().as_secs(), result: hunt })?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Does something with each item on some threads; the results come in the order of the items.
fn on_threads<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    run: impl Fn(&T) -> R + Sync,
) -> anyhow::Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (sender, next, run) = (sender.clone(), &next, &run);
            scope.spawn(move || {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(place) else { return };
                    if sender.send((place, run(item))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut results: Vec<(usize, R)> = receiver.iter().collect();
        results.sort_by_key(|(place, _)| *place);
        anyhow::ensure!(results.len() == items.len(), "a thread ended early");
        Ok(results.into_iter().map(|(_, result)| result).collect())
    })
}

fn shorten(text: &str) -> String {
    text.chars().take(400).collect()
}
