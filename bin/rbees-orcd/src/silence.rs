//! How long nothing has been heard on a stream, with one timer that is looked at when it fires: to
//! set one anew for each token would cost more than passing the token on.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// See the module.
#[derive(Debug)]
pub struct Silence {
    limit: Duration,
    broken_at: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    /// Begins now, and is too long after `limit`.
    pub fn new(limit: Duration) -> Self {
        Self { limit, broken_at: Instant::now(), timer: None }
    }

    /// Something was heard just now.
    pub fn is_broken(&mut self) {
        self.broken_at = Instant::now();
    }

    /// Begins anew, with another limit.
    pub fn limit_to(&mut self, limit: Duration) {
        *self = Self::new(limit);
    }

    /// Waits until it is too long.
    pub async fn too_long(&mut self) {
        loop {
            let due = self.broken_at + self.limit;
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            timer.as_mut().await;
            if self.broken_at + self.limit <= Instant::now() {
                return;
            }
            timer.as_mut().reset(self.broken_at + self.limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn it_is_too_long_only_a_limit_after_the_last_sound() {
        let start = Instant::now();
        let mut silence = Silence::new(LIMIT);
        for _ in 0..3 {
            let early = tokio::time::timeout(LIMIT - Duration::from_secs(1), silence.too_long()).await;
            assert!(early.is_err());
            silence.is_broken();
        }
        silence.too_long().await;
        assert_eq!(start.elapsed(), 3 * (LIMIT - Duration::from_secs(1)) + LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_limit_counts_at_once() {
        let mut silence = Silence::new(LIMIT);
        let early = tokio::time::timeout(Duration::from_secs(1), silence.too_long()).await;
        assert!(early.is_err());
        let start = Instant::now();
        silence.limit_to(Duration::from_secs(2));
        silence.too_long().await;
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
