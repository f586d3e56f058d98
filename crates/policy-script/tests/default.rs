//! The default policy as a script decides as the built-in one does, to the last bit.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::{Arc, LazyLock};

use orchestrator_core::policy::{
    Admission, Again, FailureFacts, Hour, JobFacts, LeastLoaded, Policy, QueueFacts, Score, WorkerLoad,
};
use policy_script::{DEFAULT_SCRIPT, Language};
use proptest::prelude::*;

static SCRIPT: LazyLock<Arc<dyn Policy>> =
    LazyLock::new(|| Language::default().compile("default", DEFAULT_SCRIPT).expect("it compiles"));

prop_compose! {
    fn load()(
        slots in 1_u32..65,
        busy in 0_u32..64,
        free_memory_bytes in prop_oneof![Just(0), 0_u64..400_000_000_000, any::<u32>().prop_map(u64::from)],
        prefix_share in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0_f64],
        session_here in any::<bool>(),
        idle_ms in 0_u64..10_000_000,
        hour in 0_u8..24,
    ) -> WorkerLoad<'static> {
        WorkerLoad {
            model: "small",
            backend: "cuda",
            slots,
            slots_free: slots.saturating_sub(busy).max(1),
            free_memory_bytes,
            prefix_share,
            session_here,
            idle_ms,
            hour: Hour { of_day: hour, minute: 0, weekday: 0 },
            ..WorkerLoad::default()
        }
    }
}

fn bits(scores: &[Score]) -> Vec<Option<u64>> {
    let bits = |score: &Score| match score {
        Score::Points(points) => Some(points.to_bits()),
        Score::KeepFree => None,
    };
    scores.iter().map(bits).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_script_scores_and_evicts_as_the_built_in_policy(
        fleet in prop::collection::vec(load(), 1..33),
        prompt_bytes in 0_u64..1_000_000,
        waited_ms in 0_u64..1_000_000,
    ) {
        let job = JobFacts { tenant: "default", model: "small", prompt_bytes, waited_ms, ..JobFacts::default() };
        let (mut by_rust, mut by_script) = (Vec::new(), Vec::new());
        LeastLoaded.score(&job, &fleet, &mut by_rust).expect("never fails");
        SCRIPT.score(&job, &fleet, &mut by_script).expect("it answers");
        prop_assert_eq!(bits(&by_rust), bits(&by_script));
        for worker in &fleet {
            prop_assert_eq!(LeastLoaded.evict(worker), SCRIPT.evict(worker));
        }
    }
}

#[test]
fn the_script_admits_orders_and_tries_again_as_the_built_in_policy() {
    let job = JobFacts { tries_failed: 2, ..JobFacts::default() };
    let failure = FailureFacts { code: "WORKER_LOST", workers_lost: 1, attempts: 5 };
    assert_eq!(SCRIPT.admit(&job, &QueueFacts::default()), Ok(Admission::Admit));
    assert_eq!(SCRIPT.order(&job), LeastLoaded.order(&job));
    assert_eq!(SCRIPT.retry(&job, &failure), Ok(Again::GoOn));
}
