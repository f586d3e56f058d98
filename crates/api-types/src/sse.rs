//! Server-sent events: bytes in, frames out; events in, bytes out. No socket.

use std::borrow::Cow;
use std::io::Write;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;
use serde_json::value::RawValue;

use crate::event::{RunEnd, StopReason, TaskEvent};

/// Longest frame a decoder accepts unless told otherwise, in bytes.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;

/// A comment that keeps idle connections alive.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// Writes one event as a frame: `id:` where it is numbered, `event:`, `data:`, a blank line.
pub fn encode_event(id: Option<u64>, event: &TaskEvent) -> Bytes {
    let mut out = Vec::with_capacity(96);
    encode_event_into(&mut out, id, event);
    out.into()
}

/// As [`encode_event`], appending to `out`.
pub fn encode_event_into(out: &mut Vec<u8>, id: Option<u64>, event: &TaskEvent) {
    encode_json_into(out, id, event.name(), event);
}

/// Writes any JSON value as a frame named `name`.
pub fn encode_json_into(out: &mut Vec<u8>, id: Option<u64>, name: &str, data: &impl serde::Serialize) {
    // Writing to a Vec cannot fail, and the wire types hold nothing that JSON cannot express.
    if let Some(id) = id {
        let _ = writeln!(out, "id: {id}");
    }
    let _ = write!(out, "event: {name}\ndata: ");
    let _ = serde_json::to_writer(&mut *out, data);
    out.extend_from_slice(b"\n\n");
}

/// One event as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The number on its `id:` line, where there is one and it is a number.
    pub id: Option<u64>,
    /// Its `event:` line; empty when absent. Those of our own streams are not copied.
    pub event: Cow<'static, str>,
    /// Its `data:` lines, joined by line feeds.
    pub data: Bytes,
    /// The frame as it came, blank line included, to be passed on unchanged.
    pub raw: Bytes,
}

impl Frame {
    /// The event in the frame's data.
    ///
    /// # Errors
    /// When the data is not the JSON of a [`TaskEvent`].
    pub fn task_event(&self) -> Result<TaskEvent, serde_json::Error> {
        // Serde reads a tagged enum twice; what every job has is read once.
        if self.event == "token"
            && let Ok(TokenData { kind: "token", t, i, k }) = serde_json::from_slice(&self.data)
        {
            return Ok(TaskEvent::Token { t: t.into_owned(), i, k });
        }
        if self.event == "end"
            && let Ok(EndData {
                kind: "end",
                tokens_in,
                tokens_out,
                queue_time_ms,
                prefill_time_ms,
                decode_time_ms,
                stop_reason,
                seed,
                tokens_cached,
            }) = serde_json::from_slice(&self.data)
        {
            return Ok(TaskEvent::End(RunEnd {
                tokens_in,
                tokens_out,
                queue_time_ms,
                prefill_time_ms,
                decode_time_ms,
                stop_reason,
                seed,
                tokens_cached,
            }));
        }
        serde_json::from_slice(&self.data)
    }

    /// The text of a `token` event as the JSON string that it is, where it is written so; `None` for
    /// every other event.
    pub fn token_json(&self) -> Option<&str> {
        if self.event != "token" {
            return None;
        }
        let data: RawToken<'_> = serde_json::from_slice(&self.data).ok()?;
        let text = data.t.get();
        (data.kind == "token" && text.starts_with('"')).then_some(text)
    }
}

/// The data of a `token` event.
#[derive(serde::Deserialize)]
struct TokenData<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    t: Cow<'a, str>,
    i: u32,
    #[serde(default)]
    k: Option<u32>,
}

/// The data of an `end` event.
#[derive(serde::Deserialize)]
struct EndData<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    tokens_in: u32,
    tokens_out: u32,
    queue_time_ms: u64,
    prefill_time_ms: u64,
    decode_time_ms: u64,
    stop_reason: StopReason,
    #[serde(default)]
    seed: Option<u64>,
    #[serde(default)]
    tokens_cached: Option<u32>,
}

/// The data of a `token` event, with the text as it is written.
#[derive(serde::Deserialize)]
struct RawToken<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    t: &'a RawValue,
}

/// A stream that is not server-sent events, or not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame grew past the limit without ending.
    #[error("an event is longer than {limit} bytes")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
}

/// Cuts a byte stream into frames, whatever its chunk borders.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    /// Bytes at the front that are known to hold no end of a frame.
    searched: usize,
    limit: usize,
    at_start: bool,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::with_limit(MAX_FRAME_BYTES)
    }
}

