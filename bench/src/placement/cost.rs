//! What one decision costs at several sizes of fleet and queue.

use std::collections::VecDeque;
use std::time::Instant;

use api_types::prefix::{BlockHash, PrefixChain};

use super::brain::Brain;
use super::policies::Routing;
use crate::stats::median;

const FLEETS: [usize; 4] = [1, 16, 256, 1_000];
const QUEUES: [usize; 3] = [10, 1_000, 100_000];
const SLOTS: u32 = 4;
/// Decisions measured at each size.
const DECISIONS: usize = 500;

/// Microseconds per decision. Two kinds: a slot falls free and the queue's next job gets it; and a
/// job comes while half of the slots are free.
pub fn table(scale: usize) -> String {
    let mut out =
        String::from("| us per decision | 10 queued | 1,000 queued | 100,000 queued | half free |\n");
    out.push_str("| --------------- | --------: | -----------: | -------------: | --------: |\n");
    let mut first: Option<Vec<f64>> = None;
    let mut last = Vec::new();
    for workers in FLEETS {
        let mut row: Vec<f64> = QUEUES.iter().map(|queued| queued_us(workers, *queued, scale)).collect();
        row.push(half_free_us(workers, scale));
        let cells: Vec<String> = row.iter().map(|us| format!("{us:>9.1}")).collect();
        out.push_str(&format!("| {workers:>5} workers   | {} |\n", cells.join(" | ")));
        first.get_or_insert_with(|| row.clone());
        last = row;
    }
    let ratio: Vec<String> = last
        .iter()
        .zip(first.unwrap_or_default())
        .map(|(last, first)| format!("{:.2}", last / first))
        .collect();
    out.push_str(&format!("| 1,000 / 1       | {} |\n", ratio.join(" | ")));
    out
}

/// A chain of a few blocks that no other job shares.
fn prompt(n: usize) -> PrefixChain {
    PrefixChain::new((0..4).map(|block| BlockHash((n as u64) << 8 | block)))
}

fn queued_us(workers: usize, queued: usize, scale: usize) -> f64 {
    let mut brain = Brain::new(workers, SLOTS, Routing::Default);
    let mut running = VecDeque::new();
    for n in 0..workers * SLOTS as usize + queued {
        running.extend(brain.submit(4_096, prompt(n)).1);
    }
    let mut times = Vec::new();
    for n in 0..DECISIONS * scale {
        let Some(open) = running.pop_front() else { break };
        let started = Instant::now();
        let begun = brain.end(open.run, 10, 10, 10);
        times.push(started.elapsed().as_secs_f64() * 1e6);
        running.extend(begun);
        running.extend(brain.submit(4_096, prompt(usize::MAX / 512 - n)).1);
    }
    median(&times).unwrap_or_default()
}

fn half_free_us(workers: usize, scale: usize) -> f64 {
    let mut brain = Brain::new(workers, SLOTS, Routing::Default);
    let mut running = VecDeque::new();
    for n in 0..workers * SLOTS as usize / 2 {
        running.extend(brain.submit(4_096, prompt(n)).1);
    }
    let mut times = Vec::new();
    for n in 0..DECISIONS * scale {
        let started = Instant::now();
        let begun = brain.submit(4_096, prompt(usize::MAX / 512 - n)).1;
        times.push(started.elapsed().as_secs_f64() * 1e6);
        running.extend(begun);
        let Some(open) = running.pop_front() else { break };
        running.extend(brain.end(open.run, 10, 10, 10));
    }
    median(&times).unwrap_or_default()
}
