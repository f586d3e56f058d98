//! Which rows the next step has. A batch of one is no special case.
//!
//! Every step holds one row for each slot that decodes and one chunk of prefill, shared by the
//! slots that still process their prompts, oldest first. Slots join and leave between steps.

use std::time::Instant;

use engine::{Row, Token, Tokenizer};

use crate::generation::{Finish, Generation};

/// Prompt tokens in a step when nothing decodes. Cancelling takes effect between steps, so this
/// bounds how long it takes.
pub const PREFILL_CHUNK: usize = 128;
/// Prompt tokens in a step that also decodes, so that running answers do not stall.
pub const PREFILL_CHUNK_BESIDE_DECODE: usize = 64;
/// Short prompts that come together, more of them than answers are running, begin their answers
/// together: the first to decode would only wait, token by token, for the others. Short is this many
/// tokens on average.
pub const SHORT: usize = 64;
/// Most tokens that a prompt waits for in this way.
pub const TOGETHER: usize = 1024;

/// The slots of a worker.
#[derive(Debug)]
pub struct Batch {
    slots: Vec<Option<Occupant>>,
    joined: u64,
    /// Prompt tokens processed since a prompt had to wait for others that came with it.
    waited: usize,
}

#[derive(Debug)]
struct Occupant {
    generation: Generation,
    /// Counts up, so the oldest has the lowest.
    number: u64,
}

/// The rows of one step, and what they mean.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Plan {
    /// For the engine.
    pub rows: Vec<Row>,
    /// Slots whose scores are wanted, with the index of the row that has them.
    pub scored: Vec<(usize, usize)>,
    /// Slots that process prompt tokens, with how many.
    pub prefills: Vec<(usize, usize)>,
    /// Rows that decode: one for each generating slot.
    pub decode_rows: usize,
    /// Whether prompts wait with their last token for others that came with them.
    pub together: bool,
}

/// A slot that was left, and why.
#[derive(Debug)]
pub struct Left {
    /// The slot; its sequence must be removed from the engine.
    pub slot: usize,
    /// What was in it.
    pub generation: Generation,
    /// How it ended.
    pub finish: Finish,
}

impl Batch {
    /// An empty batch.
    pub fn new(slots: usize) -> Self {
        Self { slots: (0..slots).map(|_| None).collect(), joined: 0, waited: 0 }
    }

    /// Puts a generation into `slot`.
    ///
    /// # Errors
    /// The generation itself, when the slot is taken or not there.
    pub fn join(&mut self, slot: usize, generation: Generation) -> Result<(), Box<Generation>> {
        let Some(free) = self.slots.get_mut(slot).filter(|slot| slot.is_none()) else {
            return Err(Box::new(generation));
        };
        *free = Some(Occupant { generation, number: self.joined });
        self.joined += 1;
        Ok(())
    }

    /// Whether no slot is taken.
    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// Takes out what was cancelled or has used up its time.
    pub fn interrupt(&mut self, now: Instant) -> Vec<Left> {
        (0..self.slots.len())
            .filter_map(|slot| {
                let finish = self.generation(slot)?.interruption(now)?;
                self.leave(slot, finish)
            })
            .collect()
    }

