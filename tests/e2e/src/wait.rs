//! Waiting for a condition.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// How long a condition may take to come true before the test is failed as stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until `condition` gives a value.
///
/// # Panics
/// When it gives none within [`PATIENCE`].
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
