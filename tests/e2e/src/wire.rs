//! The wires between one worker and its orchestrator, in the hands of a test: they let so many tokens
//! through, then hold the stream, and are cut when the test says so.
//!
//! Bytes pass unchanged, but for the address in the worker's registration: the orchestrator is told
//! the one of the wire.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::wait::PATIENCE;

/// What stands before the address in a registration.
const ADDRESS_FIELD: &[u8] = br#""uri":"http://"#;

/// Both ways of one worker: its calls to the orchestrator, and the orchestrator's calls to it.
pub struct Wire {
    /// The URL that the worker is to know as the orchestrator's.
    pub orchestrator: String,
    gate: Arc<Gate>,
    connections: JoinSet<()>,
}

impl Wire {
    /// Opens the wires to the orchestrator at `orchestrator`, a host and a port.
    pub async fn open(orchestrator: &str) -> Self {
        let (calls, runs) = (listener().await, listener().await);
        let gate = Arc::new(Gate::new(address(&runs)));
        let mut connections = JoinSet::new();
        let url = format!("http://{}", address(&calls));
        connections.spawn(carry_calls(calls, orchestrator.to_owned(), Arc::clone(&gate)));
        connections.spawn(carry_runs(runs, Arc::clone(&gate)));
        Self { orchestrator: url, gate, connections }
    }

    /// Lets so many more tokens through. With 0 a stream is held once its run has begun.
    pub fn allow(&self, tokens: usize) {
        self.gate.state.send_modify(|state| (state.left, state.holds) = (tokens, false));
    }

    /// Lets everything through from now on.
    pub fn open_up(&self) {
        self.allow(usize::MAX);
    }

    /// Waits until a stream is held.
    pub async fn holds(&self) {
        let mut state = self.gate.state.subscribe();
        let held = tokio::time::timeout(PATIENCE, state.wait_for(|state| state.holds));
        held.await.expect("a stream reaches the gate in time").expect("the gate is there");
    }

    /// Ends every connection, and refuses further ones.
    pub async fn cut(&mut self) {
        self.connections.shutdown().await;
    }
}

/// How much of the worker's streams may pass.
struct Gate {
    /// The address under which the orchestrator knows the worker.
    shown: String,
    /// Where the worker listens, once it has told.
    real: Mutex<Option<String>>,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy)]
struct State {
    /// Tokens that may still pass.
    left: usize,
    /// Whether a stream is held.
    holds: bool,
}

impl Gate {
    fn new(shown: String) -> Self {
        Self {
            shown,
            real: Mutex::default(),
            state: watch::Sender::new(State { left: usize::MAX, holds: false }),
        }
    }

    /// Puts our address in the place of the worker's, where it stands in these bytes.
    fn readdress(&self, bytes: &mut [u8]) {
        let Some(field) = bytes.windows(ADDRESS_FIELD.len()).position(|window| window == ADDRESS_FIELD)
        else {
            return;
        };
        let rest = &mut bytes[field + ADDRESS_FIELD.len()..];
        let length = rest.iter().position(|byte| *byte == b'"').expect("the registration comes in one piece");
        let real = String::from_utf8_lossy(&rest[..length]).into_owned();
        // The length of the body is in the header, which has passed already.
        assert_eq!(real.len(), self.shown.len(), "both ports have as many digits");
        rest[..length].copy_from_slice(self.shown.as_bytes());
        *self.real.lock().unwrap_or_else(PoisonError::into_inner) = Some(real);
    }

    fn real(&self) -> Option<String> {
        self.real.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that a run has begun or that a token has passed. Whether nothing more may pass.
    fn passed(&self, token: bool) -> bool {
        let mut holds = false;
        self.state.send_modify(|state| {
            state.left = if state.left == usize::MAX {
                state.left
            } else {
                state.left.saturating_sub(usize::from(token))
            };
            state.holds |= state.left == 0;
            holds = state.holds;
        });
        holds
    }

    /// Waits until more may pass than when the stream was held.
    async fn reopened(&self) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| !state.holds).await;
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free")
}

fn address(listener: &TcpListener) -> String {
    listener.local_addr().expect("it listens").to_string()
}

/// The worker's calls to the orchestrator.
async fn carry_calls(listener: TcpListener, orchestrator: String, gate: Arc<Gate>) {
    let mut connections = JoinSet::new();
    while let Ok((worker, _)) = listener.accept().await {
        let Ok(there) = TcpStream::connect(&orchestrator).await else { continue };
        let ((from_worker, to_worker), (from_there, to_there)) = (worker.into_split(), there.into_split());
        let gate = Arc::clone(&gate);
        connections.spawn(carry(from_worker, to_there, move |bytes| gate.readdress(bytes)));
        connections.spawn(carry(from_there, to_worker, |_| {}));
    }
}

/// The orchestrator's calls to the worker.
async fn carry_runs(listener: TcpListener, gate: Arc<Gate>) {
    let mut connections = JoinSet::new();
    while let Ok((caller, _)) = listener.accept().await {
        let Some(real) = gate.real() else { continue };
        let Ok(worker) = TcpStream::connect(real).await else { continue };
        let ((from_caller, to_caller), (from_worker, to_worker)) = (caller.into_split(), worker.into_split());
        connections.spawn(carry(from_caller, to_worker, |_| {}));
        connections.spawn(carry_stream(from_worker, to_caller, Arc::clone(&gate)));
    }
}

/// Carries bytes one way until either end is gone.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, edit: impl Fn(&mut [u8])) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        edit(&mut buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Carries what the worker says, up to the end of the last frame that may pass.
async fn carry_stream(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, gate: Arc<Gate>) {
    let mut frames = Frames::default();
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let mut sent = 0;
        for (at, byte) in buffer[..count].iter().enumerate() {
            let Some(token) = frames.take(*byte) else { continue };
            if gate.passed(token) {
                if to.write_all(&buffer[sent..=at]).await.is_err() {
                    return;
                }
                sent = at + 1;
                gate.reopened().await;
            }
        }
        if to.write_all(&buffer[sent..count]).await.is_err() {
            return;
        }
    }
}

/// Finds the ends of frames in what a worker sends. Of the lines that HTTP puts between chunks none
/// looks like one of an event.
#[derive(Default)]
struct Frames {
    line: Vec<u8>,
    /// Whether the frame that is being read is a token; `None` for any that does not count.
    token: Option<bool>,
}

impl Frames {
    /// Takes one byte; at the end of a frame that counts, whether that is a token or the begin of a run.
    fn take(&mut self, byte: u8) -> Option<bool> {
        if byte != b'\n' {
            self.line.push(byte);
            return None;
        }
        let line = std::mem::take(&mut self.line);
        match line.as_slice() {
            b"event: token" => self.token = Some(true),
            b"event: started" => self.token = Some(false),
            b"" => return self.token.take(),
            _ => {}
        }
        None
    }
}
