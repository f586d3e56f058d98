//! When a command is to stop before its end: a signal, or a caller that is gone.

use std::time::Duration;

use api_types::{ErrorCode, ErrorDetail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::remote::Input;

/// A short command may end by itself after its caller closed the request.
const LAST_MOMENT: Duration = Duration::from_millis(1200);

/// The ways a command is interrupted.
pub struct Interrupt {
    signals: Vec<Signal>,
    caller: Option<Input>,
}

impl Interrupt {
    /// Ctrl-C, a polite kill, a closed terminal.
    pub fn signals() -> Self {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        Self { signals: kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect(), caller: None }
    }

    /// The same, and the end of the caller's side of the connection.
    pub fn signals_or_lost_caller(stdin: Input) -> Self {
        Self { caller: Some(stdin), ..Self::signals() }
    }

    /// Returns when the command is to stop.
    pub async fn wait(&mut self) {
        let Self { signals, caller } = self;
        let signalled = std::future::poll_fn(|context| {
            let any = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if any { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        });
        let lost = async {
            match caller {
                Some(stdin) => {
                    stdin.ended().await;
                    tokio::time::sleep(LAST_MOMENT).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = signalled => {}
            () = lost => {}
        }
    }
}

/// The outcome of an interrupted command.
pub fn error() -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::Cancelled,
        "interrupted; what was fetched is kept, what was started is stopped",
    )
    .with_hint("run the same command again to go on")
}
