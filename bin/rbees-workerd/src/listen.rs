//! Finding a port and binding it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use api_types::{ErrorCode, ErrorDetail};
use tokio::net::TcpListener;

/// The ports that may be taken, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = || format!("`{text}` is no port; allowed are N, or A-B with A at most B");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let ports =
            Self { first: first.parse().map_err(|_| allowed())?, last: last.parse().map_err(|_| allowed())? };
        if ports.first > ports.last || (ports.first == 0 && ports.last != 0) {
            return Err(allowed());
        }
        Ok(ports)
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Binds the lowest free port.
///
/// # Errors
/// `PORT_TAKEN` when none is free; `INVALID_CONFIG` when the address is not one of this machine.
pub async fn bind(address: IpAddr, ports: Ports) -> Result<TcpListener, ErrorDetail> {
    for port in ports.first..=ports.last {
        match TcpListener::bind(SocketAddr::new(address, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => {
                let message = format!("cannot listen on {}: {error}", SocketAddr::new(address, port));
                return Err(ErrorDetail::new(ErrorCode::InvalidConfig, message).with_field("bind"));
            }
        }
    }
    let message = format!("another process listens on port {ports} of {address}");
    Err(ErrorDetail::new(ErrorCode::PortTaken, message)
        .with_field("port")
        .with_hint("give --port another number or a range such as 8001-8999, or --port 0 for any free one"))
}

/// The address to tell others: the one bound, or for "any address" the one that leads to `peer`.
pub fn advertised(bound: SocketAddr, peer: Option<&str>) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    let ip = peer.and_then(address_toward).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    SocketAddr::new(ip, bound.port())
}

/// The local address from which packets to the host of `url` would go. Sends nothing.
fn address_toward(url: &str) -> Option<IpAddr> {
    let host = url.split("://").nth(1)?.split(['/', '?']).next()?;
    let target = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_number_or_a_range() {
        assert_eq!("8001-8999".parse(), Ok(Ports { first: 8001, last: 8999 }));
        assert_eq!("0".parse(), Ok(Ports { first: 0, last: 0 }));
        for wrong in ["", "x", "9-8", "1-", "0-5", "70000"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn the_lowest_free_port_is_taken_and_a_taken_one_refused() {
        let any: IpAddr = Ipv4Addr::LOCALHOST.into();
        let taken = bind(any, "0".parse().expect("a port")).await.expect("free");
        let port = taken.local_addr().expect("bound").port();
        let error = bind(any, port.to_string().parse().expect("a port")).await.expect_err("taken");
        assert_eq!(error.code, ErrorCode::PortTaken);
        assert!(error.hint.is_some());
    }

    #[test]
    fn any_address_is_not_told_to_others() {
        let any = "0.0.0.0:8001".parse().expect("an address");
        assert_eq!(advertised(any, Some("http://127.0.0.1:8080/x")).to_string(), "127.0.0.1:8001");
        let own = "127.0.0.1:8001".parse().expect("an address");
        assert_eq!(advertised(own, None), own);
    }
}
