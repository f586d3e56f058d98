//! Inference behind one narrow trait, without HTTP and without async.
//!
//! An [`Engine`] turns tokens into logits, nothing more: sampling, constraints, stop strings,
//! batching policy and text live above it and are the same for every engine. [`fake`] is always built in;
//! `llama_cpp` is a feature, because it compiles a C++ library.

pub mod backend;
pub mod constraint;
pub mod cpu;
pub mod error;
pub mod fake;
#[cfg(feature = "llama_cpp")]
pub mod llama_cpp;
pub mod loader;
pub mod sampler;
mod traits;

pub use backend::Backend;
pub use error::EngineError;
pub use loader::open;
pub use traits::{Caps, Engine, LoadOptions, ModelInfo, Row, SavedSeq, Seq, StepOutcome, Token, Tokenizer};
