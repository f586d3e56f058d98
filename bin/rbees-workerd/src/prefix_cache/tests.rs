//! The cache over the fake engine, whose scores depend on every token before them: what a run says
//! tells whether its sequence holds what it should.

use std::sync::atomic::AtomicBool;

use api_types::prefix::BlockHash;
use engine::{Backend, LoadOptions, Row};
use proptest::prelude::*;

use super::*;

const LARGE: u64 = 1 << 30;

struct World {
    engine: Box<dyn Engine>,
    cache: PrefixCache,
    running: Vec<Vec<Token>>,
}

impl World {
    fn new(slots: u32, budget: u64) -> Self {
        let options =
            LoadOptions { backend: Backend::Fake, gpus: Vec::new(), slots, context: None, threads: None };
        let engine = engine::open("fake:bee", &options, Box::new(|_| true)).expect("loads");
        let cache = PrefixCache::new(slots as usize, budget, true);
        Self { engine, cache, running: vec![Vec::new(); slots as usize] }
    }

    fn begin(&mut self, prompt: &[Token]) -> Place {
        let running = &self.running;
        let place = self.cache.begin(&mut *self.engine, prompt, true, |slot| &running[slot]);
        let place = place.expect("a sound engine").expect("a free slot");
        self.running[place.slot] = prompt.to_vec();
        place
    }

    /// Processes what is not reused; the scores after the last token.
    fn process(&mut self, place: Place, prompt: &[Token]) -> Vec<f32> {
        let rows: Vec<Row> = (place.reused..prompt.len())
            .map(|at| Row {
                seq: place.slot as u32,
                pos: at as u32,
                token: prompt[at],
                logits: at + 1 == prompt.len(),
            })
            .collect();
        self.engine.step(&rows, &AtomicBool::new(false)).expect("rows that follow what is held");
        self.engine.logits(rows.len() - 1).to_vec()
    }

    fn end(&mut self, place: Place, chain: &[u64]) {
        let tokens = std::mem::take(&mut self.running[place.slot]);
        let chain = PrefixChain::new(chain.iter().map(|hash| BlockHash(*hash)));
        let prompt = Prompt { chain, tokens: tokens.len() };
        self.cache.end(place.slot, tokens, prompt);
    }

    /// A whole run; how much it reused.
    fn run(&mut self, prompt: &[Token]) -> usize {
        let place = self.begin(prompt);
        self.process(place, prompt);
        self.end(place, &[]);
        place.reused
    }
}

fn prompt(first: Token, length: u32) -> Vec<Token> {
    (0..length).map(|at| b'a' as Token + (first + at) % 20).collect()
}

#[test]
fn the_next_turn_processes_only_what_is_new() {
    let mut world = World::new(2, LARGE);
    assert_eq!(world.run(&prompt(0, 100)), 0);
    assert_eq!(world.run(&prompt(0, 130)), 100, "the second turn goes on in the same sequence");
    assert_eq!(world.run(&prompt(0, 130)), 129, "of the same prompt only the last token is left");
}

#[test]
fn another_prompt_puts_the_sequence_aside_and_it_comes_back() {
    let mut world = World::new(1, LARGE);
    world.run(&prompt(0, 100));
    assert_eq!(world.cache.bytes_aside(), 0, "nothing is copied before somebody needs the slot");
    assert_eq!(world.run(&prompt(7, 80)), 0);
    assert!(world.cache.bytes_aside() > 0);
    assert_eq!(world.run(&prompt(0, 110)), 100);
    assert_eq!(world.run(&prompt(7, 90)), 80);
}

#[test]
fn two_runs_share_a_start_while_both_go_on() {
    let mut world = World::new(2, 0);
    let first = world.begin(&prompt(0, 100));
    world.process(first, &prompt(0, 100));
    let mut other = prompt(0, 60);
    other.extend(prompt(9, 30));
    let second = world.begin(&other);
    assert_eq!((second.slot != first.slot, second.reused), (true, 60));
    world.process(second, &other);
    let place = Place { slot: first.slot, reused: 100 };
    world.process(place, &prompt(0, 101));
}

#[test]
fn what_is_put_aside_keeps_within_its_bytes_and_the_oldest_goes() {
    let mut world = World::new(1, 3_000);
    for first in 0..4 {
        world.run(&prompt(first * 5, 100));
        assert!(world.cache.bytes_aside() <= 3_000);
    }
    assert_eq!(world.run(&prompt(0, 101)), 0, "the first was let go");
    assert_eq!(world.run(&prompt(15, 101)), 100, "the last was not");
    assert_eq!(World::new(1, 0).cache.bytes_aside(), 0);
}

#[test]
fn a_prompt_that_others_begin_with_is_kept_beside_them() {
    let mut world = World::new(1, LARGE);
    let mut long = prompt(0, 40);
    long.extend(prompt(11, 200));
    world.run(&long);
    assert_eq!(world.run(&prompt(0, 60)), 40, "the shared start is used");
    assert_eq!(world.run(&long), 239, "and the rest of the long one is not lost");
}

#[test]
fn an_engine_that_cannot_cut_serves_a_sequence_whole_or_not_at_all() {
    let mut world = World::new(1, LARGE);
    world.cache.cuts = false;
    world.run(&prompt(0, 100));
    assert_eq!(world.run(&prompt(0, 80)), 0);
    assert_eq!(world.run(&prompt(0, 120)), 100, "the longer of two that fit whole");
}

#[test]
fn only_whole_prompts_without_a_run_are_reported() {
    let mut world = World::new(2, LARGE);
    let place = world.begin(&prompt(0, 100));
    assert!(world.cache.retained().is_empty());
    world.process(place, &prompt(0, 100));
    world.end(place, &[1, 2]);
    let held = RetainedPrefix { deepest: BlockHash(2), blocks: 2 };
    assert_eq!(world.cache.retained(), [held]);
    let cut_off = world.begin(&prompt(9, 50));
    let chain = PrefixChain::new([BlockHash(3)]);
    world.cache.end(cut_off.slot, prompt(9, 20), Prompt { chain, tokens: 50 });
    assert_eq!(world.cache.retained(), [held], "half a prompt is no prompt, and what is aside counts");
}

#[test]
fn when_all_are_busy_there_is_no_place() {
    let mut world = World::new(1, LARGE);
    world.begin(&prompt(0, 10));
    let none = world.cache.begin(&mut *world.engine, &prompt(3, 10), true, |_| &[]);
    assert_eq!(none.expect("a sound engine"), None);
}

proptest! {
    /// Whatever was run before, reusing it changes nothing of what comes next.
    #[test]
    fn a_run_says_what_it_would_say_alone(
        runs in prop::collection::vec((0u32..3, 1u32..60, 0u32..4, 0u32..30), 1..20),
        slots in 1u32..4,
        budget in prop_oneof![Just(0u64), Just(2_000), Just(LARGE)],
    ) {
        let mut world = World::new(slots, budget);
        let mut going: Vec<Place> = Vec::new();
        for (first, length, other, rest) in runs {
            let mut text = prompt(first, length);
            text.extend(prompt(other * 3, rest));
            if going.len() == slots as usize {
                let place = going.remove(0);
                world.end(place, &[]);
            }
            let place = world.begin(&text);
            prop_assert!(place.reused < text.len());
            let scores = world.process(place, &text);
            going.push(place);
            let mut alone = World::new(1, 0);
            let fresh = alone.begin(&text);
            prop_assert_eq!(scores, alone.process(fresh, &text));
        }
    }
}
