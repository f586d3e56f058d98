//! What jobs ask for, which the brain never sees: in memory while there is room, else only on
//! disk until the job is handed out.

use std::collections::HashMap;

use api_types::JobId;
use api_types::json::write_string;
use api_types::task::{ChatMessage, Durability};
use api_types::worker::ExecuteRequest;
use bytes::Bytes;

/// Bytes of prompts that are held in memory for durable jobs.
const MEMORY_BYTES: usize = 64 * 1024 * 1024;
/// How the JSON of a request without a job begins.
const NO_JOB: &[u8] = br#"{"job_id":"""#;

/// A request as JSON, made once: it goes into the database as it is, and to a worker with the ids of
/// an attempt in front. A clone shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestBody(Bytes);

impl RequestBody {
    /// The JSON of `request`, whose ids are left out. Its texts come last and are copied once.
    pub fn new(mut request: ExecuteRequest) -> Self {
        request.job_id.clear();
        let (prompt, messages) = (request.prompt.take(), request.messages.take());
        let texts = messages.iter().flatten().map(|message| message.role.len() + message.content.len());
        let length = prompt.as_ref().map_or(0, String::len) + texts.sum::<usize>();
        let mut json = Vec::with_capacity(length + length / 16 + 512);
        // Wire types hold nothing that JSON cannot express, and writing to a Vec cannot fail.
        let _ = serde_json::to_writer(&mut json, &request);
        json.pop();
        if let Some(prompt) = prompt {
            json.extend_from_slice(br#","prompt":"#);
            write_string(&mut json, &prompt);
        }
        if let Some(messages) = messages {
            write_messages(&mut json, &messages);
        }
        json.push(b'}');
        Self(json.into())
    }

    /// What the database kept.
    pub fn from_stored(json: Vec<u8>) -> Self {
        Self(json.into())
    }

    /// The request that it was made from.
    pub fn request(&self) -> ExecuteRequest {
        // It was written here, so it can be read.
        serde_json::from_slice(&self.0).unwrap_or_default()
    }

    /// As it is stored; shared, not copied.
    pub fn json(&self) -> Bytes {
        self.0.clone()
    }

    /// The body of `/execute` in two parts, so that a long request is not copied: `head` has the ids
    /// of the attempt and nothing that the request has.
    pub fn with_head(&self, head: &ExecuteRequest) -> (Vec<u8>, Bytes) {
        let mut front = Vec::with_capacity(512);
        // Writing to a Vec cannot fail.
        let _ = serde_json::to_writer(&mut front, head);
        front.pop();
        let tail = if self.0.starts_with(NO_JOB) { self.0.slice(NO_JOB.len()..) } else { "}".into() };
        (front, tail)
    }
}

fn write_messages(json: &mut Vec<u8>, messages: &[ChatMessage]) {
    json.extend_from_slice(br#","messages":["#);
    for (at, ChatMessage { role, content }) in messages.iter().enumerate() {
        json.extend_from_slice(if at == 0 { br#"{"role":"# } else { br#",{"role":"# });
        write_string(json, role);
        json.extend_from_slice(br#","content":"#);
        write_string(json, content);
        json.push(b'}');
    }
    json.push(b']');
}

/// See the module.
#[derive(Debug, Default)]
pub struct Requests {
    held: HashMap<JobId, Held>,
    bytes: usize,
}

#[derive(Debug)]
struct Held {
    request: RequestBody,
    durability: Durability,
}

impl Requests {
    /// Keeps a request until its job ends: always when it is nowhere else, else while there is room.
    pub fn keep(&mut self, job_id: JobId, request: RequestBody, durability: Durability) {
        let bytes = request.0.len();
        if durability == Durability::Memory || self.bytes + bytes <= MEMORY_BYTES {
            self.bytes += bytes;
            self.held.insert(job_id, Held { request, durability });
        }
    }

    /// The request, when it is in memory.
    pub fn get(&self, job_id: JobId) -> Option<RequestBody> {
        self.held.get(&job_id).map(|held| held.request.clone())
    }

    /// Drops it; says how durable the job was, when it was in memory.
    pub fn forget(&mut self, job_id: JobId) -> Option<Durability> {
        let held = self.held.remove(&job_id)?;
        self.bytes -= held.request.0.len();
        Some(held.durability)
    }
}

#[cfg(test)]
mod tests {
    use api_types::{Attempt, Incarnation};

    use super::*;

    #[test]
    fn a_body_with_a_head_is_the_request_with_its_ids() {
        let request =
            ExecuteRequest { prompt: Some("\"{} \u{1f41d}".into()), seed: Some(7), ..Default::default() };
        let message = |role: &str| ChatMessage { role: role.into(), content: "a\n\"b\"".into() };
        let chat = ExecuteRequest {
            messages: Some(vec![message("system"), message("user")]),
            temperature: Some(0.5),
            ..Default::default()
        };
        let empty = ExecuteRequest { messages: Some(Vec::new()), ..Default::default() };
        let head = ExecuteRequest {
            job_id: "job_1".into(),
            attempt: Some(Attempt(2)),
            incarnation: Some(Incarnation(3)),
            ..Default::default()
        };
        for request in [request, chat, empty, ExecuteRequest::default()] {
            let (front, tail) = RequestBody::new(request.clone()).with_head(&head);
            let body = [&front[..], &tail[..]].concat();
            let both = ExecuteRequest {
                job_id: head.job_id.clone(),
                attempt: head.attempt,
                incarnation: head.incarnation,
                ..request
            };
            assert_eq!(serde_json::from_slice::<ExecuteRequest>(&body).expect("JSON"), both);
        }
    }
}