impl FrameDecoder {
    /// A decoder that refuses frames longer than `limit` bytes.
    pub fn with_limit(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), searched: 0, limit, at_start: true }
    }

    /// Takes what arrived.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Whether bytes of an unfinished frame are waiting.
    pub fn has_partial(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next whole frame; comments and empty frames are skipped.
    ///
    /// # Errors
    /// When an unfinished frame is longer than the limit.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        self.skip_byte_order_mark();
        while let Some(length) = self.frame_length() {
            let raw = self.buffer.split_to(length).freeze();
            self.searched = 0;
            if let Some(frame) = parse_frame(&raw) {
                return Ok(Some(frame));
            }
        }
        if self.buffer.len() > self.limit {
            return Err(FrameError::TooLong { limit: self.limit });
        }
        Ok(None)
    }

    fn skip_byte_order_mark(&mut self) {
        if self.at_start && self.buffer.len() >= 3 {
            if self.buffer.starts_with(b"\xef\xbb\xbf") {
                self.buffer.advance(3);
            }
            self.at_start = false;
        } else if self.at_start && !b"\xef\xbb\xbf".starts_with(&self.buffer) {
            self.at_start = false;
        }
    }

    /// Length of the first frame up to and including its blank line.
    fn frame_length(&mut self) -> Option<usize> {
        if self.at_start {
            return None;
        }
        let bytes = &self.buffer[..];
        let mut at = self.searched;
        while let Some(found) = memchr(b'\n', &bytes[at..]) {
            let line_end = at + found;
            match bytes.get(line_end + 1..) {
                Some([b'\n', ..]) => return Some(line_end + 2),
                Some([b'\r', b'\n', ..]) => return Some(line_end + 3),
                Some([] | [b'\r']) | None => {
                    self.searched = line_end;
                    return None;
                }
                Some(_) => at = line_end + 1,
            }
        }
        self.searched = at;
        // A frame may also consist of nothing but its blank line.
        match bytes {
            [b'\n', ..] => Some(1),
            [b'\r', b'\n', ..] => Some(2),
            _ => None,
        }
    }
}

fn parse_frame(raw: &Bytes) -> Option<Frame> {
    let mut id = None;
    let mut event = Cow::Borrowed("");
    let mut data: Option<Bytes> = None;
    let mut start = 0;
    while start < raw.len() {
        let end = memchr(b'\n', &raw[start..]).map_or(raw.len(), |found| start + found);
        let line_end = if end > start && raw[end - 1] == b'\r' { end - 1 } else { end };
        let (field, value) = split_field(raw, start, line_end);
        match field {
            b"id" => id = std::str::from_utf8(&raw[value]).ok().and_then(|text| text.parse().ok()),
            b"event" => event = event_name(&raw[value]),
            b"data" => {
                let value = raw.slice(value);
                data = Some(data.map_or_else(|| value.clone(), |before| join_lines(&before, &value)));
            }
            _ => {}
        }
        start = end + 1;
    }
    let data = data?;
    Some(Frame { id, event, data, raw: raw.clone() })
}

/// The names on the frames of a job's stream.
const OWN_NAMES: [&str; 7] = ["token", "metrics", "queued", "started", "end", "error", "seam"];

fn event_name(value: &[u8]) -> Cow<'static, str> {
    match OWN_NAMES.iter().find(|name| name.as_bytes() == value) {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(String::from_utf8_lossy(value).into_owned()),
    }
}

/// The name of one line, and where its value lies, the single space after the colon dropped.
fn split_field(raw: &[u8], start: usize, end: usize) -> (&[u8], Range<usize>) {
    let line = &raw[start..end];
    let Some(colon) = memchr(b':', line) else {
        return (line, end..end);
    };
    let mut value = start + colon + 1;
    if raw.get(value) == Some(&b' ') && value < end {
        value += 1;
    }
    (&line[..colon], value..end)
}

