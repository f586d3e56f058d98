//! What lies in the engine's sequences, and beside them in memory, so that no start of a prompt is
//! processed twice.
//!
//! A run that ended leaves its sequence where it is. The next run takes it over, copies its start, or
//! has it put aside: tokens that nobody uses would cost every step their share of attention. What is
//! put aside is bounded in bytes; the sequence used longest ago goes first.

use api_types::PrefixChain;
use api_types::prefix::RetainedPrefix;
use engine::{Engine, EngineError, SavedSeq, Token};

/// Sequences put aside at most, whatever their size: each is compared with every prompt.
const MAX_ASIDE: usize = 256;
/// Most that is reported of what is kept.
const MAX_REPORTED: usize = 256;

/// The slots' sequences and those put aside.
#[derive(Debug)]
pub struct PrefixCache {
    slots: Vec<Held>,
    aside: Vec<Aside>,
    /// Bytes that may be put aside.
    budget: u64,
    /// Whether the engine can cut a sequence inside.
    cuts: bool,
    clock: u64,
}

/// A sequence and what it is.
#[derive(Debug, Default, Clone)]
struct Held {
    /// Whether a run works on it; `tokens` is then empty, because the run knows them.
    busy: bool,
    tokens: Vec<Token>,
    prompt: Prompt,
    used: u64,
}

/// The orchestrator's name for the prompt of a sequence.
#[derive(Debug, Default, Clone)]
pub struct Prompt {
    /// Hashes of its text.
    pub chain: PrefixChain,
    /// Its tokens; a sequence with fewer does not hold all of it.
    pub tokens: usize,
}

#[derive(Debug)]
struct Aside {
    held: Held,
    saved: Box<dyn SavedSeq>,
}

/// Where a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The slot, whose sequence holds exactly the first `reused` tokens.
    pub slot: usize,
    /// Tokens that need not be processed.
    pub reused: usize,
}

/// What a prompt has its start in common with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Slot(usize),
    Aside(usize),
}

impl PrefixCache {
    /// An empty cache for `slots` sequences that puts aside up to `budget` bytes.
    pub fn new(slots: usize, budget: u64, cuts: bool) -> Self {
        Self { slots: vec![Held::default(); slots], aside: Vec::new(), budget, cuts, clock: 0 }
    }

