//! More is asked than the fleet can do: what is refused, what is kept. All figures are on model
//! time, so they are the same on every machine.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

#[path = "overload/model.rs"]
mod model;

use api_types::task::TaskStatus;
use model::{Model, Outcome, Scenario};
use orchestrator_core::JobRow;
use orchestrator_core::estimate::outcome;

/// Model seconds of the everyday run; the long one is ten times as long, or as the environment says.
const SECONDS: u64 = 600;
const LONG_SECONDS: u64 = 6_000;
/// Offered load as multiples of what the fleet can do.
const LOADS: [f64; 6] = [0.5, 0.8, 1.0, 1.5, 2.0, 5.0];

fn scenario(seed: u64, load: f64, seconds: u64) -> Scenario {
    Scenario {
        seed,
        load,
        workers: 4,
        slots: 4,
        seconds,
        warm_up: seconds / 6,
        deadlines: None,
        batch: 0.3,
        tenants: 3,
    }
}

fn with_deadlines(scenario: Scenario) -> Scenario {
    Scenario { deadlines: Some((8_000, 60_000)), ..scenario }
}

/// Share of rows for which `holds`, in percent.
fn share(rows: &[JobRow], holds: impl Fn(&JobRow) -> bool) -> f64 {
    let held = rows.iter().filter(|row| holds(row)).count();
    100.0 * held as f64 / rows.len().max(1) as f64
}

fn kept(row: &JobRow) -> bool {
    row.status == TaskStatus::Completed && row.deadline.zip(row.ended_at).is_none_or(|(by, at)| at <= by)
}

/// Shares inside p50 and p90 of the jobs that say something of their estimate, and their number.
fn calibration(rows: &[JobRow]) -> (f64, f64, usize) {
    let judged: Vec<_> = rows.iter().filter_map(outcome).collect();
    let percent = |count: usize| 100.0 * count as f64 / judged.len().max(1) as f64;
    let inside = |p90: bool| judged.iter().filter(|o| if p90 { o.inside_p90 } else { o.inside_p50 }).count();
    (percent(inside(false)), percent(inside(true)), judged.len())
}

fn tell(name: &str, scenario: &Scenario, ended: &Outcome) {
    let (p50, p90, judged) = calibration(&ended.ended);
    println!(
        "{name}: seed {} load {:.1}: offered {} refused {:?} admitted {} goodput {:.2}/s, kept {:.1} %, \
         inside p50 {p50:.1} %, inside p90 {p90:.1} % of {judged}",
        scenario.seed,
        scenario.load,
        ended.offered,
        ended.refused,
        ended.ended.len(),
        ended.goodput(),
        share(&ended.ended, kept),
    );
}

fn run(name: &str, scenario: Scenario) -> Outcome {
    let ended = Model::new(scenario).run();
    tell(name, &scenario, &ended);
    ended
}

/// Goodput at five times the load is at least nine tenths of the best at any load.
fn goodput_holds(name: &str, seed: u64, seconds: u64, shape: impl Fn(Scenario) -> Scenario) {
    let at = |load| run(name, shape(scenario(seed, load, seconds))).goodput();
    let goodputs = LOADS.map(at);
    let peak = goodputs.into_iter().fold(0.0, f64::max);
    let overloaded = goodputs[LOADS.len() - 1];
    println!("{name}: goodput at 5.0 is {:.1} % of the peak", 100.0 * overloaded / peak);
    assert!(overloaded >= 0.9 * peak, "{name}, seed {seed}: {overloaded:.2}/s of {peak:.2}/s");
}

/// At twice the load: of the admitted at least 95 % keep their deadline, and 85 to 95 % of the jobs
/// end inside their p90.
fn promises_hold(seed: u64, seconds: u64) {
    let ended = run("deadlines", with_deadlines(scenario(seed, 2.0, seconds)));
    let kept = share(&ended.ended, kept);
    let (_, p90, judged) = calibration(&ended.ended);
    assert!(kept >= 95.0, "seed {seed}: {kept:.1} % of the admitted keep their deadline");
    assert!(judged * 10 >= ended.ended.len() * 9, "only {judged} jobs say something of their estimate");
    assert!((85.0..=95.0).contains(&p90), "seed {seed}: {p90:.1} % end inside their p90");
}

#[test]
fn five_times_the_load_costs_no_goodput() {
    goodput_holds("no deadlines", 1, SECONDS, |scenario| scenario);
}

#[test]
fn five_times_the_load_costs_no_goodput_where_late_answers_are_worthless() {
    goodput_holds("deadlines", 1, SECONDS, with_deadlines);
}

#[test]
fn at_twice_the_load_what_is_admitted_keeps_its_deadline_and_its_estimate() {
    for seed in 1..=3 {
        promises_hold(seed, SECONDS);
    }
}

#[test]
fn without_deadlines_nine_in_ten_jobs_end_inside_their_p90() {
    for (seed, load) in [(1, 0.5), (2, 0.9), (3, 1.5)] {
        let ended = run("no deadlines", scenario(seed, load, SECONDS));
        let (_, p90, _) = calibration(&ended.ended);
        assert!((85.0..=95.0).contains(&p90), "seed {seed}, load {load}: {p90:.1} % end inside their p90");
    }
}

/// Sized by `RBEES_OVERLOAD_SECONDS` and `RBEES_OVERLOAD_SEEDS`.
#[test]
#[ignore = "long: cargo xtask test long"]
#[expect(clippy::disallowed_methods, reason = "the size of a campaign is no business of the brain's")]
fn long_overload() {
    let size = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect(name));
    let seconds = size("RBEES_OVERLOAD_SECONDS", LONG_SECONDS);
    for seed in 1..=size("RBEES_OVERLOAD_SEEDS", 5) {
        goodput_holds("no deadlines", seed, seconds, |scenario| scenario);
        goodput_holds("deadlines", seed, seconds, with_deadlines);
        promises_hold(seed, seconds);
    }
}
