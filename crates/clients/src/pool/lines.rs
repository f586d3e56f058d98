//! Cuts bytes that arrive in any portions into lines.

/// Longest line that is kept whole, in bytes; what is longer comes in pieces.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Bytes of a line that has not ended yet.
#[derive(Debug, Default)]
pub struct LineBuffer {
    partial: Vec<u8>,
}

impl LineBuffer {
    /// Takes what arrived and hands on every line that is whole, without its line feed.
    pub fn push(&mut self, bytes: &[u8], mut on_line: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() > MAX_LINE_BYTES {
                let line = std::mem::take(&mut self.partial);
                on_line(line.strip_suffix(b"\n").unwrap_or(&line));
            }
        }
    }

    /// What is left when the output has ended without a line feed; empty otherwise.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_portions() {
        let (mut buffer, mut lines) = (LineBuffer::default(), Vec::new());
        for portion in ["a", "b\nc\n\nd", ""] {
            buffer.push(portion.as_bytes(), |line| lines.push(String::from_utf8_lossy(line).into_owned()));
        }
        assert_eq!(lines, ["ab", "c", ""]);
        assert_eq!(buffer.rest(), b"d");
        assert_eq!(buffer.rest(), b"");
    }
}
