//! Which workers hold the start of a prompt in their KV cache.
//!
//! A prompt is known by the chained hashes of its blocks, so a block's hash stands for all that goes
//! before it, and the deepest block that anybody holds is found by bisection. What a worker was given
//! counts as held until its reports say otherwise. The index is a guess about caches elsewhere: a
//! wrong entry costs time, never a wrong answer.

use std::collections::BTreeMap;

use api_types::prefix::{MAX_BLOCKS, PrefixChain, RetainedPrefix};
use api_types::{Incarnation, WorkerId};
use serde::{Deserialize, Serialize};

use crate::time::Time;

/// Workers that a search names for one block, the latest ones.
const HOLDERS: usize = 4;
/// Prompts kept for one worker, whatever it reports.
const PROMPTS: usize = 256;
/// Blocks kept for all workers together, one that several hold counted for each; about 150 bytes each.
const BLOCKS: usize = 262_144;
/// Workers that a search returns.
const FOUND: usize = 8;

/// The index. Its bounds hold whatever clients and workers send.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct PrefixIndex {
    /// By block everybody who holds it, by the tick of the last prompt with that block. Whoever holds a
    /// block holds all before it, so no block is without a holder that goes before one that has one.
    holders: BTreeMap<u64, BTreeMap<u64, Incarnation>>,
    workers: BTreeMap<Incarnation, Holder>,
    by_age: BTreeMap<u64, Incarnation>,
    /// How many prompts of each length are known by their deepest block only.
    bare: BTreeMap<usize, usize>,
    last_tick: u64,
    blocks: usize,
}

/// A start of a worker, and what it holds.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    worker_id: WorkerId,
    /// By their deepest block.
    prompts: BTreeMap<u64, Prompt>,
    by_age: BTreeMap<u64, u64>,
    blocks: BTreeMap<u64, Held>,
    /// The most prompts it ever said it keeps.
    most_reported: usize,
}

/// A block that a worker holds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Held {
    /// Prompts that contain it.
    prompts: usize,
    /// The last of them.
    tick: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Prompt {
    /// First to last; only the last where the worker told of it and nobody else did.
    blocks: Vec<u64>,
    length: usize,
    tick: u64,
    since: Time,
}

impl Prompt {
    const fn is_bare(&self) -> bool {
        self.blocks.len() < self.length
    }
}

/// A worker that a prompt goes to, or that reports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keeper<'a> {
    /// The worker.
    pub worker_id: &'a WorkerId,
    /// Its start.
    pub incarnation: Incarnation,
    /// The model it runs: caches of different models have nothing in common.
    pub model: &'a str,
    /// Its slots; so many prompts at least it is believed to keep.
    pub slots: u32,
}

impl PrefixIndex {
    /// A worker was given a prompt and will hold it.
    pub fn note(&mut self, keeper: Keeper<'_>, chain: &PrefixChain, now: Time) {
        let blocks = keys(keeper.model, chain);
        let length = blocks.len();
        self.insert(keeper, blocks, length, now);
        self.trim(keeper);
    }

    /// A worker told what it keeps: the rest is forgotten, but for what it was given after
    /// `settled_before`, which it may not have begun.
    pub fn report(&mut self, keeper: Keeper<'_>, kept: &[RetainedPrefix], settled_before: Time, now: Time) {
        let salt = salt(keeper.model);
        let listed: BTreeMap<u64, usize> = kept
            .iter()
            .take(PROMPTS)
            .map(|kept| (kept.deepest.0 ^ salt, usize::try_from(kept.blocks).unwrap_or(MAX_BLOCKS)))
            .filter(|(_, length)| (1..=MAX_BLOCKS).contains(length))
            .collect();
        let holder = self.workers.entry(keeper.incarnation).or_insert_with(|| Holder::new(keeper.worker_id));
        holder.most_reported = holder.most_reported.max(listed.len());
        let gone: Vec<u64> = holder
            .prompts
            .iter()
            .filter(|(deepest, prompt)| prompt.since <= settled_before && !listed.contains_key(deepest))
            .map(|(deepest, _)| *deepest)
            .collect();
        let news: Vec<(u64, usize)> =
            listed.into_iter().filter(|(deepest, _)| !holder.prompts.contains_key(deepest)).collect();
        gone.into_iter().for_each(|deepest| self.drop_prompt(keeper.incarnation, deepest));
        news.into_iter().for_each(|(deepest, length)| self.insert(keeper, vec![deepest], length, now));
        self.trim(keeper);
    }

    /// A start of a worker is over, and its cache with it.
    pub fn forget(&mut self, incarnation: Incarnation) {
        let Some(holder) = self.workers.get(&incarnation) else { return };
        let prompts: Vec<u64> = holder.prompts.keys().copied().collect();
        prompts.into_iter().for_each(|deepest| self.drop_prompt(incarnation, deepest));
        self.workers.remove(&incarnation);
    }

