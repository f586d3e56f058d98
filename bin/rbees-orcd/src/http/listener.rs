//! The loop that accepts connections: limits on headers and connections, no Nagle delay, an
//! orderly end.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;
use crate::http::Entrance;
use crate::http::patience::{GRACE as CUT_GRACE, Patience, PatientSocket};
use crate::http::streams::{Asked, Handover, Writing};
use crate::metrics::Metrics;

/// Pause after a failed accept, for example when the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Between two questions of the kernel whether a client that is silent is still there.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);

/// Serves until `closing`, then lets open connections finish for up to `grace`.
pub async fn serve(
    listener: TcpListener,
    entrance: Entrance,
    limits: Limits,
    metrics: Metrics,
    closing: CancellationToken,
    grace: Duration,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, place)) = accepted else { continue };
        let serving = Serving {
            entrance: entrance.clone(),
            limits,
            metrics: metrics.clone(),
            closing: closing.clone(),
            _place: place,
        };
        connections.spawn(serving.connection(stream));
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!(code = "CONNECTIONS_CUT", open = connections.len(), "connections did not end in time");
    }
}

/// The next connection, once there is a place for it. Others wait in the system's own queue.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!(code = "ACCEPT_FAILED", %error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Tokens are small and each is worth a packet. A client whose cable was cut would otherwise hold its
/// place until the kernel gives up, a quarter of an hour later: streams are written to at least every
/// 10 s, so what is not taken shows. One that is there and takes nothing is cut by [`PatientSocket`], with
/// a word if possible, so the kernel waits for a little longer.
fn prepare(stream: &TcpStream, silent_time: Duration) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_keepalive(&keepalive(silent_time));
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(silent_time + CUT_GRACE));
}

/// Questions that begin before a stream's next comment is due, and are many enough for the time that a
/// client may be silent. On Linux the user timeout ends them; elsewhere their number does.
fn keepalive(silent_time: Duration) -> TcpKeepalive {
    let every = KEEPALIVE_EVERY.min(silent_time);
    let asked = TcpKeepalive::new().with_time(every).with_interval(every);
    let questions = silent_time.as_secs().div_ceil(every.as_secs().max(1)).max(1);
    asked.with_retries(u32::try_from(questions).unwrap_or(u32::MAX))
}

/// What one connection is served with.
struct Serving {
    entrance: Entrance,
    limits: Limits,
    metrics: Metrics,
    closing: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Serving {
    async fn connection(self, stream: TcpStream) {
        prepare(&stream, self.limits.silent_time);
        self.metrics.connections.inc();
        let patience = Patience::new(self.limits.silent_time, self.metrics.clone());
        let mut next = Some(PatientSocket::new(stream, patience.clone()));
        while let Some(socket) = next {
            // On the heap: what hyper needs is not held as long as a stream is open.
            let served = Box::pin(self.until_stream(socket, &patience)).await;
            next = match served {
                Some(stream) => stream.run().await.unwrap_or_else(|error| ended(&error)),
                None => None,
            };
        }
        self.metrics.connections.dec();
    }

    /// Serves requests until one is answered with a stream, which is given, or the connection ends.
    async fn until_stream(&self, socket: PatientSocket, patience: &Patience) -> Option<Writing> {
        let handover = Handover::default();
        let answer = |request: Request<Incoming>| {
            let (entrance, patience, handover) = (self.entrance.clone(), patience.clone(), handover.clone());
            // On the heap, so that a connection which only waits does not hold its room.
            Box::pin(async move {
                let is_openai = request.uri().path().starts_with("/v1/");
                let asked = Asked::of(&request);
                let answer = patience.with(entrance.answer(request).await, is_openai);
                match handover.offer(asked, answer) {
                    Some(answer) => Ok::<_, Infallible>(answer),
                    // The connection is taken apart now.
                    None => std::future::pending().await,
                }
            })
        };
        // hyper takes at most 100 header lines by itself; said aloud, each request would allocate for them.
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_time)
            .serve_connection(TokioIo::new(socket), service_fn(answer));
        let closing = self.closing.cancelled();
        tokio::pin!(closing);
        let mut is_closing = false;
        let streamed = poll_fn(|context| {
            if let Poll::Ready(ended_well) = Pin::new(&mut connection).poll(context) {
                ended_well.unwrap_or_else(|error| ended(&error));
                return Poll::Ready(None);
            }
            if let Some(streamed) = handover.take() {
                return Poll::Ready(Some(streamed));
            }
            if !is_closing && closing.as_mut().poll(context).is_ready() {
                is_closing = true;
                Pin::new(&mut connection).graceful_shutdown();
                context.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await?;
        let parts = connection.into_parts();
        Some(Writing::new(parts.io.into_inner(), streamed, &parts.read_buf))
    }
}

/// What is left of a connection that ended early.
fn ended<T: Default>(error: &dyn std::fmt::Display) -> T {
    tracing::trace!(code = "CONNECTION_ENDED", %error, "a connection ended early");
    T::default()
}
