//! Whose turn it is on the runtime.

use std::future::poll_fn;
use std::task::Poll;

/// Lets everything that is ready run first.
///
/// Before bytes are sent: what was decided in one turn of the loop is then sent in one go, and whoever
/// receives it is woken once and finds the rest while it is still awake. A wake-up costs as much as
/// anything else about a short request.
pub async fn step_back() {
    let mut stepped = false;
    poll_fn(|context| {
        if std::mem::replace(&mut stepped, true) {
            return Poll::Ready(());
        }
        // Woken by itself, a task goes to the end of the queue.
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn who_steps_back_runs_behind_what_is_ready() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let tasks = (0..3).map(|number| {
            let order = Arc::clone(&order);
            tokio::spawn(async move {
                order.lock().expect("whole").push((number, "decides"));
                step_back().await;
                order.lock().expect("whole").push((number, "sends"));
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("ran");
        }
        let all = [(0, "decides"), (1, "decides"), (2, "decides"), (0, "sends"), (1, "sends"), (2, "sends")];
        assert_eq!(*order.lock().expect("whole"), all);
    }
}
