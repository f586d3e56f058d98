//! The worker: one model per process behind HTTP.
//!
//! - [`config`] turns flags into a checked configuration; [`worker`] is the life of the process.
//! - [`http`] is the API; [`server`] and [`guard`] are what every request passes first.
//! - [`runs`] is the table of runs; a run owns its slot and its [`run_log`], and response bodies
//!   are only readers of that log.
//! - [`decode`] is the one thread that owns the engine; [`batch`] decides the rows of each step;
//!   [`generation`] is one run inside it; [`text`] turns token bytes into events.
//! - [`replay`] is the part of a completion that another worker has made.
//! - [`form`] makes ready what a completion must keep to.
//! - [`prompt`] applies the model's chat template.
//! - [`register`] and [`report`] tell others about this worker.

pub mod batch;
pub mod capabilities;
pub mod config;
pub mod decode;
pub mod form;
pub mod generation;
pub mod guard;
pub mod http;
pub mod listen;
pub mod memory;
pub mod metrics;
pub mod prefix_cache;
pub mod prompt;
pub mod register;
pub mod replay;
pub mod report;
pub mod run_log;
pub mod runs;
pub mod server;
pub mod state;
pub mod text;
pub mod worker;
