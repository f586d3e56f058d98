//! How a policy fails.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the five questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// Is a new job let in?
    Admit,
    /// Which job of a flow goes first?
    Order,
    /// How good is a worker for a job?
    Score,
    /// Which idle worker goes first?
    Evict,
    /// Is a failed job tried again?
    Retry,
}

impl Hook {
    /// All five.
    pub const ALL: [Self; 5] = [Self::Admit, Self::Order, Self::Score, Self::Evict, Self::Retry];

    /// Its name, as a script defines it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Order => "order",
            Self::Score => "score",
            Self::Evict => "evict",
            Self::Retry => "retry",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A hook that gave no answer, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFailure {
    /// Which hook; `None` for a script that does not even compile.
    pub hook: Option<Hook>,
    /// Of which kind.
    pub kind: FailureKind,
    /// What happened, with the numbers.
    pub message: String,
    /// Line and column in the script, both from 1, where they are known.
    pub position: Option<(u32, u32)>,
}

/// The kinds of failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// It is not a script of the language.
    Syntax,
    /// It ran past a limit, which is named: `operations`, `call depth`, ...
    Limit(String),
    /// It went wrong while it ran.
    Runtime,
    /// It answered something that is no answer to this hook.
    WrongAnswer,
    /// The watchdog of the shell stopped it.
    Interrupted,
}

impl fmt::Display for PolicyFailure {
    /// One line, for example `score, line 3:7: operations: more than 100000 in one decision`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(hook) = self.hook {
            write!(f, "{hook}")?;
        } else {
            f.write_str("script")?;
        }
        if let Some((line, column)) = self.position {
            write!(f, ", line {line}:{column}")?;
        }
        match &self.kind {
            FailureKind::Limit(limit) => write!(f, ": limit of {limit}: {}", self.message),
            FailureKind::Syntax
            | FailureKind::Runtime
            | FailureKind::WrongAnswer
            | FailureKind::Interrupted => {
                write!(f, ": {}", self.message)
            }
        }
    }
}
