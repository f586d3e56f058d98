//! The programs behind `up` and `down`: finding, starting and stopping them.

pub mod lock;
pub mod orchestrator;
pub mod port;
pub mod propose;
pub mod stop;
pub mod worker;
