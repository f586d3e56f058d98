//! Asking a worker whether it still lives.

use api_types::{Incarnation, WorkerId};

use super::Actions;

impl Actions {
    /// Asks a worker's `/health`; an answer goes to the driver, silence stays silence.
    pub fn probe_worker(
        &self,
        worker_id: WorkerId,
        incarnation: Incarnation,
        uri: &str,
        secret: Option<&str>,
    ) {
        let worker = self.workers.at(uri, secret);
        let handle = self.handle.clone();
        self.runtime.spawn(async move {
            match worker.health().await {
                Ok(health) => handle.probed(worker_id, incarnation, health),
                Err(error) => {
                    tracing::debug!(code = "WORKER_SILENT", %worker_id, %error, "a probe had no answer");
                }
            }
        });
    }
}
