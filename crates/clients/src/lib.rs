//! Typed clients for the APIs between the programs of one fleet: orchestrator and worker.
//!
//! Everything here fails with [`ClientError`], which keeps apart what a caller must treat
//! differently: nobody listens, nobody answers, somebody answered with an error.

pub mod error;
pub mod http;
pub mod orchestrator;
pub mod pool;
pub mod worker;

pub use error::ClientError;
pub use http::http_client;
pub use orchestrator::OrchestratorClient;
pub use worker::address::is_of_worker;
pub use worker::{EventStream, WorkerClient, WorkerHttp};
