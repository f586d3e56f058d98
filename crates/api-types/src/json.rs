//! JSON strings, written as fast as they can be copied: a prompt of hundreds of kilobytes has a few
//! characters that need an escape, and serde looks at each byte by itself.

/// Each byte of a word.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Whether any byte of these eight cannot stand in a JSON string as it is. Zero bytes are found by
/// subtracting (Mycroft's trick); a wrong alarm is possible only behind a right one.
const fn has_escape(word: u64) -> bool {
    let control = word.wrapping_sub(each(0x20)) & !word;
    let quote = word ^ each(b'"');
    let quote = quote.wrapping_sub(each(1)) & !quote;
    let slash = word ^ each(b'\\');
    let slash = slash.wrapping_sub(each(1)) & !slash;
    (control | quote | slash) & each(0x80) != 0
}

/// Bytes at the front of `bytes` that can stand in a JSON string as they are.
fn plain_length(bytes: &[u8]) -> usize {
    let (words, _) = bytes.as_chunks::<8>();
    let plain = words.iter().take_while(|word| !has_escape(u64::from_ne_bytes(**word))).count() * 8;
    let rest = bytes.get(plain..).unwrap_or_default();
    plain + rest.iter().take_while(|byte| !matches!(byte, 0..0x20 | b'"' | b'\\')).count()
}

/// Appends `text` as a JSON string, quotes included: the same bytes that serde writes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    let mut bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    loop {
        let (plain, rest) = bytes.split_at(plain_length(bytes));
        out.extend_from_slice(plain);
        let Some((odd, rest)) = rest.split_first() else { break };
        write_escape(out, *odd);
        bytes = rest;
    }
    out.push(b'"');
}

fn write_escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            let hex = |nibble: u8| HEX[usize::from(nibble & 0x0f)];
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(text: &str) -> String {
        let mut out = Vec::new();
        write_string(&mut out, text);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn every_byte_of_ascii_is_written_as_serde_writes_it_wherever_it_stands() {
        for byte in 0..0x80_u8 {
            for place in 0..20 {
                let text = format!("{}{}{}", "x".repeat(place), char::from(byte), "y".repeat(20 - place));
                assert_eq!(written(&text), serde_json::to_string(&text).expect("JSON"));
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_written_as_serde_writes_it(text: String, more in "[ -~\n\"\\\\\u{1f41d}]{0,40}") {
            let text = text + &more;
            prop_assert_eq!(written(&text), serde_json::to_string(&text).expect("JSON"));
        }
    }
}
