//! Models as the orchestrator can serve them.

use serde::{Deserialize, Serialize};

use crate::id::{PoolId, WorkerId};

/// `GET /v2/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelList {
    /// Every model that a worker runs or a pool knows, by id.
    pub models: Vec<ModelView>,
}

/// One model: where its files lie and where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelView {
    /// The name to put into a request.
    pub id: String,
    /// Whether a worker could take a job for it now or after its running ones.
    pub ready: bool,
    /// Tokens of context that the smallest running worker holds, else what the catalog says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
    /// Workers that run it.
    pub workers: Vec<WorkerId>,
    /// Pools whose disks hold it, whole and verified.
    pub pools: Vec<PoolId>,
}
