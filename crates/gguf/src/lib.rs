//! Reads the header of a GGUF file: bounded memory, no engine, no trust in the file. Writes the
//! header of a new one.
//!
//! [`read`] checks everything native code would otherwise take on faith (magic, version, counts,
//! lengths, tensor offsets and sizes against the length of the file) and names the offset and the
//! reason when something is wrong. [`Header`] then answers what programs ask about a model.

mod cursor;
mod header;
mod problem;
mod reader;
mod types;
mod writer;

pub use header::{Header, TensorTotals, Value};
pub use problem::{Partial, Problem, Reason};
pub use reader::{MAX_HEADER_BYTES, read, read_prefix};
pub use writer::{ALIGNMENT, Document, Entry, TensorType, padding};
