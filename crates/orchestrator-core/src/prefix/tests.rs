//! The index against lists of prompts that are compared block by block.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use api_types::prefix::BlockHash;
use proptest::prelude::*;

use super::*;

const MODEL: &str = "small";
/// More than are named for one block.
const WORKERS: u64 = HOLDERS as u64 + 3;

/// Prompts that share starts: a tree with two branches at each block.
fn chain(path: &[bool]) -> PrefixChain {
    let mut at = 1_u64;
    PrefixChain::new(path.iter().map(|turn| {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(*turn) * 7 + 1);
        BlockHash(at)
    }))
}

fn id(n: u64) -> WorkerId {
    format!("w{n}").parse().expect("an id")
}

fn keeper(id: &WorkerId, n: u64, slots: u32) -> Keeper<'_> {
    Keeper { worker_id: id, incarnation: Incarnation(n), model: MODEL, slots }
}

#[derive(Debug, Clone)]
enum Op {
    Note {
        worker: u64,
        path: Vec<bool>,
    },
    /// The worker lists those of its prompts whose place has a bit set.
    Report {
        worker: u64,
        kept: u8,
    },
    Forget {
        worker: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let path = || prop::collection::vec(any::<bool>(), 0..7);
    prop_oneof![
        8 => (0_u64..WORKERS, path()).prop_map(|(worker, path)| Op::Note { worker, path }),
        2 => (0_u64..WORKERS, any::<u8>()).prop_map(|(worker, kept)| Op::Report { worker, kept }),
        1 => (0_u64..WORKERS).prop_map(|worker| Op::Forget { worker }),
    ]
}

/// What each worker holds, latest last.
#[derive(Default)]
struct Truth(BTreeMap<u64, Vec<PrefixChain>>);

impl Truth {
    fn note(&mut self, worker: u64, chain: &PrefixChain, slots: usize) {
        if chain.is_empty() {
            return;
        }
        let held = self.0.entry(worker).or_default();
        held.retain(|old| !chain.blocks().starts_with(old.blocks()));
        held.push(chain.clone());
        let surplus = held.len().saturating_sub(slots);
        held.drain(..surplus);
    }

    fn depth(&self, worker: u64, chain: &PrefixChain) -> usize {
        let common = |held: &PrefixChain| {
            held.blocks().iter().zip(chain.blocks()).take_while(|(one, other)| one == other).count()
        };
        self.0.get(&worker).into_iter().flatten().map(common).max().unwrap_or(0)
    }
}

proptest! {
    #[test]
    fn the_deepest_holder_is_found_and_no_depth_is_overstated(
        ops in prop::collection::vec(op(), 1..60), slots in 1_u32..5
    ) {
        let mut index = PrefixIndex::default();
        let mut truth = Truth::default();
        for (at, op) in ops.into_iter().enumerate() {
            let now = Time(at as u64);
            match op {
                Op::Note { worker, path } => {
                    index.note(keeper(&id(worker), worker, slots), &chain(&path), now);
                    truth.note(worker, &chain(&path), slots as usize);
                }
                Op::Report { worker, kept } => {
                    let held = truth.0.entry(worker).or_default();
                    let mut place = 0;
                    held.retain(|_| { place += 1; kept >> (place - 1) & 1 == 1 });
                    let listed: Vec<_> = held.iter().map(|chain| RetainedPrefix {
                        deepest: *chain.blocks().last().expect("no empty prompt"),
                        blocks: chain.blocks().len() as u32,
                    }).collect();
                    index.report(keeper(&id(worker), worker, slots), &listed, now, now);
                }
                Op::Forget { worker } => {
                    index.forget(Incarnation(worker));
                    truth.0.remove(&worker);
                }
            }
            for path in [vec![true; 6], vec![false; 6], vec![true, false, true, false, true, false]] {
                let asked = chain(&path);
                let found = index.find(MODEL, &asked);
                let deepest = (0..WORKERS).map(|worker| truth.depth(worker, &asked)).max().unwrap_or(0);
                prop_assert_eq!(found.first().map_or(0, |(_, depth)| *depth), deepest);
                for (worker, depth) in found {
                    let n: u64 = worker.as_str()[1..].parse().expect("a number");
                    prop_assert!(depth <= truth.depth(n, &asked));
                }
                prop_assert!(index.find("another model", &asked).is_empty());
            }
        }
        (0..WORKERS).for_each(|worker| index.forget(Incarnation(worker)));
        prop_assert_eq!((index.blocks, index.holders.len(), index.by_age.len()), (0, 0, 0));
    }
}

#[test]
fn a_report_after_a_restart_is_enough_to_find_the_longer_prompt_of_the_next_turn() {
    let mut index = PrefixIndex::default();
    let (id, long) = (id(1), chain(&[true; 9]));
    let kept = RetainedPrefix { deepest: long.blocks()[5], blocks: 6 };
    index.report(keeper(&id, 1, 4), &[kept], Time(0), Time(0));
    assert_eq!(index.find(MODEL, &long), [(&id, 6)]);
    index.note(keeper(&id, 1, 4), &long, Time(1));
    assert_eq!(index.find(MODEL, &chain(&[true, true, false])), [(&id, 2)]);
    assert!(index.bare.is_empty());
}

#[test]
fn a_long_prompt_is_found_after_more_workers_than_are_named_held_its_start_and_lost_it() {
    let mut index = PrefixIndex::default();
    let (long, start) = (chain(&[true; 6]), chain(&[true; 2]));
    index.note(keeper(&id(0), 0, 4), &long, Time(0));
    for n in 1..WORKERS {
        index.note(keeper(&id(n), n, 4), &start, Time(n));
    }
    (1..WORKERS).for_each(|n| index.forget(Incarnation(n)));
    assert_eq!(index.find(MODEL, &long), [(&id(0), 6)]);
    assert_eq!(index.find(MODEL, &start), [(&id(0), 2)]);
}

#[test]
fn what_was_sent_just_before_a_report_outlives_it() {
    let mut index = PrefixIndex::default();
    let (id, prompt) = (id(1), chain(&[true; 3]));
    index.note(keeper(&id, 1, 4), &prompt, Time(100));
    index.report(keeper(&id, 1, 4), &[], Time(99), Time(104));
    assert_eq!(index.find(MODEL, &prompt), [(&id, 3)]);
    index.report(keeper(&id, 1, 4), &[], Time(100), Time(105));
    assert!(index.find(MODEL, &prompt).is_empty());
}

#[test]
fn no_flood_of_prompts_or_reports_grows_it_beyond_its_bounds() {
    let mut index = PrefixIndex::default();
    let prompt = |n: u64| PrefixChain::new((0..128).map(|block| BlockHash(n * 1_000 + block)));
    for n in 0..3_000_u64 {
        index.note(keeper(&id(n % 40), n % 40, 1_000), &prompt(n), Time(n));
    }
    assert!(index.blocks <= BLOCKS && index.blocks > BLOCKS / 2, "{}", index.blocks);
    assert!(index.holders.len() <= index.blocks);
    let flood: Vec<_> = (0..10_000).map(|n| RetainedPrefix { deepest: BlockHash(n), blocks: 1 }).collect();
    index.report(keeper(&id(1), 1, 1), &flood, Time(9_000), Time(9_000));
    assert!(index.workers.values().all(|holder| holder.prompts.len() <= PROMPTS));
    assert!(!index.find(MODEL, &prompt(2_999)).is_empty(), "the latest is kept");
}
