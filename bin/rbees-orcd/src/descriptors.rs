//! How many connections the system lets this process hold. Descriptors that run out in the middle of
//! work hit whoever comes next, a commit as well as a client; so clients are turned away before.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are kept for the database, logs, listeners, calls of pools and workers, and the
/// clients that are being turned away.
const RESERVED: u64 = 64;
/// A client that reads a stream takes one, and the stream from the worker another.
const PER_CONNECTION: u64 = 2;

/// Raises the limit of this process as far as it may. Gives how many of `wanted` connections it can
/// hold; at least one.
pub fn affordable(wanted: usize) -> usize {
    let limit = raised(getrlimit(Resource::Nofile));
    let connections = connections(limit).min(wanted);
    if connections < wanted {
        tracing::warn!(
            code = "FEW_DESCRIPTORS",
            limit,
            wanted,
            connections,
            "the limit on open files allows fewer connections than max_connections; raise it (`ulimit -n`)"
        );
    }
    connections
}

/// The soft limit after it was raised to the hard one, where that is allowed.
fn raised(limits: Rlimit) -> Option<u64> {
    let raised = Rlimit { current: limits.maximum, ..limits };
    if setrlimit(Resource::Nofile, raised).is_ok() { limits.maximum } else { limits.current }
}

/// Connections that so many descriptors are enough for; `None` is no limit.
fn connections(limit: Option<u64>) -> usize {
    let spare = limit.map_or(u64::MAX, |limit| limit.saturating_sub(RESERVED) / PER_CONNECTION);
    usize::try_from(spare).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_no_connection_and_one_is_always_possible() {
        assert_eq!(connections(Some(128)), 32);
        assert_eq!(connections(Some(8)), 1);
        assert_eq!(connections(None), usize::MAX);
    }
}
