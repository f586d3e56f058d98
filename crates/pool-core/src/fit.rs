//! Whether a model fits a device: weights, KV cache and buffers against what is free.

use api_types::pool::{Fit, RecordState, WorkerRecord};
use gguf::Header;
use serde::Deserialize;

const MIB: u64 = 1 << 20;

/// Slots of a worker when nobody says how many.
pub const DEFAULT_SLOTS: u32 = 4;
/// Tokens of context per slot when nobody says how many; models with less give what they have.
pub const DEFAULT_CONTEXT: u32 = 4096;
/// Tokens of one step that the engine reserves buffers for.
const RESERVED_ROWS: u64 = 512;
/// Prompt tokens that a worker gives to one step: alone, and beside slots that generate.
const PREFILL_ROWS: u64 = 128;
const PREFILL_ROWS_BESIDE_DECODE: u64 = 64;
/// The program itself and its threads.
const PROCESS_BYTES: u64 = 24 * MIB;
/// Text, index and attributes of one token of the vocabulary.
const BYTES_PER_TOKEN_TEXT: u64 = 160;

/// What is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load<'a> {
    /// The model's name, for the answer.
    pub model: &'a str,
    /// What its header says about memory.
    pub shape: Shape,
    /// Bytes of all its files.
    pub weights_bytes: u64,
    /// Jobs at once.
    pub slots: u32,
    /// Tokens of context per job.
    pub context: u32,
}

/// What decides a model's need of memory besides its weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of KV cache per token of context, in 16 bits.
    pub kv_bytes_per_token: u64,
    /// Width of a layer.
    pub embedding: u64,
    /// Width of the feed-forward part of a layer.
    pub feed_forward: u64,
    /// Tokens of the vocabulary.
    pub vocabulary: u64,
}

impl Shape {
    /// As the header of the model's file says; what it leaves out counts as 0.
    pub fn of(header: &Header) -> Self {
        Self {
            kv_bytes_per_token: header.kv_bytes_per_token(2).unwrap_or(0),
            embedding: header.embedding_length().unwrap_or(0),
            feed_forward: header.feed_forward_length().unwrap_or(0),
            vocabulary: header.vocabulary().unwrap_or(0),
        }
    }
}

/// Where it is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// Bytes of memory.
    pub total_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
}

/// What workers may take of each device together; without a number, what is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBudget {
    /// Bytes of main memory.
    pub ram_budget_bytes: Option<u64>,
    /// Bytes of each GPU.
    pub gpu_budget_bytes: Option<u64>,
}

impl MemoryBudget {
    /// The room of a device within the budget, of which workers there hold `held_bytes`.
    #[must_use]
    pub fn within(self, room: Room, on_gpu: bool, held_bytes: u64) -> Room {
        let Some(budget) = (if on_gpu { self.gpu_budget_bytes } else { self.ram_budget_bytes }) else {
            return room;
        };
        Room {
            total_bytes: room.total_bytes.min(budget),
            free_bytes: room.free_bytes.min(budget.saturating_sub(held_bytes)),
            ..room
        }
    }
}

/// Bytes that workers of a device hold, each by its prediction or by measure, whichever is more.
pub fn held_bytes(workers: &[WorkerRecord], device: &str) -> u64 {
    let there = |worker: &&WorkerRecord| {
        worker.state != RecordState::Gone && worker.device.as_deref().unwrap_or(&worker.backend) == device
    };
    workers.iter().filter(there).map(|w| w.predicted_bytes.max(w.measured_bytes).unwrap_or(0)).sum()
}

/// What a load needs, and whether the room has it with the margin.
///
/// KV cache in 16 bits for all layers, slots and tokens of context: the engine takes it whole when
/// it loads. What a step needs besides differs: on a card its reserve is taken whole too, on a CPU
/// only what steps have touched becomes memory, and a worker's steps are smaller than the reserve.
pub fn check(load: &Load<'_>, room: &Room) -> Fit {
    let kv_bytes = kv_bytes(load.shape, load.slots, load.context);
    let step = if room.device == "cpu" { touched_step_bytes(load) } else { reserved_step_bytes(load.shape) };
    let overhead_bytes = step
        .saturating_add(PROCESS_BYTES)
        .saturating_add(load.shape.vocabulary.saturating_mul(BYTES_PER_TOKEN_TEXT));
    let needed_bytes = load.weights_bytes.saturating_add(kv_bytes).saturating_add(overhead_bytes);
    let margin_bytes = margin(room.total_bytes);
    Fit {
        model: load.model.to_owned(),
        device: room.device.clone(),
        fits: needed_bytes.saturating_add(margin_bytes) <= room.free_bytes,
        weights_bytes: load.weights_bytes,
        kv_bytes,
        overhead_bytes,
        needed_bytes,
        free_bytes: room.free_bytes,
        total_bytes: room.total_bytes,
        margin_bytes,
        slots: load.slots,
        context: load.context,
    }
}

/// Bytes left alone: a twentieth of the memory, from 128 MiB to 2 GiB.
fn margin(total_bytes: u64) -> u64 {
    (total_bytes / 20).clamp(128 * MIB, 2048 * MIB)
}

fn kv_bytes(shape: Shape, slots: u32, context: u32) -> u64 {
    let cells = u64::from(slots).saturating_mul(u64::from(context));
    cells.saturating_mul(shape.kv_bytes_per_token)
}

/// Activations of a full step, over the widest of the layers and the vocabulary.
fn reserved_step_bytes(shape: Shape) -> u64 {
    let widest = shape.vocabulary.max(shape.feed_forward.saturating_mul(2));
    RESERVED_ROWS.saturating_mul(widest.saturating_add(shape.embedding.saturating_mul(4))).saturating_mul(4)
}

