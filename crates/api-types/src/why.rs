//! The reasons of a placement, as numbers that can be checked and sentences that can be read.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{PoolId, WorkerId};

/// A condition that rules a worker out for a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RuledOut {
    /// It runs another model.
    OtherModel {
        /// The model it runs.
        runs: String,
    },
    /// The job asks for another worker.
    OtherWorker {
        /// The worker the job asks for.
        wanted: WorkerId,
    },
    /// The job asks for another pool.
    OtherPool {
        /// The pool the job asks for.
        wanted: PoolId,
        /// The pool it belongs to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pool: Option<PoolId>,
    },
    /// The job avoids it or its pool.
    Avoided {
        /// The name in `avoid`.
        name: String,
    },
    /// It lacks what the job requires.
    Lacks {
        /// The capability.
        capability: String,
    },
    /// Its context does not hold the job.
    ContextTooSmall {
        /// Tokens of context that it has per job.
        context_length: u32,
        /// Tokens that the job brings along at least; one more is needed for an answer.
        tokens_at_least: u32,
    },
    /// It reads its model.
    Loading,
    /// It finishes its jobs and takes no new ones.
    Draining,
    /// It said that it cannot go on.
    Failed,
    /// Its lease ended or its process is gone.
    Lost,
    /// It has not been heard of since the orchestrator started.
    NotHeard,
    /// It is silent.
    Silent {
        /// For how long, in milliseconds.
        silent_ms: u64,
        /// From when on it gets no job, in milliseconds.
        limit_ms: u64,
    },
    /// It broke the protocol too often.
    Quarantined {
        /// How often.
        protocol_errors: u32,
        /// For how much longer it gets no job, in milliseconds.
        left_ms: u64,
    },
    /// Every slot has a run.
    NoFreeSlot {
        /// All its slots.
        slots: u32,
        /// Slots with a run.
        taken: u32,
    },
    /// It refused a job as busy a moment ago.
    JustBusy {
        /// For how much longer it is not asked, in milliseconds.
        left_ms: u64,
    },
    /// A policy keeps it free of this job for now.
    KeptFree {
        /// Which policy.
        policy: String,
    },
}

impl fmt::Display for RuledOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherModel { runs } => write!(f, "it runs the model `{runs}`"),
            Self::OtherWorker { wanted } => write!(f, "the job asks for the worker `{wanted}`"),
            Self::OtherPool { wanted, pool: Some(pool) } => {
                write!(f, "the job asks for the pool `{wanted}`; it belongs to the pool `{pool}`")
            }
            Self::OtherPool { wanted, pool: None } => {
                write!(f, "the job asks for the pool `{wanted}`; it belongs to no pool")
            }
            Self::Avoided { name } => write!(f, "the job avoids `{name}`"),
            Self::Lacks { capability } => write!(f, "the job requires `{capability}`, which it lacks"),
            Self::ContextTooSmall { context_length, tokens_at_least } => write!(
                f,
                "its context holds {context_length} tokens, and the job brings at least {tokens_at_least}"
            ),
            Self::Loading => f.write_str("it is still loading its model"),
            Self::Draining => f.write_str("it is draining and takes no new job"),
            Self::Failed => f.write_str("it said that it cannot go on"),
            Self::Lost => f.write_str("it is lost: its lease ended or its process is gone"),
            Self::NotHeard => f.write_str("it has not been heard of since the orchestrator started"),
            Self::Silent { silent_ms, limit_ms } => {
                write!(f, "nothing was heard of it for {silent_ms} ms; the limit is {limit_ms} ms")
            }
            Self::Quarantined { protocol_errors, left_ms } => write!(
                f,
                "it broke the protocol {protocol_errors} times and gets no job for another {left_ms} ms"
            ),
            Self::NoFreeSlot { slots, .. } => write!(f, "all of its {slots} slots are taken"),
            Self::JustBusy { left_ms } => {
                write!(f, "it just refused a job because it was busy; it is asked again in {left_ms} ms")
            }
            Self::KeptFree { policy } => {
                write!(f, "the policy `{policy}` keeps it free of this job for now")
            }
        }
    }
}

