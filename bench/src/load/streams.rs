//! Many streams at once: paced ones as real decoding makes them, and idle ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::load::sse::stamps;
use crate::load::{Connection, Target};
use crate::machine;
use crate::stats::percentile;

/// Opening one more idle stream may take this long.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Paced streams have this long to open and come into step.
pub const OPENING: Duration = Duration::from_millis(400);
/// Idle streams are opened this many at a time.
const OPEN_AT_ONCE: usize = 16;

/// What paced streams saw.
#[derive(Debug, Clone, Copy)]
pub struct Paced {
    /// CPU that the subject used per relayed token, in microseconds.
    pub cpu_us_per_token: f64,
    /// Half of the tokens took less from the mock's write to the client's read, in microseconds.
    pub delay_p50_us: f64,
    /// 99 of 100 tokens took less, in microseconds.
    pub delay_p99_us: f64,
}

/// Opens `count` streams of `target` and measures the middle of their life.
///
/// # Errors
/// When a stream cannot be opened, or nothing arrives in the measured time.
pub async fn paced(target: &Target, pid: u32, count: u32, duration: Duration) -> anyhow::Result<Paced> {
    let measuring = Arc::new(AtomicBool::new(false));
    let tokens = Arc::new(AtomicU64::new(0));
    let mut readers = Vec::new();
    for index in 0..count {
        let (measuring, tokens, target) = (Arc::clone(&measuring), Arc::clone(&tokens), target.clone());
        readers.push(tokio::spawn(async move {
            // Spread over one gap, so that the streams do not tick together.
            tokio::time::sleep(Duration::from_micros(150) * index).await;
            let mut connection = Connection::open(target.address).await?;
            let body = connection.post(&target.path, target.body).await?.into_body();
            read_paced(body, &measuring, &tokens).await
        }));
    }
    tokio::time::sleep(OPENING).await;
    measuring.store(true, Ordering::Relaxed);
    let cpu = machine::cpu_ns(pid);
    tokio::time::sleep(duration).await;
    measuring.store(false, Ordering::Relaxed);
    let cpu = machine::cpu_between(&cpu, &machine::cpu_ns(pid));
    let mut delays = Vec::new();
    for reader in readers {
        delays.extend(reader.await??);
    }
    let count = tokens.load(Ordering::Relaxed);
    ensure!(count > 0, "no token arrived while paced streams were measured");
    Ok(Paced {
        cpu_us_per_token: cpu as f64 / 1e3 / count as f64,
        delay_p50_us: percentile(&mut delays, 0.5) as f64 / 1e3,
        delay_p99_us: percentile(&mut delays, 0.99) as f64 / 1e3,
    })
}

/// Reads a stream to its end; delays in nanoseconds of the tokens that came while measuring.
async fn read_paced(
    mut body: Incoming,
    measuring: &AtomicBool,
    tokens: &AtomicU64,
) -> anyhow::Result<Vec<u64>> {
    let (mut rest, mut delays) = (Vec::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let now = machine::monotonic_ns();
        let frame = frame?;
        let Some(chunk) = frame.data_ref() else { continue };
        stamps(&mut rest, chunk, |stamp| {
            if measuring.load(Ordering::Relaxed) {
                tokens.fetch_add(1, Ordering::Relaxed);
                delays.push(now.saturating_sub(stamp));
            }
        });
    }
    Ok(delays)
}

/// Streams that have had one token each and wait for the next.
pub struct IdleStreams {
    _open: Vec<(Connection, Incoming)>,
}

impl IdleStreams {
    /// Opens `count` streams and waits for the first token of each.
    ///
    /// # Errors
    /// When one is refused, ends, or is silent for 20 s.
    pub async fn open(target: &Target, count: usize) -> anyhow::Result<Self> {
        let opening = (0..count).map(|index| async move {
            let one = tokio::time::timeout(OPEN_TIMEOUT, open_idle(target));
            let one = one.await.with_context(|| format!("idle stream {index} is silent"))?;
            one.with_context(|| format!("opening idle stream {index}"))
        });
        let open = futures_util::stream::iter(opening).buffer_unordered(OPEN_AT_ONCE).try_collect().await?;
        Ok(Self { _open: open })
    }
}

async fn open_idle(target: &Target) -> anyhow::Result<(Connection, Incoming)> {
    let mut connection = Connection::open(target.address).await?;
    let mut body = connection.post(&target.path, target.body.clone()).await?.into_body();
    let (mut rest, mut seen) = (Vec::new(), false);
    while !seen {
        let frame = body.frame().await.context("it ended before its first token")??;
        if let Some(chunk) = frame.data_ref() {
            stamps(&mut rest, chunk, |_| seen = true);
        }
    }
    Ok((connection, body))
}