    /// Workers that hold the start of a prompt with the number of blocks that each holds at least,
    /// most first; at most a handful. Costs the length of the prompt, not the number of workers.
    pub fn find(&self, model: &str, chain: &PrefixChain) -> Vec<(&WorkerId, usize)> {
        let blocks = keys(model, chain);
        let mut found: Vec<(Incarnation, usize)> = Vec::new();
        let mut depth = blocks.partition_point(|block| self.holders.contains_key(block));
        let mut step = 1;
        while depth > 0 && found.len() < FOUND {
            self.add_holders(&blocks, depth, &mut found);
            depth = depth.saturating_sub(step);
            step *= 2;
        }
        for length in self.bare.range(..=blocks.len()).rev().map(|(length, _)| *length) {
            self.add_holders(&blocks, length, &mut found);
        }
        found.sort_by_key(|(incarnation, depth)| (std::cmp::Reverse(*depth), *incarnation));
        found.truncate(FOUND);
        let named = |(incarnation, depth)| Some((&self.workers.get(&incarnation)?.worker_id, depth));
        found.into_iter().filter_map(named).collect()
    }

    fn add_holders(&self, blocks: &[u64], depth: usize, found: &mut Vec<(Incarnation, usize)>) {
        let holders = depth.checked_sub(1).and_then(|at| blocks.get(at)).and_then(|b| self.holders.get(b));
        for holder in holders.into_iter().flat_map(|holders| holders.values().rev().take(HOLDERS)) {
            match found.iter_mut().find(|(known, _)| known == holder) {
                Some((_, known)) => *known = depth.max(*known),
                None => found.push((*holder, depth)),
            }
        }
    }

    fn insert(&mut self, keeper: Keeper<'_>, blocks: Vec<u64>, length: usize, now: Time) {
        let Some(&deepest) = blocks.last() else { return };
        let incarnation = keeper.incarnation;
        self.last_tick += 1;
        let holder = self.workers.entry(incarnation).or_insert_with(|| Holder::new(keeper.worker_id));
        let grown: Vec<u64> =
            blocks.iter().filter(|block| holder.prompts.contains_key(*block)).copied().collect();
        for block in &blocks {
            let held = holder.blocks.entry(*block).or_default();
            held.prompts += 1;
            self.blocks += usize::from(held.prompts == 1);
            let holders = self.holders.entry(*block).or_default();
            holders.remove(&held.tick);
            held.tick = self.last_tick;
            holders.insert(held.tick, incarnation);
        }
        grown.into_iter().for_each(|deepest| self.drop_prompt(incarnation, deepest));
        let prompt = Prompt { blocks, length, tick: self.last_tick, since: now };
        if prompt.is_bare() {
            *self.bare.entry(length).or_default() += 1;
        }
        self.by_age.insert(prompt.tick, incarnation);
        if let Some(holder) = self.workers.get_mut(&incarnation) {
            holder.by_age.insert(prompt.tick, deepest);
            holder.prompts.insert(deepest, prompt);
        }
    }

    /// Drops what was used longest ago for as long as a worker, or all of them, have too much.
    fn trim(&mut self, keeper: Keeper<'_>) {
        let slots = usize::try_from(keeper.slots).unwrap_or(PROMPTS);
        while let Some(holder) = self.workers.get(&keeper.incarnation) {
            let bound = holder.most_reported.max(slots).min(PROMPTS);
            let oldest = holder.by_age.first_key_value().map(|(_, deepest)| *deepest);
            let Some(oldest) = oldest.filter(|_| holder.prompts.len() > bound) else { break };
            self.drop_prompt(keeper.incarnation, oldest);
        }
        while self.blocks > BLOCKS {
            let Some((tick, incarnation)) = self.by_age.pop_first() else { break };
            let holder = self.workers.get(&incarnation);
            if let Some(&deepest) = holder.and_then(|holder| holder.by_age.get(&tick)) {
                self.drop_prompt(incarnation, deepest);
            }
        }
    }

    fn drop_prompt(&mut self, incarnation: Incarnation, deepest: u64) {
        let Some(holder) = self.workers.get_mut(&incarnation) else { return };
        let Some(prompt) = holder.prompts.remove(&deepest) else { return };
        holder.by_age.remove(&prompt.tick);
        self.by_age.remove(&prompt.tick);
        if prompt.is_bare() {
            count_down(&mut self.bare, prompt.length);
        }
        for block in prompt.blocks {
            let Some(held) = holder.blocks.get_mut(&block) else { continue };
            held.prompts -= 1;
            let Held { prompts: left, tick } = *held;
            if left > 0 {
                continue;
            }
            holder.blocks.remove(&block);
            self.blocks -= 1;
            if let Some(holders) = self.holders.get_mut(&block) {
                holders.remove(&tick);
                if holders.is_empty() {
                    self.holders.remove(&block);
                }
            }
        }
    }

    /// The starts of workers that anything is kept for.
    pub fn incarnations(&self) -> impl Iterator<Item = Incarnation> {
        self.workers.keys().copied()
    }
}

impl Holder {
    fn new(worker_id: &WorkerId) -> Self {
        Self {
            worker_id: worker_id.clone(),
            prompts: BTreeMap::new(),
            by_age: BTreeMap::new(),
            blocks: BTreeMap::new(),
            most_reported: 0,
        }
    }
}

/// Takes one from a count; nothing is kept of one that is used up.
fn count_down(counts: &mut BTreeMap<usize, usize>, key: usize) {
    let Some(count) = counts.get_mut(&key) else { return };
    *count -= 1;
    if *count == 0 {
        counts.remove(&key);
    }
}

/// The blocks of a prompt under one model.
fn keys(model: &str, chain: &PrefixChain) -> Vec<u64> {
    let salt = salt(model);
    chain.blocks().iter().map(|block| block.0 ^ salt).collect()
}

/// A number for a model's name (FNV-1a, Fowler, Noll and Vo).
fn salt(model: &str) -> u64 {
    model.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
