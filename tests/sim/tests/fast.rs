//! The simulation in the fast set: a few dozen seeds, every kept seed, every planted bug.

use sim::bugs::Bug;
use sim::{kept_seeds, run_seed};

/// Seeds that the fast set runs besides the kept ones.
const SEEDS: std::ops::Range<u64> = 0..40;
/// Seeds within which each planted bug must be found.
const BUG_SEEDS: std::ops::Range<u64> = 0..1_000;

#[test]
fn every_promise_is_kept() {
    let kept = kept_seeds().expect("seeds.txt holds numbers");
    for seed in SEEDS.chain(kept) {
        let outcome = run_seed(seed, None, false).expect("the world is built");
        assert!(outcome.failures.is_empty(), "seed {seed}: {:?}", outcome.failures);
        assert!(outcome.counts.events > 0, "seed {seed} did nothing");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in SEEDS.step_by(8) {
        let once = run_seed(seed, None, false).expect("the world is built");
        assert_eq!(run_seed(seed, None, false).expect("the world is built"), once);
    }
    let other = run_seed(SEEDS.end, None, false).expect("the world is built");
    assert_ne!(run_seed(SEEDS.start, None, false).expect("the world is built").hash, other.hash);
}

#[test]
fn every_planted_bug_is_found() {
    for bug in Bug::ALL {
        let found = BUG_SEEDS.into_iter().find(|seed| {
            let outcome = run_seed(*seed, Some(bug), false).expect("the world is built");
            !outcome.failures.is_empty()
        });
        assert!(found.is_some(), "{} is not found within {BUG_SEEDS:?}", bug.name());
    }
}
