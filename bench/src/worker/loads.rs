//! The loads, and what their readers saw.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::Notify;

use super::client::{Seen, read};
use super::servers::Server;
use crate::stats::median;

/// Words a stream's prompt is made of; no two prompts share their start.
const SUBJECTS: [&str; 8] =
    ["rivers", "clocks", "bridges", "winter", "libraries", "markets", "gardens", "lighthouses"];

/// What readers of several streams saw together.
pub struct Burst {
    /// All tokens by the time from the first request to the last token.
    pub tokens_per_second: f64,
    /// Median over the streams.
    pub first_token_ms: f64,
    /// 99 of 100 gaps were shorter.
    pub gap_p99_ms: f64,
}

/// `streams` completions at once, of about 45 prompt tokens and `tokens` new ones.
///
/// # Errors
/// When any of them fails.
pub async fn burst(server: &Server, streams: usize, tokens: usize, round: usize) -> anyhow::Result<Burst> {
    let begin = Instant::now();
    let readers = (0..streams).map(|stream| {
        let target = server.completion(&short_prompt(stream, round), tokens);
        async move { read(&target, server.mark(), |_| {}).await }
    });
    let seen: Vec<Seen> = futures_util::future::try_join_all(readers).await?;
    let end = seen.iter().filter_map(|seen| seen.tokens.last()).max().copied().context("no tokens")?;
    let count: usize = seen.iter().map(|seen| seen.tokens.len()).sum();
    let firsts: Vec<f64> = seen.iter().filter_map(Seen::first_token).map(milliseconds).collect();
    let mut gaps: Vec<f64> = seen.iter().flat_map(Seen::gaps).map(milliseconds).collect();
    gaps.sort_by(f64::total_cmp);
    Ok(Burst {
        tokens_per_second: count as f64 / (end - begin).as_secs_f64(),
        first_token_ms: median(&firsts).unwrap_or(0.0),
        gap_p99_ms: gaps.get(gaps.len() * 99 / 100).copied().unwrap_or(0.0),
    })
}

/// What happened when a long prompt came.
pub struct Intrusion {
    /// The longest gap between two tokens of a stream that was decoding.
    pub worst_gap_ms: f64,
    /// Of the long prompt.
    pub first_token_ms: f64,
}

/// Four streams decode; when the last of them has 16 tokens, a prompt of about 4,096 tokens comes.
///
/// # Errors
/// When any of them fails.
pub async fn intrusion(server: &Server, round: usize) -> anyhow::Result<Intrusion> {
    const STREAMS: usize = 4;
    let (going, all) = (std::cell::Cell::new(0), Notify::new());
    let readers = (0..STREAMS).map(|stream| {
        let target = server.completion(&short_prompt(stream, round), 192);
        let (going, all) = (&going, &all);
        async move {
            read(&target, server.mark(), |count| {
                if count == 16 {
                    going.set(going.get() + 1);
                    if going.get() == STREAMS {
                        all.notify_one();
                    }
                }
            })
            .await
        }
    });
    let long = async {
        all.notified().await;
        read(&server.completion(&long_prompt(4_000, round), 1), server.mark(), |_| {}).await
    };
    let (seen, long) = tokio::try_join!(futures_util::future::try_join_all(readers), long)?;
    let worst = seen.iter().flat_map(Seen::gaps).max().unwrap_or_default();
    let first = long.first_token().unwrap_or_default();
    Ok(Intrusion { worst_gap_ms: milliseconds(worst), first_token_ms: milliseconds(first) })
}

/// What a prompt cost whose start had been processed before.
pub struct Warm {
    /// First token of the first turn.
    pub cold_ms: f64,
    /// First token of the second.
    pub warm_ms: f64,
    /// Prompt tokens that were processed for the second turn.
    pub recomputed: f64,
}

/// A prompt of about 600 tokens, then the same with one sentence more.
///
/// # Errors
/// When one fails or the server does not say what it reused.
pub async fn warm(server: &Server, round: usize) -> anyhow::Result<Warm> {
    let prompt = long_prompt(600, round);
    let cold = read(&server.completion(&prompt, 4), server.mark(), |_| {}).await?;
    let longer = format!("{prompt} And one more sentence, which is new.");
    let warm = read(&server.completion(&longer, 4), server.mark(), |_| {}).await?;
    Ok(Warm {
        cold_ms: milliseconds(cold.first_token().unwrap_or_default()),
        warm_ms: milliseconds(warm.first_token().unwrap_or_default()),
        recomputed: server.recomputed(&warm).context("the server does not say what it reused")?,
    })
}

fn short_prompt(stream: usize, round: usize) -> String {
    let subject = SUBJECTS.get(stream % SUBJECTS.len()).copied().unwrap_or("rivers");
    format!(
        "Number {round} of {stream}: this is a long and quiet story about {subject}. It has many chapters, and \
         each of them begins where the one before it ended, with the same people. Chapter one. It was early, and"
    )
}

/// Words that a tokenizer takes about one by one.
fn long_prompt(tokens: usize, round: usize) -> String {
    let words = ["the", "old", "man", "went", "down", "to", "the", "sea", "and", "saw", "a", "ship"];
    let text: Vec<&str> = words.iter().copied().cycle().skip(round).take(tokens).collect();
    format!("Part {round} begins: {}", text.join(" "))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
