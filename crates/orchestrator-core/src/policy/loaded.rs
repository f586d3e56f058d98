//! Policies as texts, and what makes a text into a policy.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::builtin::LeastLoaded;
use super::facts::{FailureFacts, JobFacts, QueueFacts, WorkerLoad};
use super::failure::{FailureKind, Hook, PolicyFailure};
use super::{Admission, Again, Policy, Score};

/// A policy as it is kept on disk and in journals.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyText {
    /// Its name, as the operator gave it.
    pub name: String,
    /// Its script; `None` is the built-in policy.
    pub source: Option<Arc<str>>,
    /// SHA-256 of the script as 64 hex digits; empty for the built-in policy.
    pub sha256: String,
}

impl PolicyText {
    /// The policy that is always there.
    pub fn built_in() -> Self {
        Self { name: "default".to_owned(), source: None, sha256: String::new() }
    }
}

/// Without the script, which may be long.
impl fmt::Debug for PolicyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyText")
            .field("name", &self.name)
            .field("sha256", &self.sha256)
            .finish_non_exhaustive()
    }
}

/// Makes policies of scripts. The same text always becomes the same policy.
pub trait Scripts: fmt::Debug + Send + Sync {
    /// The policy that a script describes.
    ///
    /// # Errors
    /// With the position and the reason, when it is not a script or breaks a limit.
    fn compile(&self, name: &str, source: &str) -> Result<Arc<dyn Policy>, PolicyFailure>;
}

/// No script language: every script fails with that reason, and the built-in policy answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoScripts;

impl Scripts for NoScripts {
    fn compile(&self, _name: &str, _source: &str) -> Result<Arc<dyn Policy>, PolicyFailure> {
        Err(not_loaded())
    }
}

/// A policy with its text. Written down, it is its text; read back, it waits for [`Loaded::load`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Loaded {
    pub text: PolicyText,
    #[serde(skip, default = "waiting")]
    pub policy: Arc<dyn Policy>,
}

impl Loaded {
    /// The policy of a text. One whose script does not compile fails at every question.
    pub fn new(text: PolicyText, scripts: &dyn Scripts) -> Self {
        let policy: Arc<dyn Policy> = match text.source.as_deref().map(|s| scripts.compile(&text.name, s)) {
            None => Arc::new(LeastLoaded),
            Some(Ok(policy)) => policy,
            Some(Err(failure)) => Arc::new(Broken { name: text.name.clone(), failure }),
        };
        Self { text, policy }
    }

    /// Makes the policy of its text again.
    pub fn load(&mut self, scripts: &dyn Scripts) {
        *self = Self::new(self.text.clone(), scripts);
    }
}

impl Default for Loaded {
    fn default() -> Self {
        Self { text: PolicyText::built_in(), policy: Arc::new(LeastLoaded) }
    }
}

fn waiting() -> Arc<dyn Policy> {
    Arc::new(Broken { name: String::new(), failure: not_loaded() })
}

fn not_loaded() -> PolicyFailure {
    PolicyFailure {
        hook: None,
        kind: FailureKind::Runtime,
        message: "no script language was loaded, so scripts cannot decide".to_owned(),
        position: None,
    }
}

/// A text that became no policy.
#[derive(Debug)]
struct Broken {
    name: String,
    failure: PolicyFailure,
}

impl Policy for Broken {
    fn describe(&self) -> &str {
        &self.name
    }

    fn has(&self, _hook: Hook) -> bool {
        true
    }

    fn admit(&self, _: &JobFacts<'_>, _: &QueueFacts) -> Result<Admission, PolicyFailure> {
        Err(self.failure.clone())
    }

    fn order(&self, _: &JobFacts<'_>) -> Result<i64, PolicyFailure> {
        Err(self.failure.clone())
    }

    fn score(&self, _: &JobFacts<'_>, _: &[WorkerLoad<'_>], _: &mut Vec<Score>) -> Result<(), PolicyFailure> {
        Err(self.failure.clone())
    }

    fn evict(&self, _: &WorkerLoad<'_>) -> Result<f64, PolicyFailure> {
        Err(self.failure.clone())
    }

    fn retry(&self, _: &JobFacts<'_>, _: &FailureFacts<'_>) -> Result<Again, PolicyFailure> {
        Err(self.failure.clone())
    }
}
