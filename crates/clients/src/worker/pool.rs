//! Connections to workers that wait for their next request.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::address::is_of_worker;
use super::connection::Connection;
use crate::http::CONNECT_TIMEOUT;

/// How long an idle connection is kept for the next request.
const IDLE: Duration = Duration::from_secs(30);
/// Idle connections that are kept per worker.
const KEPT: usize = 1_024;

/// The idle connections by address. A clone is the same pool.
#[derive(Clone, Default)]
pub struct Pool {
    idle: Arc<Mutex<HashMap<Box<str>, Vec<Connection>>>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// The connection to `address` that was used last, if one is good.
    pub fn take(&self, address: &str) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = idle.get_mut(address)?;
        loop {
            let mut connection = waiting.pop()?;
            if connection.idle_since.elapsed() > IDLE {
                // Those below it have waited even longer.
                waiting.clear();
                return None;
            }
            if connection.is_reusable() && !connection.is_spoiled() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection whose answer is over, or all but over.
    pub fn give(&self, address: &str, mut connection: Connection) {
        if !connection.is_nearly_over() {
            return;
        }
        connection.idle_since = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !idle.contains_key(address) {
            // Workers come and go; who was not called for long is not remembered.
            idle.retain(|_, waiting| waiting.last().is_some_and(|last| last.idle_since.elapsed() <= IDLE));
            idle.insert(address.into(), Vec::new());
        }
        let Some(waiting) = idle.get_mut(address) else { return };
        if waiting.len() >= KEPT {
            waiting.remove(0);
        }
        waiting.push(connection);
    }
}

/// A new connection to `host:port`, without Nagle's delay.
pub async fn connect(authority: &str) -> io::Result<Connection> {
    let made = async {
        let stream = match authority.parse::<SocketAddr>() {
            Ok(address) => TcpStream::connect(address).await?,
            Err(_) => connect_by_name(authority).await?,
        };
        stream.set_nodelay(true)?;
        Ok(Connection::new(stream))
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, made).await {
        Ok(made) => made,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A name may mean another machine than when it was registered: what it means now is looked up once, and
/// only what a worker can be is called.
async fn connect_by_name(authority: &str) -> io::Result<TcpStream> {
    let addresses = callable(tokio::net::lookup_host(authority).await?)?;
    TcpStream::connect(&*addresses).await
}

fn callable(found: impl Iterator<Item = SocketAddr>) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = found.filter(|address| is_of_worker(address.ip())).collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "its name means no address of a worker"));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b40_a_name_that_means_something_else_by_now_is_not_called_there() {
        let parsed = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().expect("an address")).collect()
        };
        let found = parsed(&["169.254.169.254:80", "10.0.0.7:80"]);
        assert_eq!(callable(found.into_iter()).expect("one is left"), parsed(&["10.0.0.7:80"]));
        let error = callable(parsed(&["169.254.169.254:80"]).into_iter()).expect_err("none is left");
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
