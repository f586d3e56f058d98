//! What the operator may set. Defaults, then files, then environment, then flags; later wins.

mod check;
mod keys;
mod layers;
mod quotas;
mod show;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchestrator_core::policy::PolicyText;
use orchestrator_core::{FullPolicy, Settings};

pub use self::keys::distance;
pub use self::layers::{Layers, Origin, Problem};
use crate::clock::Wall;
use crate::driver::Keeping;
use crate::relay::StallLimits;

/// A configuration that has passed every check.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub bind: SocketAddr,
    /// The state root.
    pub home: PathBuf,
    /// Names that `Host` may hold beside loopback and the bound address.
    pub allowed_hosts: Vec<String>,
    /// The bearer token that every route but health asks for.
    pub token: Option<Token>,
    /// The URL that workers and pools reach this orchestrator at; from `bind` when absent.
    pub url: Option<String>,
    /// What a stranger may send.
    pub limits: Limits,
    /// The brain's own numbers.
    pub settings: Settings,
    /// The policy of the configured file; it is made the live one at each start.
    pub policy: Option<PolicyText>,
    /// How long a worker may be silent.
    pub stalls: StallLimits,
    /// What is kept of ended jobs and of the journal.
    pub keeping: Keeping,
    /// How often pools are asked for their state.
    pub pool_interval: Duration,
    /// Where the wall clock is read at the start.
    pub wall: Wall,
}

/// What a stranger may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Connections at once.
    pub connections: usize,
    /// Until the headers of a request are there.
    pub header_time: Duration,
    /// Until the body of a request is there.
    pub body_time: Duration,
    /// Until a client is cut that takes nothing of what is sent to it, or is no longer there.
    pub silent_time: Duration,
}

/// A secret that never prints itself.
#[derive(Clone)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Whether `other` is the same; takes the same time for any of its length.
    pub fn matches(&self, other: &str) -> bool {
        subtle::ConstantTimeEq::ct_eq(self.0.as_bytes(), other.as_bytes()).into()
    }

    /// As a worker presents it that is started for us.
    pub fn for_workers(&self) -> clients::pool::OrchestratorToken {
        clients::pool::OrchestratorToken::new(&self.0)
    }
}

impl Config {
    /// The configuration that the layers amount to.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    pub fn from_layers(layers: &Layers) -> Result<Self, Vec<Problem>> {
        let mut problems = layers.problems().to_vec();
        let config = check::assemble(layers, &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(problems),
        }
    }

    /// The defaults, in the folder `home`, listening on a port of the system's choice.
    pub fn for_tests(home: &Path) -> Self {
        let mut layers = Layers::defaults();
        layers.set_flag("home", &home.to_string_lossy());
        layers.set_flag("bind", "127.0.0.1:0");
        Self::from_layers(&layers)
            .unwrap_or_else(|problems| unreachable!("the defaults are valid: {problems:?}"))
    }
}

/// The policy word of a full queue.
fn full_policy(word: &str) -> FullPolicy {
    if word == "drop-oldest-batch" { FullPolicy::DropOldestBatch } else { FullPolicy::Reject }
}
