//! The mock as a worker of an orchestrator: it introduces itself and sends heartbeats.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api_types::id::{InstanceId, WorkerId};
use api_types::worker::{
    HeartbeatCall, HeartbeatReply, ReadyCall, ReadyReply, WorkerFacts, WorkerHealth, WorkerStatus,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::load::Connection;
use crate::mock::server::{CONTEXT, MODEL, Mock};

/// The one start of this mock; a bench never restarts it.
const INSTANCE: u128 = 0x0b5e_55ed_0b5e_55ed_0b5e_55ed_0b5e_55ed;
const RETRY: Duration = Duration::from_millis(200);

/// Registers and heartbeats for ever; what fails is tried again.
pub async fn keep(orchestrator: SocketAddr, mock: Arc<Mock>, worker_id: WorkerId, index: u16) {
    loop {
        if let Err(error) = live(orchestrator, &mock, &facts(&mock, &worker_id, index)).await {
            eprintln!("mock worker: {error:#}");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn live(orchestrator: SocketAddr, mock: &Mock, facts: &WorkerFacts) -> anyhow::Result<()> {
    let mut connection = Connection::open(orchestrator).await?;
    let ready =
        ReadyCall { facts: facts.clone(), status: WorkerStatus::Ready, runs: mock.runs.list(), secret: None };
    let reply: ReadyReply = call(&mut connection, "/v2/workers/ready", &ready).await?;
    loop {
        tokio::time::sleep(Duration::from_millis(reply.heartbeat_ms)).await;
        let runs = mock.runs.list();
        let busy = runs.iter().filter(|run| !run.ended).count();
        let beat = HeartbeatCall {
            instance: instance(),
            incarnation: reply.incarnation,
            status: WorkerStatus::Ready,
            slots_busy: u32::try_from(busy).unwrap_or(mock.slots).min(mock.slots),
            runs,
            free_memory_bytes: 1 << 34,
            prefixes: None,
        };
        let path = format!("/v2/workers/{}/heartbeat", facts.worker_id);
        let answer: HeartbeatReply = call(&mut connection, &path, &beat).await?;
        for run in answer.drop_runs {
            mock.runs.forget(&run.job_id, run.attempt.0);
        }
    }
}

async fn call<T: DeserializeOwned>(
    connection: &mut Connection,
    path: &str,
    body: &impl Serialize,
) -> anyhow::Result<T> {
    let answer = connection.call(path, serde_json::to_vec(body)?.into()).await?;
    Ok(serde_json::from_slice(&answer)?)
}

/// What `GET /health` answers.
pub fn health(mock: &Mock) -> WorkerHealth {
    WorkerHealth {
        status: WorkerStatus::Ready,
        load_progress: None,
        error: None,
        slots_busy: 0,
        incarnation: None,
        free_memory_bytes: None,
        facts: facts(mock, &mock.name, 0),
    }
}

fn instance() -> InstanceId {
    InstanceId(uuid::Uuid::from_u128(INSTANCE))
}

fn facts(mock: &Mock, worker_id: &WorkerId, index: u16) -> WorkerFacts {
    let [high, low] = index.to_be_bytes();
    let host = std::net::Ipv4Addr::new(127, 1, high, low);
    WorkerFacts {
        worker_id: worker_id.clone(),
        instance: instance(),
        pool_id: None,
        uri: format!("http://{host}:{}", mock.address.port()),
        model: MODEL.into(),
        model_ref: None,
        backend: "fake".into(),
        devices: vec!["mock".into()],
        slots: mock.slots,
        context_length: CONTEXT,
        vram_bytes: 0,
        ram_bytes: 0,
        quantization: None,
        tokenizer: None,
        capabilities: vec!["chat".into(), "completion".into(), "fake".into()],
        evictable: false,
        engine: "mock".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        protocol: api_types::PROTOCOL,
    }
}
