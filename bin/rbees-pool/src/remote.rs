//! One request on standard input, whose end later means that nobody waits any more.

use api_types::pool::RemoteRequest;
use api_types::{ErrorCode, ErrorDetail, PROTOCOL};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const MAX_REQUEST: usize = 1 << 20;

/// The caller's side of the connection.
pub struct Input(DuplexStream);

impl Input {
    /// A thread reads standard input: the runtime's own reader would keep the process alive.
    fn open() -> Self {
        let (mut inside, outside) = tokio::io::duplex(64 << 10);
        let runtime = tokio::runtime::Handle::current();
        std::thread::spawn(move || {
            use std::io::Read;
            let (mut stdin, mut buffer) = (std::io::stdin().lock(), [0u8; 16 << 10]);
            loop {
                let count = match stdin.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(count) => count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                let portion = buffer.get(..count).unwrap_or_default();
                if runtime.block_on(inside.write_all(portion)).is_err() {
                    return;
                }
            }
        });
        Self(outside)
    }

    /// Returns when the caller has closed its side.
    pub async fn ended(&mut self) {
        let mut buffer = [0u8; 1024];
        while self.0.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    }
}

/// Reads the request: one line of JSON.
pub async fn read_request() -> Result<(RemoteRequest, Input), ErrorDetail> {
    let mut input = Input::open();
    let mut line = Vec::new();
    while let Ok(byte) = input.0.read_u8().await {
        if byte == b'\n' && !line.trim_ascii().is_empty() {
            break;
        }
        line.push(byte);
        if line.len() > MAX_REQUEST {
            return Err(refuse(format!("the request is longer than {MAX_REQUEST} bytes")));
        }
    }
    Ok((parse(&line)?, input))
}

fn parse(line: &[u8]) -> Result<RemoteRequest, ErrorDetail> {
    let value: serde_json::Value =
        serde_json::from_slice(line).map_err(|error| refuse(format!("the request is no JSON: {error}")))?;
    // The number first: what else a later protocol says cannot be judged here.
    let protocol = value.get("protocol").and_then(serde_json::Value::as_u64);
    if protocol.is_some_and(|protocol| protocol != u64::from(PROTOCOL)) {
        let spoken = protocol.unwrap_or_default();
        let message = format!(
            "the caller speaks protocol {spoken}, rbees-pool {} speaks {PROTOCOL}",
            env!("CARGO_PKG_VERSION")
        );
        return Err(ErrorDetail::new(ErrorCode::VersionSkew, message)
            .with_hint("install the same version of rbees on both machines"));
    }
    serde_json::from_value(value).map_err(|error| refuse(format!("the request cannot be read: {error}")))
}

fn refuse(message: String) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::InvalidJson, message)
        .with_hint(r#"give one line such as {"protocol":1,"args":["status","--json"]}"#)
}

/// A request cannot ask for another request.
pub fn nested() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::InvalidField, "`remote` cannot be asked for by a remote request")
        .with_field("args")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_another_protocol_is_refused_by_its_number() {
        let error = parse(br#"{"protocol":99,"args":[],"later":1}"#).expect_err("skew");
        assert_eq!(error.code, ErrorCode::VersionSkew);
        assert!(error.message.contains("99"));
        for line in
            ["", "x", "[]", r#"{"args":[]}"#, r#"{"protocol":1}"#, r#"{"protocol":1,"args":[],"x":1}"#]
        {
            assert_eq!(parse(line.as_bytes()).expect_err(line).code, ErrorCode::InvalidJson, "{line}");
        }
        assert_eq!(parse(br#"{"protocol":1,"args":["status"]}"#).expect("read").args, ["status"]);
    }
}
