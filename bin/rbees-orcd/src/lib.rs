//! The orchestrator's daemon: everything around the brain that touches the world.
//!
//! `driver` owns the brain and the database's one writer; `relay` and `subscribers` carry tokens
//! past it; `http` is what clients, workers and operators see.

pub mod actions;
pub mod clock;
pub mod config;
pub mod descriptors;
pub mod driver;
pub mod hashes;
pub mod http;
pub mod ids;
pub mod logs;
pub mod metrics;
pub mod policy;
pub mod pool_directory;
pub mod relay;
pub mod server;
pub mod silence;
pub mod store;
pub mod subscribers;
pub mod turns;
