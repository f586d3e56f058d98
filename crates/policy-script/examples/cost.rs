//! What one placement costs under the built-in policy and under the same policy as a script:
//! `cargo run --release -p policy-script --example cost`.

#![allow(clippy::expect_used, reason = "an example fails by panicking")]

use std::time::Instant;

use orchestrator_core::policy::{JobFacts, LeastLoaded, Policy, WorkerLoad};
use policy_script::{DEFAULT_SCRIPT, Language};

/// Placements of one figure.
const ROUNDS: u32 = 20_000;

fn main() {
    let script = Language::default().compile("default", DEFAULT_SCRIPT).expect("it compiles");
    println!("workers  built in  script, facts seen before  script, new facts   (microseconds a placement)");
    for workers in [1, 8, 32] {
        let built_in = cost(&LeastLoaded, workers, false);
        let (seen, new) = (cost(&*script, workers, false), cost(&*script, workers, true));
        println!("{workers:7}  {built_in:8.2}  {seen:25.2}  {new:17.2}");
    }
}

/// Microseconds of one placement. `new`: no worker ever stands as it did before.
fn cost(policy: &dyn Policy, workers: u64, new: bool) -> f64 {
    let mut scores = Vec::new();
    let start = Instant::now();
    for round in 0..u64::from(ROUNDS) {
        let moved = if new { round * 1_000_003 } else { round % 4 * 1_000_003 };
        let load = |n: u64| WorkerLoad {
            slots: 4,
            slots_free: 1 + (n + round % 3) as u32 % 4,
            free_memory_bytes: 1_000_000_000 + n * 17 + moved,
            ..WorkerLoad::default()
        };
        let loads: Vec<_> = (0..workers).map(load).collect();
        policy.score(&JobFacts::default(), &loads, &mut scores).expect("it answers");
        std::hint::black_box(&scores);
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS)
}
