//! What every engine can do, in the words of the decode loop.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::backend::Backend;
use crate::error::EngineError;

/// A token id of the model's vocabulary.
pub type Token = u32;
/// One of the sequences an engine holds at once; the decode loop gives each slot its own.
pub type Seq = u32;

/// One token to be processed in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The sequence it belongs to, below [`LoadOptions::slots`].
    pub seq: Seq,
    /// Its position in the sequence; positions of a sequence follow each other without a gap.
    pub pos: u32,
    /// The token.
    pub token: Token,
    /// Whether [`Engine::logits`] will be asked for this row.
    pub logits: bool,
}

/// How a step ended when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// Every row was processed.
    Done,
    /// The step was abandoned on request; the sequences of its rows must be removed.
    Abandoned,
}

/// Text to tokens and back. Shared with other threads, so that counting the tokens of a prompt
/// never waits for inference.
pub trait Tokenizer: Send + Sync {
    /// The tokens of `text`. With `special`, texts of control tokens become those tokens; without,
    /// they stay text. No token is added at either end.
    ///
    /// # Errors
    /// When the text cannot be tokenised at all.
    fn tokenize(&self, text: &str, special: bool) -> Result<Vec<Token>, EngineError>;

    /// Appends the bytes that `token` stands for in a completion; control tokens have none.
    fn piece(&self, token: Token, out: &mut Vec<u8>);
}

/// A loaded model with its caches. Owned by one thread.
pub trait Engine: Send {
    /// What was loaded, and onto what.
    fn info(&self) -> &ModelInfo;

    /// The model's tokenizer.
    fn tokenizer(&self) -> Arc<dyn Tokenizer>;

    /// What this engine can do with this model.
    fn caps(&self) -> Caps;

    /// Processes one ragged batch: any mix of sequences and of prefill and decode.
    ///
    /// At most [`Caps::max_rows`] rows. When `abandon` is set the engine may give the step up;
    /// it is meant for the end of the process, not for cancelling one of several sequences.
    ///
    /// # Errors
    /// When the engine fails; the sequences of these rows must then be removed.
    fn step(&mut self, rows: &[Row], abandon: &AtomicBool) -> Result<StepOutcome, EngineError>;

    /// Scores of the whole vocabulary after the row at index `row` of the last step. Empty when
    /// that row did not ask for them.
    fn logits(&self, row: usize) -> &[f32];

    /// Forgets a sequence from position `from` on.
    ///
    /// # Errors
    /// `Unsupported` when the model's cache cannot be cut inside (`from` above 0); the caller then
    /// removes all of it and fills it again.
    fn seq_remove(&mut self, seq: Seq, from: u32) -> Result<(), EngineError>;

    /// Makes the empty sequence `to` begin with the first `upto` tokens of `from`.
    ///
    /// # Errors
    /// `Unsupported` when the model's cache cannot be cut inside; `to` must then be removed.
    fn seq_copy(&mut self, from: Seq, to: Seq, upto: u32) -> Result<(), EngineError>;

    /// Copies what the engine holds of a sequence into memory of the process.
    ///
    /// # Errors
    /// When the engine cannot; the sequence stays as it is.
    fn seq_save(&mut self, seq: Seq) -> Result<Box<dyn SavedSeq>, EngineError>;

    /// Makes the empty sequence `seq` what `saved` was.
    ///
    /// # Errors
    /// When it was not saved by this engine, or does not fit; `seq` must then be removed.
    fn seq_load(&mut self, seq: Seq, saved: &dyn SavedSeq) -> Result<(), EngineError>;
}

/// A sequence in memory, of use only to the engine that saved it.
pub trait SavedSeq: Send + std::fmt::Debug {
    /// Its size.
    fn bytes(&self) -> u64;

    /// For the engine to find what it saved.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// What an engine can do with the model it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Sequences at once.
    pub max_seqs: u32,
    /// Rows in one step.
    pub max_rows: u32,
    /// Whether [`Engine::seq_remove`] may cut a sequence inside.
    pub partial_remove: bool,
}

/// What was loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// The engine and its version, for example `llama.cpp (llama-cpp-2 0.1.160)`.
    pub engine: String,
    /// What computes.
    pub backend: Backend,
    /// The devices that the engine registered and put the model on, for example `CPU`.
    pub devices: Vec<String>,
    /// As in the file, for example `llama`.
    pub architecture: String,
    /// The file's own name of the model.
    pub name: Option<String>,
    /// For example `Q4_1`.
    pub quantization: Option<String>,
    /// Kind of tokenizer, for example `gpt2`.
    pub tokenizer: Option<String>,
    /// Tokens of context per sequence.
    pub context_length: u32,
    /// Size of the vocabulary.
    pub vocab: u32,
    /// The model's chat template (Jinja), where it has one.
    pub chat_template: Option<String>,
    /// The token that begins a prompt, where the model has one.
    pub bos: Option<Token>,
    /// Text of `bos`; empty where there is none.
    pub bos_text: String,
    /// Text of the token that ends a text; empty where there is none.
    pub eos_text: String,
    /// Whether prompts begin with `bos`.
    pub add_bos: bool,
    /// Tokens that end a generation, ascending.
    pub end_tokens: Vec<Token>,
    /// Texts that become control tokens when tokenised with `special`.
    pub control_texts: Vec<String>,
    /// Memory of the devices that the model and its caches took, in bytes; 0 on a CPU.
    pub vram_bytes: u64,
    /// Memory of the process for the model and its caches, in bytes.
    pub ram_bytes: u64,
}

/// How to load a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// What must compute; nothing else is taken in its place.
    pub backend: Backend,
    /// Which devices of the backend, by their numbers; empty means the first. Ignored on a CPU.
    pub gpus: Vec<u32>,
    /// Sequences at once, from 1.
    pub slots: u32,
    /// Tokens of context per sequence; `None` takes the model's own, at most
    /// [`crate::loader::DEFAULT_CONTEXT`].
    pub context: Option<u32>,
    /// Threads that compute; `None` takes all there are.
    pub threads: Option<u32>,
}
