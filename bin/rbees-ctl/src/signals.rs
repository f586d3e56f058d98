//! The wish to stop: Ctrl-C, a service manager, a closed terminal.

use tokio::signal::unix::{SignalKind, signal};

/// Returns once this process is asked to end.
pub async fn asked_to_stop() {
    let (mut terminate, mut hangup) = (signal(SignalKind::terminate()), signal(SignalKind::hangup()));
    let terminated = async {
        match &mut terminate {
            Ok(signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    let hung_up = async {
        match &mut hangup {
            Ok(signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
        () = hung_up => {}
    }
}