    /// The rows of the next step; none when every slot is empty or waits for its reader.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        for (slot, generation) in self.active() {
            if let Some(token) = generation.next_token() {
                plan.scored.push((slot, plan.rows.len()));
                plan.rows.push(Row { seq: slot as u32, pos: generation.position(), token, logits: true });
            }
        }
        plan.decode_rows = plan.rows.len();
        self.plan_prefill(&mut plan);
        plan
    }

    fn plan_prefill(&self, plan: &mut Plan) {
        let mut room = if plan.decode_rows == 0 { PREFILL_CHUNK } else { PREFILL_CHUNK_BESIDE_DECODE };
        plan.together = self.begin_together(plan.decode_rows, room);
        for (slot, generation) in self.active() {
            let unfed = generation.unfed();
            let count = (unfed.len() - usize::from(plan.together && !unfed.is_empty())).min(room);
            if count == 0 {
                continue;
            }
            let last = unfed.len();
            for (at, (token, pos)) in unfed.iter().zip(generation.position()..).take(count).enumerate() {
                let logits = at + 1 == last;
                if logits {
                    plan.scored.push((slot, plan.rows.len()));
                }
                plan.rows.push(Row { seq: slot as u32, pos, token: *token, logits });
            }
            plan.prefills.push((slot, count));
            room -= count;
        }
    }

    /// Whether prompts are to keep their last token until the others are through.
    fn begin_together(&self, decoding: usize, room: usize) -> bool {
        let unfed = || self.active().map(|(_, generation)| generation.unfed().len()).filter(|left| *left > 0);
        let (prompts, tokens) = (unfed().count(), unfed().sum::<usize>());
        prompts > decoding
            && tokens > room.max(prompts)
            && tokens <= prompts * SHORT
            && self.waited + tokens <= TOGETHER
    }

    /// Takes in what the engine made of `plan`; gives the slots that ended.
    pub fn apply<'a>(
        &mut self,
        plan: &Plan,
        logits: impl Fn(usize) -> &'a [f32],
        tokenizer: &dyn Tokenizer,
        ends: &[Token],
        now: Instant,
    ) -> Vec<Left> {
        let processed: usize = plan.prefills.iter().map(|(_, count)| count).sum();
        self.waited = if plan.together { self.waited + processed } else { 0 };
        for (slot, count) in &plan.prefills {
            if let Some(generation) = self.generation_mut(*slot) {
                generation.prompt_processed(*count, now);
            }
        }
        let mut left = Vec::new();
        for (slot, row) in &plan.scored {
            let Some(generation) = self.generation_mut(*slot) else { continue };
            if let Some(finish) = generation.advance(logits(*row), tokenizer, ends, now) {
                left.extend(self.leave(*slot, finish));
            }
        }
        left
    }

    /// Takes out every slot that has a row in `plan`, for one and the same reason.
    pub fn fail(&mut self, plan: &Plan, finish: &Finish) -> Vec<Left> {
        let mut slots: Vec<usize> = plan.rows.iter().map(|row| row.seq as usize).collect();
        slots.sort_unstable();
        slots.dedup();
        slots.into_iter().filter_map(|slot| self.leave(slot, finish.clone())).collect()
    }

    /// Takes out everything, for one and the same reason.
    pub fn fail_all(&mut self, finish: &Finish) -> Vec<Left> {
        (0..self.slots.len()).filter_map(|slot| self.leave(slot, finish.clone())).collect()
    }

    /// Slots that may have rows, oldest first.
    fn active(&self) -> impl Iterator<Item = (usize, &Generation)> {
        let mut occupied: Vec<(usize, &Occupant)> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(slot, occupant)| Some((slot, occupant.as_ref()?)))
            .filter(|(_, occupant)| !occupant.generation.is_paused())
            .collect();
        occupied.sort_unstable_by_key(|(_, occupant)| occupant.number);
        occupied.into_iter().map(|(slot, occupant)| (slot, &occupant.generation))
    }

    /// What has been processed in a slot; empty when it is not taken.
    pub fn held(&self, slot: usize) -> &[Token] {
        self.generation(slot).map(Generation::held).unwrap_or_default()
    }

    fn generation(&self, slot: usize) -> Option<&Generation> {
        Some(&self.slots.get(slot)?.as_ref()?.generation)
    }

    fn generation_mut(&mut self, slot: usize) -> Option<&mut Generation> {
        Some(&mut self.slots.get_mut(slot)?.as_mut()?.generation)
    }

    fn leave(&mut self, slot: usize, finish: Finish) -> Option<Left> {
        let occupant = self.slots.get_mut(slot)?.take()?;
        Some(Left { slot, generation: occupant.generation, finish })
    }
}

#[cfg(test)]
mod tests;
