//! Larger fleets in the fast set: what is written down of a placement leads to the same choice by
//! itself, whoever scored; and the default policy decides alike, built in and as a script.

use sim::checks::reasons::Reasons;
use sim::plan::Plan;
use sim::run_fleet;
use sim::twins::run_twins;
use sim::world::Counts;

/// Fleets that the fast set runs.
const FLEETS: std::ops::Range<u64> = 0..12;

#[test]
fn the_recorded_reasons_alone_lead_to_each_choice() {
    let (mut reasons, mut counts) = (Reasons::default(), Counts::default());
    for seed in FLEETS {
        let fleet = run_fleet(seed, false).expect("the world is built");
        assert!(fleet.failures.is_empty(), "fleet {seed}: {:?}", fleet.failures);
        reasons.add(&fleet.reasons);
        counts.add(&fleet.counts);
    }
    assert_eq!(reasons.reproduced, reasons.placements, "{reasons:?}");
    let Reasons { by_script, of_sessions, with_affinity, kept_free, held, waiting, .. } = reasons;
    let grounds = [by_script, of_sessions, with_affinity, kept_free, held, waiting, counts.unloads];
    assert!(grounds.iter().all(|count| *count > 0), "a ground was never seen: {reasons:?} {counts:?}");
    assert!(by_script < reasons.placements, "the built-in policy scored, too: {reasons:?}");
}

#[test]
fn the_default_policy_decides_alike_built_in_and_as_a_script() {
    let mut placements = 0;
    for seed in FLEETS {
        for plan in [Plan::of, Plan::fleet] {
            let twins = run_twins(seed, plan).expect("the worlds are built");
            assert_eq!(twins.differ, None, "seed {seed}");
            placements += twins.placements;
        }
    }
    assert!(placements > 1_000, "only {placements} placements");
}
