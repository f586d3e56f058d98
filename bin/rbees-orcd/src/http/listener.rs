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
use crate::http::patience::{GRACE as CUT_GRACE, Patience, PatientSocket};
use crate::http::streams::{Asked, Handover, Writing};
use crate::http::workers::{Caller, READY_PATH};
use crate::http::{Entrance, front_door};
use crate::metrics::Metrics;

/// Pause after a failed accept, for example when the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Clients that are told at one time that there are too many; others wait in the system's own queue.
const REFUSED_AT_ONCE: usize = 16;
/// How long a client that is turned away may take to ask and to hear so.
const REFUSAL_TIME: Duration = Duration::from_secs(2);

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
    let places = Places::new(limits.connections);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, caller, place)) = accepted else { continue };
        let place = match place {
            Place::Inside(place) => place,
            Place::AtTheDoor(place) => {
                metrics.connections_refused.inc();
                connections.spawn(turn_away(stream, limits.connections, place));
                continue;
            }
        };
        let serving = Serving {
            entrance: entrance.clone(),
            caller,
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

/// Where connections are served, and where they are told that there is no place.
struct Places {
    inside: Arc<Semaphore>,
    at_the_door: Arc<Semaphore>,
}

/// Held by one connection.
enum Place {
    Inside(OwnedSemaphorePermit),
    AtTheDoor(OwnedSemaphorePermit),
}

impl Places {
    fn new(connections: usize) -> Self {
        let inside = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
        Self { inside, at_the_door: Arc::new(Semaphore::new(REFUSED_AT_ONCE)) }
    }

    /// A place, inside where one is free.
    async fn any(&self) -> Option<Place> {
        let inside = Arc::clone(&self.inside).acquire_owned();
        let at_the_door = Arc::clone(&self.at_the_door).acquire_owned();
        tokio::select! {
            biased;
            place = inside => place.ok().map(Place::Inside),
            place = at_the_door => place.ok().map(Place::AtTheDoor),
        }
    }

    /// The better place, if one became free meanwhile.
    fn look_again(&self, place: Place) -> Place {
        let inside = Arc::clone(&self.inside);
        match place {
            Place::AtTheDoor(_) => inside.try_acquire_owned().map_or(place, Place::Inside),
            Place::Inside(_) => place,
        }
    }
}

/// The next connection, and its place.
async fn accept(listener: &TcpListener, places: &Places) -> Option<(TcpStream, Caller, Place)> {
    let place = places.any().await?;
    match listener.accept().await {
        Ok((stream, from)) => {
            let caller = Caller::of(&stream, from);
            Some((stream, caller, places.look_again(place)))
        }
        Err(error) => {
            tracing::warn!(code = "ACCEPT_FAILED", %error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Tells a client, in the words of what it asks for, that there are too many.
async fn turn_away(stream: TcpStream, connections: usize, _place: OwnedSemaphorePermit) {
    let answer = |request: Request<Incoming>| async move {
        let refused = front_door::turned_away(&request, connections);
        Ok::<_, Infallible>(refused)
    };
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(REFUSAL_TIME)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    // Who does not even ask in time hears nothing.
    let _ = tokio::time::timeout(REFUSAL_TIME, connection).await;
}

/// Tokens are small and each is worth a packet. A client whose cable was cut would otherwise hold its
/// place until the kernel gives up, a quarter of an hour later: streams are written to at least every
/// 10 s, so what is not taken shows, and the kernel's patience begins with it. One that is there and takes nothing is cut by [`PatientSocket`], with
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
    caller: Caller,
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
        let answer = |mut request: Request<Incoming>| {
            // Extensions cost room, which only this request is worth.
            if request.uri().path() == READY_PATH {
                request.extensions_mut().insert(self.caller);
            }
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::subscribers::KEEP_ALIVE_EVERY;

    #[tokio::test]
    async fn by_default_a_cut_cable_is_noticed_within_half_a_minute() {
        const BOUND: Duration = Duration::from_secs(30);
        let home = tempfile::tempdir().expect("a folder");
        let limits = Config::for_tests(home.path()).limits;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        let (stream, _) = listener.accept().await.expect("accepted");
        prepare(&stream, limits.silent_time);
        let socket = SockRef::from(&stream);
        let patience = socket.tcp_user_timeout().expect("read").expect("set");
        assert!(KEEP_ALIVE_EVERY + patience <= BOUND, "of a stream that is only commented on: {patience:?}");
        let every = socket.tcp_keepalive_interval().expect("read");
        let first = socket.tcp_keepalive_time().expect("read");
        assert!(socket.keepalive().expect("read") && first <= KEEP_ALIVE_EVERY, "{first:?}");
        assert!(patience + every <= BOUND, "of an answer that is waited for: {every:?}");
        drop(client);
    }
}
