//! One request for the rest of a file.

use std::time::Duration;

use api_types::{ErrorCode, ErrorDetail};
use reqwest::header::{self, HeaderMap};
use reqwest::{Response, StatusCode};

use super::part::{Part, Version};
use super::{Downloader, Wanted, check_space};

/// Why an attempt did not complete the file.
pub(super) enum Failure {
    /// Another attempt may help.
    Again {
        /// For people.
        reason: String,
        /// How long the server wants us to wait.
        after: Option<Duration>,
    },
    /// No attempt will.
    Final(ErrorDetail),
}

impl From<ErrorDetail> for Failure {
    fn from(error: ErrorDetail) -> Self {
        Self::Final(error)
    }
}

fn again(reason: impl Into<String>) -> Failure {
    Failure::Again { reason: reason.into(), after: None }
}

impl Downloader {
    /// Asks for what the part lacks and appends it.
    pub(super) async fn attempt(&self, wanted: &Wanted, part: &mut Part) -> Result<(), Failure> {
        let total = wanted.size.or(part.version().total);
        if part.len() > 0 && total == Some(part.len()) {
            return Ok(());
        }
        let response = self.ask(wanted, part).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => check_range(&response, part)?,
            StatusCode::OK => begin(&response, wanted, part)?,
            StatusCode::RANGE_NOT_SATISFIABLE => {
                part.reset()?;
                return Err(again("the server has fewer bytes than were kept; beginning anew"));
            }
            status => return Err(refusal(status, response.headers(), wanted)),
        }
        self.receive(response, wanted, part).await
    }

    async fn ask(&self, wanted: &Wanted, part: &Part) -> Result<Response, Failure> {
        let mut request = self.client().get(&wanted.url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = &wanted.bearer {
            request = request.bearer_auth(token);
        }
        let strong = part.version().etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        // Without a strong tag nothing but the hash can tell a changed file.
        if part.len() > 0 && (strong.is_some() || wanted.sha256.is_some()) {
            request = request.header(header::RANGE, format!("bytes={}-", part.len()));
            if let Some(etag) = strong {
                request = request.header(header::IF_RANGE, etag);
            }
        }
        let answer = tokio::time::timeout(self.limits().stall, request.send()).await;
        let answer = answer.map_err(|_| again("the server does not answer"))?;
        answer.map_err(|error| again(plain(&error)))
    }

    async fn receive(&self, mut response: Response, wanted: &Wanted, part: &mut Part) -> Result<(), Failure> {
        let total = wanted.size.or(part.version().total);
        loop {
            let chunk = tokio::time::timeout(self.limits().stall, response.chunk()).await;
            let chunk = chunk.map_err(|_| again("no byte came for too long"))?;
            match chunk.map_err(|error| again(plain(&error)))? {
                Some(bytes) if total.is_some_and(|total| part.len() + bytes.len() as u64 > total) => {
                    part.reset()?;
                    return Err(again("more bytes came than the file has"));
                }
                Some(bytes) => part.append(&bytes)?,
                None if total.is_some_and(|total| part.len() < total) => {
                    return Err(again(format!("the connection ended after {} bytes", part.len())));
                }
                None => return Ok(()),
            }
        }
    }
}

/// The server begins at the start: nothing was asked for, or its file is another one now.
fn begin(response: &Response, wanted: &Wanted, part: &mut Part) -> Result<(), Failure> {
    let total = response.content_length();
    if let (Some(expected), Some(total)) = (wanted.size, total)
        && expected != total
    {
        let message =
            format!("{} has {total} bytes at the source, but {expected} were asked for", wanted.name);
        return Err(ErrorDetail::new(ErrorCode::ChecksumMismatch, message).into());
    }
    check_space(&wanted.to, total, 0)?;
    let etag = response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
    part.begin(Version { etag, total: total.or(wanted.size) })?;
    Ok(())
}

/// The server goes on where the part ends, with a file of the same length.
fn check_range(response: &Response, part: &mut Part) -> Result<(), Failure> {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let (start, total) =
        range.and_then(parse_range).ok_or_else(|| again("the server's range cannot be read"))?;
    let other_length = matches!((total, part.version().total), (Some(a), Some(b)) if a != b);
    if start == part.len() && !other_length {
        return Ok(());
    }
    part.reset()?;
    Err(again("the server sent another range than was asked for; beginning anew"))
}

/// Start and total of `bytes START-END/TOTAL`.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.parse().ok()?, total))
}

fn refusal(status: StatusCode, headers: &HeaderMap, wanted: &Wanted) -> Failure {
    let name = &wanted.name;
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let message =
                format!("{name}: the server refuses it without a token that may read it ({status})");
            Failure::Final(ErrorDetail::new(ErrorCode::GatedModel, message))
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => Failure::Final(ErrorDetail::new(
            ErrorCode::ModelNotFound,
            format!("{name}: the server has no such file"),
        )),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Failure::Again {
            reason: format!("the server asks to wait ({status})"),
            after: retry_after(headers),
        },
        status if status.is_server_error() => {
            Failure::Again { reason: format!("the server failed ({status})"), after: retry_after(headers) }
        }
        status => {
            let message = format!("{name}: the server answered {status}");
            Failure::Final(ErrorDetail::new(ErrorCode::DownloadFailed, message))
        }
    }
}

/// How long a server wants us to wait, where it says so in seconds.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// An HTTP error with its causes, without the address: it may bear a signature.
pub(crate) fn plain(error: &reqwest::Error) -> String {
    let kind = if error.is_connect() {
        "the server cannot be reached"
    } else if error.is_timeout() {
        "the server does not answer"
    } else {
        "the connection broke"
    };
    let mut cause = std::error::Error::source(error);
    let mut last = None;
    while let Some(inner) = cause {
        last = Some(inner.to_string());
        cause = inner.source();
    }
    last.map_or_else(|| kind.to_owned(), |last| format!("{kind}: {last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_strictly() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, None)));
        for text in ["", "bytes */10", "5-9/10", "bytes 5/10", "bytes a-b/c"] {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }
}
