//! Reads a stream of tokens and remembers when each came.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;

use crate::load::{Connection, Target};

/// One stream as its reader saw it.
#[derive(Debug)]
pub struct Seen {
    /// When the request was sent.
    pub sent: Instant,
    /// When each token came.
    pub tokens: Vec<Instant>,
    /// The last event, which has the figures.
    pub last: String,
}

impl Seen {
    /// From the request to the first token.
    pub fn first_token(&self) -> Option<Duration> {
        Some(self.tokens.first()?.saturating_duration_since(self.sent))
    }

    /// Times between one token and the next.
    pub fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.tokens.windows(2).filter_map(|pair| Some(pair.get(1)?.saturating_duration_since(*pair.first()?)))
    }

    /// The whole number behind `"name":` in the last event.
    pub fn figure(&self, name: &str) -> Option<f64> {
        let rest = self.last.split(&format!("\"{name}\":")).nth(1)?;
        rest.trim_start().split(|sign: char| !sign.is_ascii_digit()).next()?.parse().ok()
    }
}

/// Sends `target` and reads its events to the end; each with `mark` in it is a token. `token` is told
/// how many there are after each.
///
/// # Errors
/// When the connection breaks, the server refuses, or there is no token.
pub async fn read(target: &Target, mark: &str, mut token: impl FnMut(usize)) -> anyhow::Result<Seen> {
    let mut connection = Connection::open(target.address).await?;
    let sent = Instant::now();
    let mut body = connection.post(&target.path, target.body.clone()).await?.into_body();
    let mut seen = Seen { sent, tokens: Vec::new(), last: String::new() };
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let now = Instant::now();
        let frame = frame?;
        rest.extend_from_slice(frame.data_ref().map_or(&[][..], |chunk| chunk));
        while let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = rest.drain(..end + 2).collect();
            let event = String::from_utf8_lossy(&event);
            if event.contains(mark) {
                seen.tokens.push(now);
                token(seen.tokens.len());
            } else if event.contains("data: {") {
                seen.last = event.into_owned();
            }
        }
    }
    anyhow::ensure!(!seen.tokens.is_empty(), "the stream had no token; its last event: {}", seen.last);
    Ok(seen)
}
