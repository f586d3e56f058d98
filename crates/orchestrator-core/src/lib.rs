//! The brain of rbees as a value.
//!
//! An event and the time go in; rows to write and things to do come out. The driver commits the
//! rows and only then acts, so a crash at any instant is a restart from the rows. There is no
//! clock, no randomness, no I/O and no hash order in here: the same rows and events always give
//! the same steps.

pub mod event;
pub mod row;
pub mod step;
pub mod time;

pub use event::{BrokenCause, Event, Idempotency, PoolModel, RequestId, Run, RunKey, Submission};
pub use row::{AttemptRow, JobRow, PoolRow, Rows, WorkerRow};
pub use step::{Action, Answer, Notice, OpenStream, Step, Write};
pub use time::Time;
