//! What jobs ask for, which the brain never sees: in memory while there is room, else only on
//! disk until the job is handed out.

use std::collections::HashMap;
use std::sync::Arc;

use api_types::JobId;
use api_types::task::Durability;
use api_types::worker::ExecuteRequest;

/// Bytes of prompts that are held in memory for durable jobs.
const MEMORY_BYTES: usize = 64 * 1024 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Requests {
    held: HashMap<JobId, Held>,
    bytes: usize,
}

#[derive(Debug)]
struct Held {
    request: Arc<ExecuteRequest>,
    durability: Durability,
    bytes: usize,
}

impl Requests {
    /// Keeps a request until its job ends: always when it is nowhere else, else while there is room.
    pub fn keep(
        &mut self,
        job_id: JobId,
        request: ExecuteRequest,
        durability: Durability,
    ) -> Arc<ExecuteRequest> {
        let request = Arc::new(request);
        let bytes = text_bytes(&request);
        if durability == Durability::Memory || self.bytes + bytes <= MEMORY_BYTES {
            self.bytes += bytes;
            self.held.insert(job_id, Held { request: Arc::clone(&request), durability, bytes });
        }
        request
    }

    /// The request, when it is in memory.
    pub fn get(&self, job_id: JobId) -> Option<ExecuteRequest> {
        self.held.get(&job_id).map(|held| (*held.request).clone())
    }

    /// Drops it; says how durable the job was, when it was in memory.
    pub fn forget(&mut self, job_id: JobId) -> Option<Durability> {
        let held = self.held.remove(&job_id)?;
        self.bytes -= held.bytes;
        Some(held.durability)
    }
}

fn text_bytes(request: &ExecuteRequest) -> usize {
    let prompt = request.prompt.as_ref().map_or(0, String::len);
    let messages = request.messages.iter().flatten();
    prompt + messages.map(|message| message.role.len() + message.content.len()).sum::<usize>()
}