/// What a score is made of; their sum is the score. Terms that are zero are left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScoreTerms {
    /// What a policy script gave, 0 to 1,000; the built-in policy's points are the next three.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub policy: f64,
    /// For the share of the prompt that it holds, or for having served the session.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub affinity: f64,
    /// For the share of its slots that are free.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub load: f64,
    /// For free memory; less than 1.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub memory: f64,
    /// Because the job prefers it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub prefer: f64,
    /// Because it failed this job before; negative.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed: f64,
}

impl ScoreTerms {
    /// The score in whole millionths, always summed in the same order.
    pub fn total(&self) -> f64 {
        millionths(self.policy + (self.affinity + (self.load + self.memory)) + (self.prefer + self.failed))
    }
}

/// Points rounded to whole millionths. That leaves at most eleven digits, and with up to fifteen every
/// reader of JSON gets the very number back that was written.
pub fn millionths(points: f64) -> f64 {
    (points * 1e6).round() / 1e6
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(term: &f64) -> bool {
    *term == 0.0
}

/// What would have sent a job elsewhere: one change, all else as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Counterfactual {
    /// Where it would have gone.
    pub worker_id: WorkerId,
    /// The change.
    pub change: Change,
}

/// One change to the facts of a placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Change {
    /// The other worker has so many free slots.
    FreeSlots {
        /// Free slots instead of those it has.
        slots_free: u32,
    },
    /// What rules the other worker out does not hold.
    Lifted {
        /// The condition, the only one that rules it out.
        because: RuledOut,
    },
    /// The worker that was taken cannot take it.
    PickedAbsent,
}

impl fmt::Display for Counterfactual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "would have gone to `{}` if ", self.worker_id)?;
        match &self.change {
            Change::FreeSlots { slots_free: 1 } | Change::Lifted { because: RuledOut::NoFreeSlot { .. } } => {
                f.write_str("it had a free slot")
            }
            Change::FreeSlots { slots_free } => write!(f, "it had {slots_free} free slots"),
            Change::Lifted { because } => write!(f, "this were not so: {because}"),
            Change::PickedAbsent => f.write_str("the worker taken could not have taken it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_survive_the_wire_with_their_code_and_numbers() {
        let reason = RuledOut::NoFreeSlot { slots: 4, taken: 4 };
        let text = serde_json::to_string(&reason).expect("an object");
        assert_eq!(text, r#"{"code":"no_free_slot","slots":4,"taken":4}"#);
        assert_eq!(serde_json::from_str::<RuledOut>(&text).expect("well formed"), reason);
        assert_eq!(serde_json::to_string(&RuledOut::Loading).expect("an object"), r#"{"code":"loading"}"#);
    }

    #[test]
    fn terms_that_are_zero_are_left_out_and_the_rest_add_up() {
        let terms = ScoreTerms { load: 374.0, memory: 0.941_176, ..ScoreTerms::default() };
        let text = serde_json::to_string(&terms).expect("an object");
        assert_eq!(text, r#"{"load":374.0,"memory":0.941176}"#);
        let read: ScoreTerms = serde_json::from_str(&text).expect("well formed");
        assert_eq!(read.total().to_bits(), terms.total().to_bits());
    }

    #[test]
    fn a_score_survives_being_written_down_though_its_sum_is_not_exact() {
        let terms = ScoreTerms {
            affinity: 51.0,
            load: 499.0,
            memory: 0.666_666,
            prefer: 10_000.0,
            ..ScoreTerms::default()
        };
        let text = serde_json::to_string(&terms.total()).expect("a number");
        assert_eq!(text, "10550.666666");
        assert_eq!(serde_json::from_str::<f64>(&text).expect("a number").to_bits(), terms.total().to_bits());
    }
}
