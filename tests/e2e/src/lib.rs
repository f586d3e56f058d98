//! The real programs, started as an operator would, in a folder and on ports of their own.
//!
//! Tests wait for conditions, never for time. Everything a daemon said is kept and shown when a
//! test fails.

pub mod binaries;
pub mod cluster;
pub mod daemon;
pub mod recording;
pub mod stream;
pub mod wait;
pub mod wire;

pub use cluster::{Cluster, Engine, WorkerOptions};
pub use daemon::Daemon;
pub use stream::{Received, Stream};
pub use wait::until;
pub use wire::Wire;
