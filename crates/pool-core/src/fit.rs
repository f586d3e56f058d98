//! Whether a model fits a device: weights, KV cache and buffers against what is free.

use api_types::pool::Fit;

use gguf::Header;

const MIB: u64 = 1 << 20;

/// Slots of a worker when nobody says how many.
pub const DEFAULT_SLOTS: u32 = 4;
/// Tokens of context per slot when nobody says how many; models with less give what they have.
pub const DEFAULT_CONTEXT: u32 = 4096;
/// Tokens that the engine computes in one step at most; its buffers grow with it.
const STEP_TOKENS: u64 = 512;

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

/// What a load needs, and whether the room has it with the margin.
///
/// The estimate is of the high side: KV cache in 16 bits for all layers at full context, as the
/// engine allocates it, and buffers for one step over the widest of the layers and the vocabulary.
pub fn check(load: &Load<'_>, room: &Room) -> Fit {
    let kv_bytes = kv_bytes(load.shape, load.slots, load.context);
    let overhead_bytes = overhead_bytes(load.shape);
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

fn overhead_bytes(shape: Shape) -> u64 {
    let widest = shape.vocabulary.max(shape.feed_forward.saturating_mul(2));
    let step = STEP_TOKENS
        .saturating_mul(widest.saturating_add(shape.embedding.saturating_mul(4)))
        .saturating_mul(4);
    // The process itself, its threads and the tokenizer.
    step.saturating_add(96 * MIB).saturating_add(shape.vocabulary.saturating_mul(128))
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

    #[test]
    fn the_margin_decides_at_the_byte() {
        let load = Load { model: "m", shape: shape(), weights_bytes: 1 << 20, slots: 1, context: 512 };
        let needed = check(&load, &room(0)).needed_bytes + check(&load, &room(0)).margin_bytes;
        assert!(check(&load, &room(needed)).fits);
        assert!(!check(&load, &room(needed - 1)).fits);
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
