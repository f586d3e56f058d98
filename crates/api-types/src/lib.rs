//! Everything that crosses a wire in rbees, and nothing else.
//!
//! Requests, answers, events and errors as plain values. No I/O, no clock, no id generator, so
//! that the browser can compile this crate and every program means the same thing by a word.
//!
//! With the feature `openapi` the types carry their schemas.

pub mod error;
pub mod event;
pub mod format;
pub mod health;
pub mod id;
pub mod json;
pub mod model;
pub mod policy;
pub mod pool;
pub mod prefix;
pub mod replay;
pub mod sampling;
pub mod session;
pub mod sse;
pub mod task;
pub mod why;
pub mod worker;

pub use error::{ErrorBody, ErrorCode, ErrorDetail};
pub use event::{StopReason, TaskEvent};
pub use id::{Attempt, CorrelationId, Incarnation, InstanceId, JobId, PoolId, SessionId, TenantId, WorkerId};
pub use prefix::PrefixChain;

/// Version of the messages between the programs of one fleet.
///
/// A pool or worker that answers another number is refused by name instead of half understood.
pub const PROTOCOL: u32 = 1;
