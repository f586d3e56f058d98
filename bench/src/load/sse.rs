//! Reading the mock's time stamps out of whatever dialect a stream comes in.

/// Marks a stamp inside a token's text.
pub const STAMP: &[u8] = b"@t";

/// Calls `seen` with each stamp in `chunk`, in nanoseconds; a stamp cut by the chunk's end is kept
/// in `rest` and found with the next chunk.
pub fn stamps(rest: &mut Vec<u8>, chunk: &[u8], mut seen: impl FnMut(u64)) {
    rest.extend_from_slice(chunk);
    let mut done = 0;
    while let Some(at) = find(rest.get(done..).unwrap_or_default()) {
        let digits_at = done + at + STAMP.len();
        let digits = rest.get(digits_at..).unwrap_or_default();
        let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == digits.len() {
            // Not ended yet: the rest of the number comes with the next chunk.
            rest.drain(..done + at);
            return;
        }
        let text = digits.get(..length).and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(stamp) = text.and_then(|text| text.parse().ok()) {
            seen(stamp);
        }
        done = digits_at + length;
    }
    let keep = rest.len().saturating_sub(STAMP.len() - 1).max(done);
    rest.drain(..keep);
}

fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(STAMP.len()).position(|window| window == STAMP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_found_whatever_the_chunk_borders() {
        let wire = b"data: {\"content\":\"@t123 \"}\n\ndata: {\"t\":\"@t4567 \"}\n\n@t9 ";
        for size in 1..wire.len() {
            let (mut rest, mut found) = (Vec::new(), Vec::new());
            for chunk in wire.chunks(size) {
                stamps(&mut rest, chunk, |stamp| found.push(stamp));
            }
            assert_eq!(found, [123, 4567, 9], "chunks of {size}");
        }
    }
}