fn join_lines(before: &[u8], line: &[u8]) -> Bytes {
    let mut joined = Vec::with_capacity(before.len() + 1 + line.len());
    joined.extend_from_slice(before);
    joined.push(b'\n');
    joined.extend_from_slice(line);
    joined.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_all(chunks: &[&[u8]]) -> Vec<Frame> {
        let mut decoder = FrameDecoder::default();
        let mut frames = Vec::new();
        for chunk in chunks {
            decoder.push(chunk);
            while let Some(frame) = decoder.next_frame().expect("short frames") {
                frames.push(frame);
            }
        }
        frames
    }

    #[test]
    fn an_event_survives_the_wire() {
        let event = TaskEvent::Token { t: "line\nbreak \u{1f41d}".into(), i: 7, k: None };
        let frames = decode_all(&[&encode_event(Some(9), &event)]);
        assert_eq!(frames.len(), 1);
        assert_eq!((frames[0].id, &*frames[0].event), (Some(9), "token"));
        assert_eq!(frames[0].task_event().expect("ours"), event);
    }

    #[test]
    fn a_token_is_read_the_same_from_the_short_way_and_the_long() {
        for text in ["plain", "line\nbreak \u{1f41d} \"quoted\"", ""] {
            let event = TaskEvent::Token { t: text.into(), i: 3, k: Some(9) };
            let frame = decode_all(&[&encode_event(Some(1), &event)]).remove(0);
            assert_eq!(frame.task_event().expect("ours"), event);
            let json = frame.token_json().expect("a token");
            assert_eq!(serde_json::from_str::<String>(json).expect("a string"), text);
        }
        let other =
            decode_all(&[b"event: token\ndata: {\"type\":\"seam\",\"t\":\"x\",\"i\":0}\n\n"]).remove(0);
        assert!(other.task_event().is_err() && other.token_json().is_none());
    }

    #[test]
    fn an_end_is_read_the_same_from_the_short_way_and_the_long() {
        for seed in [None, Some(u64::MAX)] {
            let event = TaskEvent::End(RunEnd {
                tokens_in: 1,
                tokens_out: 2,
                queue_time_ms: 3,
                prefill_time_ms: 4,
                decode_time_ms: 5,
                stop_reason: StopReason::MaxTokens,
                seed,
                tokens_cached: seed.map(|_| 6),
            });
            let frame = decode_all(&[&encode_event(Some(1), &event)]).remove(0);
            assert_eq!(frame.task_event().expect("ours"), event);
            assert_eq!(serde_json::from_slice::<TaskEvent>(&frame.data).expect("the long way"), event);
        }
        let other =
            decode_all(&[b"event: end\ndata: {\"type\":\"token\",\"t\":\"x\",\"i\":0}\n\n"]).remove(0);
        assert_eq!(other.task_event().expect("what its type says").name(), "token");
    }

    #[test]
    fn comments_blank_lines_and_a_byte_order_mark_are_skipped() {
        let frames = decode_all(&[b"\xef\xbb\xbf\n\n: hello\n\nid: x\ndata: a\ndata:b\n\n"]);
        assert_eq!(frames.len(), 1);
        assert_eq!((frames[0].id, &frames[0].data[..]), (None, &b"a\nb"[..]));
    }

    #[test]
    fn carriage_returns_are_accepted() {
        let frames = decode_all(&[b"event: token\r\ndata: {}\r\n\r\ndata: 2\r\n\r\n"]);
        assert_eq!(frames.iter().map(|frame| &frame.data[..]).collect::<Vec<_>>(), [&b"{}"[..], b"2"]);
    }

    #[test]
    fn an_endless_frame_is_refused() {
        let mut decoder = FrameDecoder::with_limit(64);
        decoder.push(&[b'x'; 65]);
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLong { limit: 64 }));
    }

    proptest! {
        #[test]
        fn chunk_borders_change_nothing(
            texts in prop::collection::vec("[ -~\u{e4}\u{1f41d}\n]{0,12}", 1..8),
            crlf: bool,
            cuts in prop::collection::vec(0usize..400, 0..12),
        ) {
            let mut wire = Vec::new();
            for (i, text) in texts.iter().enumerate() {
                encode_event_into(&mut wire, Some(i as u64), &TaskEvent::Token { t: text.clone(), i: i as u32, k: None });
            }
            if crlf {
                wire = String::from_utf8(wire).expect("UTF-8").replace('\n', "\r\n").into_bytes();
            }
            let mut borders: Vec<usize> = cuts.into_iter().map(|cut| cut.min(wire.len())).collect();
            borders.extend([0, wire.len()]);
            borders.sort_unstable();
            let chunks: Vec<&[u8]> = borders.windows(2).map(|pair| &wire[pair[0]..pair[1]]).collect();
            let frames = decode_all(&chunks);
            prop_assert_eq!(frames.iter().map(|frame| frame.raw.len()).sum::<usize>(), wire.len());
            let back: Vec<TaskEvent> = frames.iter().map(|frame| frame.task_event().expect("ours")).collect();
            let sent: Vec<TaskEvent> =
                texts.into_iter().enumerate().map(|(i, t)| TaskEvent::Token { t, i: i as u32, k: None }).collect();
            prop_assert_eq!(back, sent);
        }

        #[test]
        fn any_bytes_are_survived(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12)) {
            let mut decoder = FrameDecoder::with_limit(256);
            for chunk in chunks {
                decoder.push(&chunk);
                while let Ok(Some(_)) = decoder.next_frame() {}
            }
        }
    }
}