    /// Gives a run a free slot, with as much of `feed` in it as is known; `None` when all are busy.
    /// At least the last token is left to be processed. `running` tells what a busy slot has
    /// processed. Without `reuse` the sequence begins empty.
    ///
    /// # Errors
    /// When the engine cannot remove a sequence: nothing can be trusted then.
    pub fn begin<'a>(
        &mut self,
        engine: &mut dyn Engine,
        feed: &[Token],
        reuse: bool,
        running: impl Fn(usize) -> &'a [Token],
    ) -> Result<Option<Place>, EngineError> {
        let wanted = feed.get(..feed.len().saturating_sub(1)).filter(|_| reuse).unwrap_or_default();
        let (source, common) = self.longest(wanted, &running);
        let Some(slot) = self.free_slot(source, common) else { return Ok(None) };
        let reused = self.fill(engine, slot, source, common)?;
        self.put_idle_aside(engine, slot)?;
        self.clock += 1;
        if let Some(held) = self.slots.get_mut(slot) {
            *held = Held { busy: true, used: self.clock, ..Held::default() };
        }
        Ok(Some(Place { slot, reused }))
    }

    /// The run in `slot` has ended; its sequence holds `tokens`, the first of them this prompt's.
    pub fn end(&mut self, slot: usize, tokens: Vec<Token>, prompt: Prompt) {
        self.clock += 1;
        if let Some(held) = self.slots.get_mut(slot) {
            *held = Held { busy: false, tokens, prompt, used: self.clock };
        }
    }

    /// The sequence of `slot` is not to be trusted.
    ///
    /// # Errors
    /// When the engine cannot remove it.
    pub fn discard(&mut self, engine: &mut dyn Engine, slot: usize) -> Result<(), EngineError> {
        if let Some(held) = self.slots.get_mut(slot) {
            *held = Held::default();
        }
        engine.seq_remove(slot as u32, 0)
    }

    /// The prompts that are held whole by sequences without a run, as the orchestrator knows them.
    pub fn retained(&self) -> Vec<RetainedPrefix> {
        let idle = self.slots.iter().filter(|held| !held.busy);
        let aside = self.aside.iter().rev().map(|aside| &aside.held);
        let mut all: Vec<RetainedPrefix> = idle.chain(aside).filter_map(Held::retained).collect();
        all.truncate(MAX_REPORTED);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Bytes put aside.
    pub fn bytes_aside(&self) -> u64 {
        self.aside.iter().map(|aside| aside.saved.bytes()).sum()
    }

    /// Whatever shares the longest start with `wanted`, and how long that is.
    fn longest<'a>(
        &self,
        wanted: &[Token],
        running: &impl Fn(usize) -> &'a [Token],
    ) -> (Option<Source>, usize) {
        let slots = self.slots.iter().enumerate().map(|(slot, held)| {
            let tokens = if held.busy { running(slot) } else { &held.tokens };
            (Source::Slot(slot), self.usable(tokens, wanted, held.busy))
        });
        let aside = self.aside.iter().enumerate();
        let aside =
            aside.map(|(at, aside)| (Source::Aside(at), self.usable(&aside.held.tokens, wanted, false)));
        let mut best = (None, 0);
        for (source, common) in slots.chain(aside) {
            if common > best.1 {
                best = (Some(source), common);
            }
        }
        best
    }

    /// How much of `tokens` serves `wanted`. A sequence that cannot be cut serves whole or not at all.
    fn usable(&self, tokens: &[Token], wanted: &[Token], busy: bool) -> usize {
        let common = tokens.iter().zip(wanted).take_while(|(held, wanted)| held == wanted).count();
        let whole = common == tokens.len() && !busy;
        if self.cuts || whole { common } else { 0 }
    }

    /// The source itself where most of it is used; else an empty slot, else the one used longest ago.
    fn free_slot(&self, source: Option<Source>, common: usize) -> Option<usize> {
        if let Some(Source::Slot(slot)) = source
            && let Some(held) = self.slots.get(slot)
            && !held.busy
            && (!self.cuts || common * 2 >= held.tokens.len())
        {
            return Some(slot);
        }
        let free = self.slots.iter().enumerate().filter(|(_, held)| !held.busy);
        let another = free.min_by_key(|(slot, held)| {
            (source == Some(Source::Slot(*slot)), !held.tokens.is_empty(), held.used)
        });
        another.map(|(slot, _)| slot)
    }

    /// Makes the sequence of `slot` hold the first `common` tokens of its source; what it held before
    /// is put aside unless it is the source. Gives how many it holds.
    fn fill(
        &mut self,
        engine: &mut dyn Engine,
        slot: usize,
        source: Option<Source>,
        common: usize,
    ) -> Result<usize, EngineError> {
        if source == Some(Source::Slot(slot)) {
            let held = self.slots.get_mut(slot).map(std::mem::take).unwrap_or_default();
            let length = held.tokens.len();
            if common * 2 < length {
                self.save(engine, slot, held);
            }
            return cut(engine, slot, common, length);
        }
        let Some(source) = source else {
            self.put_aside(engine, slot)?;
            return Ok(0);
        };
        let loaded = match source {
            Source::Slot(from) => {
                self.put_aside(engine, slot)?;
                engine.seq_copy(from as u32, slot as u32, common as u32).map(|()| common)
            }
            Source::Aside(at) => {
                // Taken out first: what is put aside for it must not push it out.
                let taken = self.aside.remove(at);
                self.put_aside(engine, slot)?;
                let loaded = engine.seq_load(slot as u32, &*taken.saved);
                let length = taken.held.tokens.len();
                if common * 2 < length {
                    self.aside.push(taken);
                    self.keep_within_budget();
                }
                loaded.and_then(|()| cut(engine, slot, common, length))
            }
        };
        loaded.or_else(|error| {
            tracing::warn!(event = "prefix_not_reused", %error);
            engine.seq_remove(slot as u32, 0)?;
            Ok(0)
        })
    }

    fn put_idle_aside(&mut self, engine: &mut dyn Engine, except: usize) -> Result<(), EngineError> {
        for slot in 0..self.slots.len() {
            if slot != except && self.slots.get(slot).is_some_and(|held| !held.busy) {
                self.put_aside(engine, slot)?;
            }
        }
        Ok(())
    }

    /// Empties a slot without a run; its sequence is kept in memory where there is room.
    fn put_aside(&mut self, engine: &mut dyn Engine, slot: usize) -> Result<(), EngineError> {
        let Some(held) = self.slots.get_mut(slot).map(std::mem::take) else { return Ok(()) };
        if held.tokens.is_empty() {
            return Ok(());
        }
        self.save(engine, slot, held);
        engine.seq_remove(slot as u32, 0)
    }

    /// Copies a sequence into memory, if that is worth anything.
    fn save(&mut self, engine: &mut dyn Engine, slot: usize, held: Held) {
        // A sequence that another one begins with says nothing of its own.
        let known = self.aside.iter().any(|aside| aside.held.tokens.starts_with(&held.tokens));
        if self.budget > 0 && !known {
            match engine.seq_save(slot as u32) {
                Ok(saved) => self.remember(held, saved),
                Err(error) => tracing::warn!(event = "prefix_not_kept", %error),
            }
        }
    }

    fn remember(&mut self, held: Held, saved: Box<dyn SavedSeq>) {
        if self.cuts {
            self.aside.retain(|aside| !held.tokens.starts_with(&aside.held.tokens));
        }
        self.aside.push(Aside { held, saved });
        self.keep_within_budget();
    }

    fn keep_within_budget(&mut self) {
        self.aside.sort_by_key(|aside| aside.held.used);
        while self.bytes_aside() > self.budget || self.aside.len() > MAX_ASIDE {
            self.aside.remove(0);
        }
    }
}

impl Held {
    fn retained(&self) -> Option<RetainedPrefix> {
        let whole = self.tokens.len() >= self.prompt.tokens;
        let deepest = self.prompt.chain.blocks().last().filter(|_| whole)?;
        let blocks = u32::try_from(self.prompt.chain.blocks().len()).ok()?;
        Some(RetainedPrefix { deepest: *deepest, blocks })
    }
}

/// Leaves the first `keep` of `length` tokens in a sequence.
fn cut(engine: &mut dyn Engine, slot: usize, keep: usize, length: usize) -> Result<usize, EngineError> {
    if keep < length {
        engine.seq_remove(slot as u32, keep as u32)?;
    }
    Ok(keep)
}

#[cfg(test)]
mod tests;
