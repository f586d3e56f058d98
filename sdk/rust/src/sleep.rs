//! Waiting, in one place: a build for the browser replaces this file.

use std::time::Duration;

pub(crate) async fn sleep(span: Duration) {
    tokio::time::sleep(span).await;
}

/// The pause before try number `tries`, from 1: 25 ms, doubling, at most 2 s.
pub(crate) fn backoff(tries: u32) -> Duration {
    Duration::from_millis(25u64 << tries.saturating_sub(1).min(7)).min(Duration::from_secs(2))
}
