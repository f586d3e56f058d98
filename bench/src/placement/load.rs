//! What people ask of the modelled fleet. One seed, one load.

use api_types::prefix::{BLOCK_BYTES, BlockHash, PrefixChain};

/// Kinds of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Conversations of several turns, each prompt the whole of what was said.
    Conversations,
    /// Single prompts that share nothing.
    NoReuse,
    /// Single prompts behind one of four system prompts of 1 KiB.
    SharedStart,
}

impl Load {
    /// As the report calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conversations => "conversations",
            Self::NoReuse => "no reuse",
            Self::SharedStart => "shared start",
        }
    }

    /// Turns of one conversation.
    pub const fn turns(self) -> usize {
        match self {
            Self::Conversations => 8,
            Self::NoReuse | Self::SharedStart => 1,
        }
    }

    /// Conversations for each one of the load's size, so that loads have as many prompts.
    pub const fn per_unit(self) -> usize {
        8 / self.turns()
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.draw() % (high - low + 1)
    }

    /// A pause with this mean, exponentially distributed, in milliseconds.
    pub fn pause(&mut self, mean_ms: f64) -> u64 {
        let uniform = (self.draw() >> 11) as f64 / (1_u64 << 53) as f64;
        (-(1.0 - uniform).ln() * mean_ms) as u64
    }
}

/// A conversation as it grows.
pub struct Talk {
    /// Bytes of the prompt so far.
    pub bytes: u64,
    blocks: Vec<BlockHash>,
    salt: u64,
}

impl Talk {
    /// How conversation `n` begins.
    pub fn begin(load: Load, n: usize, rng: &mut Rng) -> Self {
        let salt = Rng(n as u64 ^ 0xa5a5).draw();
        let mut talk = Self { bytes: 0, blocks: Vec::new(), salt };
        if load != Load::NoReuse {
            talk.blocks.push(BlockHash(n as u64 % 4));
            talk.bytes = BLOCK_BYTES as u64;
        }
        talk.say(rng.between(2_048, 8_192));
        talk
    }

    /// More is said, by either side.
    pub fn say(&mut self, bytes: u64) {
        self.bytes += bytes;
        while ((self.blocks.len() + 1) * BLOCK_BYTES) as u64 <= self.bytes {
            self.blocks.push(BlockHash(Rng(self.salt ^ self.blocks.len() as u64).draw()));
        }
    }

    /// The hashes of the prompt.
    pub fn chain(&self) -> PrefixChain {
        PrefixChain::new(self.blocks.iter().copied())
    }
}
