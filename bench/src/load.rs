//! The load: keep-alive connections in closed loops, paced streams, idle streams.

mod closed;
mod connection;
mod sse;
mod streams;

pub use closed::{ClosedLoop, Throughput};
pub use connection::{Connection, Target};
pub use streams::{IdleStreams, OPENING, Paced, paced};