/// Activations of the largest step that a worker takes, its attention mask over all cells of the
/// cache (in 32 and in 16 bits), and scores for every slot (where computed, and where read).
fn touched_step_bytes(load: &Load<'_>) -> u64 {
    let slots = u64::from(load.slots);
    let rows = PREFILL_ROWS.max(PREFILL_ROWS_BESIDE_DECODE.saturating_add(slots));
    let wide =
        load.shape.feed_forward.saturating_mul(2).saturating_add(load.shape.embedding.saturating_mul(4));
    let activations = rows.saturating_mul(wide).saturating_mul(4);
    let mask = rows.saturating_mul(slots).saturating_mul(u64::from(load.context)).saturating_mul(6);
    let scores = slots.saturating_mul(load.shape.vocabulary).saturating_mul(8);
    activations.saturating_add(mask).saturating_add(scores)
}

/// The context to offer when nobody says: what the model was trained for, up to the default.
pub fn default_context(trained: Option<u32>) -> u32 {
    trained.filter(|trained| *trained > 0).map_or(DEFAULT_CONTEXT, |trained| trained.min(DEFAULT_CONTEXT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape() -> Shape {
        Shape { kv_bytes_per_token: 23_040, embedding: 576, feed_forward: 1536, vocabulary: 49_152 }
    }

    fn room(free_bytes: u64) -> Room {
        Room { device: "cpu".into(), total_bytes: 8 << 30, free_bytes }
    }

    #[test]
    fn the_kv_cache_is_counted_exactly() {
        let load = Load { model: "m", shape: shape(), weights_bytes: 98_362_432, slots: 4, context: 2048 };
        let fit = check(&load, &room(4 << 30));
        assert_eq!(fit.kv_bytes, 23_040 * 4 * 2048);
        assert_eq!(fit.needed_bytes, fit.weights_bytes + fit.kv_bytes + fit.overhead_bytes);
        assert!(fit.fits);
    }

    /// Resident memory of real workers after long prompts, against what was to be expected.
    #[test]
    fn on_a_cpu_the_prediction_is_just_above_what_workers_use() {
        let gemma =
            Shape { kv_bytes_per_token: 18_432, embedding: 640, feed_forward: 2048, vocabulary: 262_144 };
        for (shape, weights_bytes, slots, context, used_mib) in [
            (shape(), 98_362_432, 4, 4096, 488),
            (shape(), 98_362_432, 1, 512, 139),
            (gemma, 253_113_024, 4, 4096, 608),
        ] {
            let load = Load { model: "m", shape, weights_bytes, slots, context };
            let needed = check(&load, &room(4 << 30)).needed_bytes;
            assert!(
                (used_mib..used_mib + used_mib / 20).contains(&(needed / MIB)),
                "{} {used_mib}",
                needed / MIB
            );
        }
    }

    #[test]
    fn on_a_card_the_whole_reserve_of_a_step_counts() {
        let load = Load { model: "m", shape: shape(), weights_bytes: 1, slots: 1, context: 512 };
        let card = Room { device: "cuda:0".into(), ..room(4 << 30) };
        assert!(check(&load, &card).overhead_bytes > 512 * 49_152 * 4);
        assert!(check(&load, &room(4 << 30)).overhead_bytes < check(&load, &card).overhead_bytes);
    }

    #[test]
    fn the_margin_decides_at_the_byte() {
        let load = Load { model: "m", shape: shape(), weights_bytes: 1 << 20, slots: 1, context: 512 };
        let needed = check(&load, &room(0)).needed_bytes + check(&load, &room(0)).margin_bytes;
        assert!(check(&load, &room(needed)).fits);
        assert!(!check(&load, &room(needed - 1)).fits);
    }

    #[test]
    fn a_budget_bounds_what_all_workers_of_a_device_take_together() {
        let mut ours = crate::worker_record::tests::record("w", 1);
        (ours.predicted_bytes, ours.measured_bytes) = (Some(30), Some(20));
        let held = held_bytes(&[ours.clone(), WorkerRecord { state: RecordState::Gone, ..ours }], "cpu");
        assert_eq!(held, 30, "what is gone holds nothing");
        let budget = MemoryBudget { ram_budget_bytes: Some(100), gpu_budget_bytes: None };
        let bounded = budget.within(room(4 << 30), false, held);
        assert_eq!((bounded.total_bytes, bounded.free_bytes), (100, 70));
        assert_eq!(budget.within(room(7), false, held).free_bytes, 7, "what others took is not there");
        assert_eq!(budget.within(room(4 << 30), true, held), room(4 << 30));
        assert_eq!(budget.within(room(4 << 30), false, 101).free_bytes, 0);
    }

    #[test]
    fn a_short_context_is_not_stretched() {
        assert_eq!(default_context(Some(2048)), 2048);
        assert_eq!(default_context(Some(131_072)), DEFAULT_CONTEXT);
        assert_eq!(default_context(None), DEFAULT_CONTEXT);
    }

    proptest! {
        #[test]
        fn more_slots_or_context_never_need_less(slots in 1u32..64, context in 1u32..200_000, free in any::<u64>()) {
                let at = |slots, context| {
                check(&Load { model: "m", shape: shape(), weights_bytes: 1, slots, context }, &room(free))
            };
            prop_assert!(at(slots + 1, context).needed_bytes >= at(slots, context).needed_bytes);
            prop_assert!(at(slots, context + 1).needed_bytes >= at(slots, context).needed_bytes);
            prop_assert!(!at(slots, context).fits || at(slots, context).needed_bytes <= free);
        }
    }
}
