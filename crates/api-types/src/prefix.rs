//! The start of a prompt as a chain of hashes, so that a worker that holds it can be found without
//! anybody passing the text around.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of prompt behind one hash.
pub const BLOCK_BYTES: usize = 1024;
/// Blocks that are hashed at most; what comes later decides no placement.
pub const MAX_BLOCKS: usize = 128;

/// Hash of a block and all before it: equal hashes mean equal prompts up to the block's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash(pub u64);

/// What a worker still holds of a prompt that it ran: the hash of the last whole block, and how many
/// blocks that makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RetainedPrefix {
    /// Hash of the deepest block, 16 hex digits.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub deepest: BlockHash,
    /// Blocks from the prompt's start, 1 to [`MAX_BLOCKS`].
    pub blocks: u32,
}

impl BlockHash {
    fn parse(digits: &[u8]) -> Option<Self> {
        let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
        u64::from_str_radix(digits, 16).ok().map(Self)
    }
}

impl Serialize for BlockHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for BlockHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let hash = Some(text.as_bytes()).filter(|digits| digits.len() == 16).and_then(Self::parse);
        hash.ok_or_else(|| serde::de::Error::custom("a block's hash must be 16 hex digits"))
    }
}

/// The hashes of a prompt's whole blocks of [`BLOCK_BYTES`], first to last, at most
/// [`MAX_BLOCKS`]. On the wire 16 hex digits per block, joined.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixChain(Box<[BlockHash]>);

impl PrefixChain {
    /// A chain of these hashes; what is over [`MAX_BLOCKS`] is left out.
    pub fn new(blocks: impl IntoIterator<Item = BlockHash>) -> Self {
        Self(blocks.into_iter().take(MAX_BLOCKS).collect())
    }

    /// The hashes, first to last.
    pub fn blocks(&self) -> &[BlockHash] {
        &self.0
    }

    /// Whether the prompt is shorter than one block.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for PrefixChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrefixChain({} blocks)", self.0.len())
    }
}

impl fmt::Display for PrefixChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|block| write!(f, "{:016x}", block.0))
    }
}

impl std::str::FromStr for PrefixChain {
    type Err = crate::id::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || crate::id::InvalidId {
            kind: "prefix",
            expected: "16 hex digits for each of at most 128 blocks",
        };
        if !text.len().is_multiple_of(16) || text.len() / 16 > MAX_BLOCKS {
            return Err(invalid());
        }
        let blocks: Option<Box<[BlockHash]>> = text.as_bytes().chunks(16).map(BlockHash::parse).collect();
        blocks.map(Self).ok_or_else(invalid)
    }
}

impl Serialize for PrefixChain {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PrefixChain {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for PrefixChain {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        String::schema()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for PrefixChain {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_survives_the_wire_and_nothing_else_is_taken_for_one() {
        let chain = PrefixChain::new([BlockHash(1), BlockHash(u64::MAX)]);
        let text = serde_json::to_string(&chain).expect("a string");
        assert_eq!(text, "\"0000000000000001ffffffffffffffff\"");
        assert_eq!(serde_json::from_str::<PrefixChain>(&text).expect("well formed"), chain);
        for wrong in ["0", "+000000000000001", "000000000000000g", &"0".repeat(16 * 129)] {
            assert!(wrong.parse::<PrefixChain>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_worker_holds_survives_the_wire_with_its_leading_zeros() {
        let held = RetainedPrefix { deepest: BlockHash(0xabc), blocks: 7 };
        let text = serde_json::to_string(&held).expect("an object");
        assert_eq!(text, r#"{"deepest":"0000000000000abc","blocks":7}"#);
        assert_eq!(serde_json::from_str::<RetainedPrefix>(&text).expect("well formed"), held);
        assert!(serde_json::from_str::<RetainedPrefix>(r#"{"deepest":"abc","blocks":7}"#).is_err());
    }
}
