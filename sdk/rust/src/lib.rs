//! The Rust client of an rbees orchestrator.
//!
//! ```no_run
//! # async fn example() -> Result<(), llama_orch_sdk::Error> {
//! use llama_orch_sdk::{Client, InferenceEvent, InferenceRequest};
//!
//! let client = Client::new("http://localhost:8080");
//! let request = InferenceRequest {
//!     prompt: "Once upon a time",
//!     max_tokens: 100,
//!     temperature: 0.7,
//!     model: Some("smollm2-135m".to_string()),
//! };
//! let mut stream = client.stream(request).await?;
//! while let Some(event) = stream.try_next().await? {
//!     if let InferenceEvent::Token { t, .. } = event {
//!         print!("{t}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A stream survives dropped connections and restarts of the orchestrator: it is taken up again
//! behind the last event that arrived, without a lost or doubled token. Dropping a stream is
//! enough to leave it; whether the job then goes on is the job's `on_disconnect`.

mod client;
mod error;
mod events;
mod inference;
mod policy;
mod position;
mod request;
mod send;
mod sleep;

pub use api_types::event::{Eta, RunEnd, RunMetrics};
pub use api_types::health::{HealthStatus, OrchestratorHealth};
pub use api_types::model::{ModelList, ModelView};
pub use api_types::policy::{PolicyCheck, PolicyReport, PutPolicy, ShadowReport};
pub use api_types::pool::{AddPool, PoolList, PoolView};
pub use api_types::task::{
    CancelAccepted, ChatMessage, Durability, Erased, OnDisconnect, Placement, Priority, RetryMode,
    TaskAccepted, TaskList, TaskRequest, TaskStatus, TaskView, WhyView,
};
pub use api_types::worker::{WorkerList, WorkerView};
pub use api_types::{ErrorCode, ErrorDetail, JobId, PoolId, StopReason, TaskEvent, WorkerId};
pub use client::{Client, ListQuery};
pub use error::Error;
pub use events::{JobEvent, JobEvents};
pub use inference::{InferenceEvent, InferenceStream, TextChunk, TextStream};
pub use request::{EnqueueRequest, InferenceRequest};
