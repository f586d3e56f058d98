//! GGUF files read whole and written back as Hugging Face folders, for tests.
//!
//! The files are trusted: they are the models of the tests.

pub mod dequantise;
pub mod folder;
pub mod plain;
pub mod reader;
pub mod reference;

pub use folder::{Dtype, Options, write};
pub use reader::{Gguf, Value};
