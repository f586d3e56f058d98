//! Hashes what clients say, under a key that never leaves this orchestrator's database.

use std::hash::Hasher;

use api_types::prefix::{BLOCK_BYTES, BlockHash, MAX_BLOCKS, PrefixChain};
use api_types::task::ChatMessage;
use siphasher::sip::SipHasher13;
use siphasher::sip128::SipHasher13 as SipHasher13x2;

/// The key of one orchestrator's hashes: without it a hash says nothing about a text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HashKey").finish_non_exhaustive()
    }
}

impl HashKey {
    /// What stands for a client's text wherever it is only compared: 32 hex digits.
    pub fn of(&self, text: &str) -> String {
        let hash = SipHasher13x2::new_with_key(&self.0).hash(text.as_bytes());
        format!("{:032x}", hash.as_u128())
    }

    /// The chain of a prompt, or of messages in the order of the conversation.
    pub fn chain(&self, prompt: Option<&str>, messages: Option<&[ChatMessage]>) -> PrefixChain {
        let mut chain = Chain { hasher: SipHasher13::new_with_key(&self.0), in_block: 0, blocks: Vec::new() };
        chain.take(prompt.unwrap_or_default().as_bytes());
        for message in messages.unwrap_or_default() {
            // NUL bytes are refused in both texts, so they keep the parts apart.
            for part in [message.role.as_bytes(), b"\0", message.content.as_bytes(), b"\0"] {
                chain.take(part);
            }
        }
        PrefixChain::new(chain.blocks)
    }
}

/// One running hash; its state at the end of each block is the block's hash.
struct Chain {
    hasher: SipHasher13,
    in_block: usize,
    blocks: Vec<BlockHash>,
}

impl Chain {
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.blocks.len() < MAX_BLOCKS {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.in_block));
            self.hasher.write(now);
            self.in_block += now.len();
            if self.in_block == BLOCK_BYTES {
                self.in_block = 0;
                self.blocks.push(BlockHash(self.hasher.finish()));
            }
            bytes = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: HashKey = HashKey([7; 16]);

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage { role: role.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn prompts_share_hashes_exactly_as_far_as_they_share_text() {
        let common = "a".repeat(2 * BLOCK_BYTES + 10);
        let one = KEY.chain(Some(&format!("{common}{}", "b".repeat(BLOCK_BYTES))), None);
        let other = KEY.chain(Some(&format!("{common}{}", "c".repeat(BLOCK_BYTES))), None);
        assert_eq!((one.blocks().len(), other.blocks().len()), (3, 3));
        assert_eq!(one.blocks()[..2], other.blocks()[..2]);
        assert_ne!(one.blocks()[2], other.blocks()[2]);
        assert_ne!(HashKey([8; 16]).chain(Some(&common), None).blocks()[0], one.blocks()[0]);
    }

    #[test]
    fn the_next_turn_of_a_conversation_begins_with_the_chain_of_the_last() {
        let first = [message("system", &"s".repeat(3_000)), message("user", "hello")];
        let next = [first[0].clone(), first[1].clone(), message("assistant", &"x".repeat(2_000))];
        let (first, next) = (KEY.chain(None, Some(&first)), KEY.chain(None, Some(&next)));
        assert!(next.blocks().starts_with(first.blocks()), "{first:?} {next:?}");
        assert!(next.blocks().len() > first.blocks().len());
    }

    #[test]
    fn a_long_prompt_is_hashed_up_to_the_bound() {
        assert_eq!(KEY.chain(Some(&"x".repeat(400_000)), None).blocks().len(), MAX_BLOCKS);
        assert!(KEY.chain(Some("short"), None).is_empty());
    }
}
