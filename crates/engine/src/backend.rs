//! What computes, and which of it this binary was built with.

use std::fmt;
use std::str::FromStr;

/// A kind of hardware that runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// The processor.
    Cpu,
    /// NVIDIA cards.
    Cuda,
    /// Apple GPUs.
    Metal,
    /// Any card with a Vulkan driver.
    Vulkan,
    /// Nothing: the seeded stand-in for tests.
    Fake,
}

impl Backend {
    /// Every backend there is, built in or not.
    pub const ALL: [Self; 5] = [Self::Cpu, Self::Cuda, Self::Metal, Self::Vulkan, Self::Fake];

    /// The word on command lines and wires.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
            Self::Vulkan => "vulkan",
            Self::Fake => "fake",
        }
    }

    /// Whether this binary contains the code for it. Says nothing about the machine.
    pub const fn is_built(self) -> bool {
        match self {
            Self::Cpu => cfg!(feature = "llama_cpp"),
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Metal => {
                cfg!(feature = "metal")
                    || cfg!(all(feature = "llama_cpp", target_os = "macos", target_arch = "aarch64"))
            }
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Fake => true,
        }
    }

    /// The backends this binary contains.
    pub fn built() -> Vec<Self> {
        Self::ALL.into_iter().filter(|backend| backend.is_built()).collect()
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|backend| backend.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no backend; allowed are cpu, cuda, metal, vulkan and fake"))
    }
}
