//! How it looks in one pool for jobs that nobody serves.

use api_types::pool::Fit;
use api_types::{ErrorDetail, PoolId, WorkerId};

use super::pools::Failures;
use crate::time::Time;

/// How it looks in one pool.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prospect<'a> {
    pub pool_id: &'a PoolId,
    pub hope: Hope<'a>,
}

/// The best comes first.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Hope<'a> {
    /// A worker for it is being started.
    Coming(Option<Time>),
    /// One fits; `None` when nothing is known of its need.
    Fits(Option<&'a Fit>),
    /// The pool was asked, and is asked again if it does not answer by then; `None` when it is to be.
    Asked(Option<Time>),
    /// One fits once these have gone, who may be told so from then on.
    Release(Time, Vec<WorkerId>, &'a Fit),
    /// Workers are being started or ended there.
    Going(&'a Fit),
    /// A spawn failed; the next one waits.
    Resting(&'a Failures),
    /// The pool does not answer.
    Silent(&'a ErrorDetail, Time),
    /// Somebody who has waited longer waits for it.
    Taken,
    /// The memory is held by what cannot be taken away.
    Held(&'a Fit),
    /// It cannot be there, for this reason.
    Unfit(String),
    /// Spawns failed too often.
    Exhausted(&'a Failures),
    /// The device is too small.
    TooLarge(&'a Fit),
}

impl Hope<'_> {
    /// The lowest is the best. Who may be told at once goes before who may be told later.
    pub const fn rank(&self, now: Time) -> (u8, Time) {
        let rank = match self {
            Self::Coming(_) => 0,
            Self::Fits(_) => 1,
            Self::Asked(_) => 2,
            Self::Release(from, ..) if from.0 <= now.0 => 3,
            Self::Going(_) => 4,
            Self::Release(from, ..) => return (5, *from),
            Self::Resting(_) => 6,
            Self::Silent(..) => 7,
            Self::Taken => 8,
            Self::Held(_) => 9,
            Self::Unfit(_) => 10,
            Self::Exhausted(_) => 11,
            Self::TooLarge(_) => 12,
        };
        (rank, now)
    }

    /// Whether a pool in this state may be stuck to.
    pub const fn goes_on(&self) -> bool {
        match self {
            Self::Coming(_) | Self::Fits(_) | Self::Asked(_) | Self::Release(..) | Self::Going(_) => true,
            Self::Resting(_) | Self::Silent(..) | Self::Taken | Self::Held(_) => false,
            Self::Unfit(_) | Self::Exhausted(_) | Self::TooLarge(_) => false,
        }
    }

    /// Whether waiting is in vain here, unless the job asked for something else.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Exhausted(_) | Self::TooLarge(_))
    }
}
