//! One keep-alive connection.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Where a request goes and what it says.
#[derive(Debug, Clone)]
pub struct Target {
    /// The server.
    pub address: SocketAddr,
    /// The path and query.
    pub path: String,
    /// The JSON.
    pub body: Bytes,
}

/// A connection that carries one request at a time.
pub struct Connection {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Connects, without Nagle's delay.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(Self { address, sender })
    }

    /// Posts JSON; an answer that is not 2xx is an error with its body.
    ///
    /// # Errors
    /// When the connection breaks or the server refuses.
    pub async fn post(&mut self, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        self.send(Method::POST, path, body).await
    }

    /// Asks for a resource; as [`Connection::post`].
    ///
    /// # Errors
    /// As [`Connection::post`].
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Response<Incoming>> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        self.sender.ready().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let answer = self.sender.send_request(request).await?;
        if !answer.status().is_success() {
            let status = answer.status();
            let said = answer.into_body().collect().await?.to_bytes();
            bail!("{} answered {status}: {}", self.address, String::from_utf8_lossy(&said));
        }
        Ok(answer)
    }

    /// Posts JSON and reads the whole answer.
    ///
    /// # Errors
    /// As [`Connection::post`].
    pub async fn call(&mut self, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        Ok(self.post(path, body).await?.into_body().collect().await?.to_bytes())
    }
}
