//! What the command-line programs share: where output goes, how it looks, how a program ends.
//!
//! Data goes to standard output and everything else to standard error. A closed pipe is not an
//! error. Every failure is told as what, why and the next command, and has one exit status.

mod exit;
mod flags;
mod printer;
mod progress;
mod report;
mod size;
mod table;

pub use exit::ExitStatus;
pub use flags::{Format, OutputArgs};
pub use printer::Printer;
pub use progress::ProgressView;
pub use report::{finish, report};
pub use size::{human_bytes, human_count, human_duration, human_gb};
pub use table::{Table, plain_text};
