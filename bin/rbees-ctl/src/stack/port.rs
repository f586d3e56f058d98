//! Who listens on a port of this machine.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use api_types::{ErrorCode, ErrorDetail};

/// Refuses an address on which somebody listens already, and says who.
pub fn check_free(bind: SocketAddr) -> Result<(), ErrorDetail> {
    if bind.port() == 0 || TcpStream::connect_timeout(&reachable(bind), Duration::from_millis(500)).is_err() {
        return Ok(());
    }
    let owner = owner(bind.port()).unwrap_or_else(|| "another program, perhaps of another user".into());
    let next = SocketAddr::new(bind.ip(), bind.port().checked_add(1).unwrap_or(8081));
    Err(ErrorDetail::new(ErrorCode::PortTaken, format!("port {} is taken by {owner}", bind.port()))
        .with_hint(format!("stop it, or take another port: rbees up --bind {next}")))
}

/// Where a listener on `bind` can be called.
fn reachable(bind: SocketAddr) -> SocketAddr {
    let mut address = bind;
    if bind.ip().is_unspecified() {
        address.set_ip(if bind.is_ipv6() {
            std::net::Ipv6Addr::LOCALHOST.into()
        } else {
            std::net::Ipv4Addr::LOCALHOST.into()
        });
    }
    address
}

/// Name and number of the process that listens on `port`, where the system tells.
#[cfg(target_os = "linux")]
pub fn owner(port: u16) -> Option<String> {
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| listening(&table, port))
        .collect();
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process
            .file_name()
            .into_string()
            .ok()
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))?;
        let files = std::fs::read_dir(process.path().join("fd")).ok()?;
        let ours = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        ours.into_iter()
            .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
            .then(|| {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                format!("{} (process {pid})", cli_kit::plain_text(name.trim()))
            })
    })
}

/// Name and number of the process that listens on `port`, where the system tells.
#[cfg(not(target_os = "linux"))]
pub fn owner(_port: u16) -> Option<String> {
    None
}

/// The sockets of a kernel table that listen on `port`, as links below `/proc/*/fd` name them.
#[cfg(target_os = "linux")]
fn listening(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let ending = format!(":{port:04X}");
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        (local.ends_with(&ending) && *state == LISTEN).then(|| format!("socket:[{inode}]"))
    };
    table.lines().skip(1).filter_map(socket).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_names_its_owner() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let error = check_free(address).expect_err("taken");
        assert_eq!(error.code, ErrorCode::PortTaken);
        assert!(error.message.contains(&format!("process {}", std::process::id())), "{}", error.message);
        drop(listener);
        assert_eq!(check_free(address), Ok(()));
    }
}
