//! The simulation in the fast set: a few dozen seeds, every kept seed, every planted bug.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sim::bugs::Bug;
use sim::world::{Counts, FAULTS_AT_LEAST};
use sim::{kept_seeds, run_seed};

/// Seeds that the fast set runs besides the kept ones.
const SEEDS: std::ops::Range<u64> = 0..24;
/// Seeds within which each planted bug must be found.
const BUG_SEEDS: std::ops::Range<u64> = 0..1_000;

#[test]
fn every_promise_is_kept() {
    let kept = kept_seeds().expect("seeds.txt holds numbers");
    let mut counts = Counts::default();
    for seed in SEEDS.chain(kept) {
        let outcome = run_seed(seed, None, false).expect("the world is built");
        assert!(outcome.failures.is_empty(), "seed {seed}: {:?}", outcome.failures);
        assert!(outcome.counts.faults >= FAULTS_AT_LEAST, "seed {seed}: {:?}", outcome.counts);
        counts.add(&outcome.counts);
    }
    let all = [counts.spawns, counts.unloads, counts.policy_failures, counts.withdrawn, counts.crashes];
    assert!(all.iter().all(|count| *count > 0), "a part of the world was never seen: {counts:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in SEEDS.step_by(6) {
        let once = run_seed(seed, None, false).expect("the world is built");
        assert_eq!(run_seed(seed, None, false).expect("the world is built"), once);
    }
    let other = run_seed(SEEDS.end, None, false).expect("the world is built");
    assert_ne!(run_seed(SEEDS.start, None, false).expect("the world is built").hash, other.hash);
}

#[test]
fn every_planted_bug_is_found() {
    let is_found = |bug| {
        BUG_SEEDS.into_iter().any(|seed| {
            let outcome = run_seed(seed, Some(bug), false).expect("the world is built");
            !outcome.failures.is_empty()
        })
    };
    let next = AtomicUsize::new(0);
    let hunt = || {
        while let Some(bug) = Bug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            assert!(is_found(*bug), "{} is not found within {BUG_SEEDS:?}", bug.name());
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(hunt);
        }
    });
}
