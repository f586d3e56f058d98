//! What `rbees-pool --json` said: its answer, its progress, or its error.

use api_types::pool::Progress;
use api_types::{ErrorBody, ErrorCode, ErrorDetail};
use serde::de::DeserializeOwned;

use super::lines::LineBuffer;

/// Largest answer that is kept, in bytes.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// Standard output of a command that prints one JSON value.
#[derive(Debug, Default)]
pub(super) struct Answer {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Answer {
    pub(super) fn take(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() > MAX_ANSWER_BYTES {
            self.too_long = true;
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }

    pub(super) fn read<T: DeserializeOwned>(self) -> Result<T, ErrorDetail> {
        if self.too_long {
            return Err(skew(format!("the pool's answer is longer than {MAX_ANSWER_BYTES} bytes")));
        }
        serde_json::from_slice(&self.bytes)
            .map_err(|error| skew(format!("the pool's answer cannot be read: {error}")))
    }
}

fn skew(message: String) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::VersionSkew, message).with_hint(
        "install the same version of rbees on both machines; `rbees pool status --host HOST` shows it",
    )
}

/// Standard error of a command under `--json`: progress, and at the end perhaps an error body.
#[derive(Debug, Default)]
pub(super) struct Errors {
    lines: LineBuffer,
    last: Option<String>,
    error: Option<ErrorDetail>,
}

impl Errors {
    pub(super) fn take(&mut self, bytes: &[u8], on_progress: &mut (dyn FnMut(Progress) + Send)) {
        let Self { lines, last, error } = self;
        lines.push(bytes, |line| match serde_json::from_slice::<Progress>(line) {
            Ok(progress) => on_progress(progress),
            Err(_) => keep(line, last, error),
        });
    }

    /// The failure of a command that ended with `code`.
    pub(super) fn failure(mut self, code: u8) -> ErrorDetail {
        let rest = self.lines.rest();
        keep(&rest, &mut self.last, &mut self.error);
        self.error.unwrap_or_else(|| {
            let last = self.last.unwrap_or_else(|| "it said nothing".into());
            ErrorDetail::new(ErrorCode::Internal, format!("rbees-pool ended with exit code {code}: {last}"))
        })
    }
}

fn keep(line: &[u8], last: &mut Option<String>, error: &mut Option<ErrorDetail>) {
    if let Ok(body) = serde_json::from_slice::<ErrorBody>(line) {
        *error = Some(body.error);
    } else if !line.trim_ascii().is_empty() {
        *last = Some(String::from_utf8_lossy(line).chars().take(500).collect());
    }
}
