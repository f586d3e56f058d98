//! The brain of rbees as a value.
//!
//! An event and the time go in; rows to write and things to do come out. The driver commits the
//! rows and only then acts, so a crash at any instant is a restart from the rows. There is no
//! clock, no randomness, no I/O and no hash order in here: the same rows and events always give
//! the same steps.

mod admit;
mod affinity;
mod alarms;
mod cancel;
mod carry;
mod context;
mod deadline;
mod ended;
pub mod estimate;
mod eta;
pub mod event;
mod fair;
mod feasible;
mod finish;
mod job;
pub mod journal;
mod lease;
mod live;
mod model;
mod openings;
mod orchestrator;
mod place;
pub mod policy;
mod pool;
mod prefix;
mod queue;
pub mod quota;
mod rank;
mod reason;
mod recover;
mod register;
mod registry;
pub mod replay;
mod retry;
pub mod row;
mod session;
mod set_policy;
pub mod settings;
mod shortlist;
pub mod step;
mod stream;
mod supply;
pub mod time;
mod turn;
pub mod view;
mod withdraw;
mod worker;

pub use carry::Carried;
pub use estimate::{Estimates, Forecast, latest_start};
pub use event::{
    BrokenCause, Event, Idempotency, Kept, PoolModel, PoolProcess, PoolRoom, RequestId, Run, RunKey,
    Submission,
};
pub use job::may_move;
pub use orchestrator::Orchestrator;
pub use quota::{Quota, Quotas};
pub use reason::reproduce;
pub use row::{AttemptRow, JobRow, PoolRow, Rows, SessionRow, SpawnRow, WorkerRow};
pub use settings::{FullPolicy, LeaseSettings, RetrySettings, SessionSettings, Settings, SupplySettings};
pub use step::{Action, Answer, GoOn, Notice, OpenStream, SpawnPhase, Step, UnloadCause, Write};
pub use time::Time;
pub use view::{HealthCounts, JobStanding, explain_ended};
