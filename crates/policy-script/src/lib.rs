//! Policies that people write: five optional functions in a small script, read-only facts in, a number
//! or a decision out. See `docs/policies/` for the language as its users see it.
//!
//! A script cannot harm: everything it may use up is counted, the counts alone decide when it is
//! stopped, and the same facts always give the same answer at the same count. The one exception is
//! the [`Watch`], by which a shell may stop a script that a slow machine makes take too long; the
//! brain writes down when that happened.

mod answers;
pub mod check;

mod compile;
mod engine;
mod facts;
mod failure;
pub mod limits;
mod memo;
mod policy;
pub mod samples;

mod watch;

pub use compile::Language;
pub use watch::Watch;

/// The built-in policy as a script; it decides identically.
pub const DEFAULT_SCRIPT: &str = include_str!("../../../policies/default.rhai");

/// Every field that scripts may read, as `job.model`.
pub fn fields() -> Vec<String> {
    facts::all()
}
