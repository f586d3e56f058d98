//! From the bytes of tokens to the texts of events.
//!
//! Each token gives exactly one event. Its text is whole UTF-8: a character that is spread over
//! several tokens comes with the last of them. While the text so far could be the beginning of a
//! stop string, the events it belongs to are held back, so no part of a stop string ever leaves.

use std::collections::VecDeque;

/// A token whose text is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Its index in the completion, from 0.
    pub index: u32,
    /// What it adds to the text.
    pub text: String,
}

/// Joins token bytes into text and watches for stop strings.
#[derive(Debug, Clone, Default)]
pub struct TokenText {
    stops: Vec<String>,
    /// Bytes of a character that has begun and is not complete.
    carry: Vec<u8>,
    held: VecDeque<Settled>,
}

impl TokenText {
    /// A text that ends before the first of `stops`; empty strings among them are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), ..Self::default() }
    }

    /// Takes the bytes of the next token. Gives the tokens that are now settled, and whether a stop
    /// string has appeared (then nothing is left and nothing may follow).
    pub fn push(&mut self, index: u32, bytes: &[u8]) -> (Vec<Settled>, bool) {
        let text = self.decode(bytes);
        self.held.push_back(Settled { index, text });
        let joined: String = self.held.iter().map(|token| token.text.as_str()).collect();
        if let Some(at) = first_stop(&joined, &self.stops) {
            self.carry.clear();
            return (self.cut(at), true);
        }
        let free = joined.len() - held_bytes(&joined, &self.stops);
        (self.release(free), false)
    }

    /// Everything still held, once no token follows. A character that never became complete shows
    /// as U+FFFD.
    pub fn finish(&mut self) -> Vec<Settled> {
        if !std::mem::take(&mut self.carry).is_empty()
            && let Some(last) = self.held.back_mut()
        {
            last.text.push(char::REPLACEMENT_CHARACTER);
        }
        self.held.drain(..).collect()
    }

    /// The whole characters of what was carried and `bytes`; the rest is carried on.
    fn decode(&mut self, bytes: &[u8]) -> String {
        self.carry.extend_from_slice(bytes);
        let mut text = String::new();
        let mut begun = 0;
        for chunk in self.carry.utf8_chunks() {
            text.push_str(chunk.valid());
            begun += chunk.valid().len();
            if chunk.invalid().is_empty() {
                continue;
            }
            let at_the_end = begun + chunk.invalid().len() == self.carry.len();
            if at_the_end && may_become_character(chunk.invalid()) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            begun += chunk.invalid().len();
        }
        self.carry.drain(..begun);
        text
    }

    /// Gives the tokens that lie within the first `free` bytes of the held text.
    fn release(&mut self, free: usize) -> Vec<Settled> {
        let mut out = Vec::new();
        let mut used = 0;
        while let Some(token) = self.held.front() {
            let end = used + token.text.len();
            let completes_later = self.held.len() == 1 && !self.carry.is_empty();
            if end > free || completes_later {
                break;
            }
            used = end;
            out.extend(self.held.pop_front());
        }
        out
    }

    /// Gives every held token, the text from byte `at` on taken away.
    fn cut(&mut self, at: usize) -> Vec<Settled> {
        let mut left = at;
        self.held
            .drain(..)
            .map(|mut token| {
                token.text.truncate(left);
                left -= token.text.len();
                token
            })
            .collect()
    }
}

/// Whether more bytes could make a character of these.
fn may_become_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

fn first_stop(text: &str, stops: &[String]) -> Option<usize> {
    stops.iter().filter_map(|stop| text.find(stop.as_str())).min()
}

/// Length of the longest end of `text` that is the beginning of a stop string.
fn held_bytes(text: &str, stops: &[String]) -> usize {
    let longest = stops.iter().map(|stop| stop.len() - 1).max().unwrap_or(0).min(text.len());
    (1..=longest)
        .rev()
        .find(|length| {
            let end = &text.as_bytes()[text.len() - length..];
            stops.iter().any(|stop| stop.len() > *length && stop.as_bytes().starts_with(end))
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(pieces: &[&[u8]], stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut text = TokenText::new(&stops);
        let mut out: Vec<Settled> = Vec::new();
        for (index, piece) in (0..).zip(pieces) {
            let (settled, stopped) = text.push(index, piece);
            out.extend(settled);
            if stopped {
                return (out.into_iter().map(|token| token.text).collect(), true);
            }
        }
        out.extend(text.finish());
        (out.into_iter().map(|token| token.text).collect(), false)
    }

    #[test]
    fn a_character_over_several_tokens_comes_with_the_last() {
        let (texts, _) = run(&[b"a\xf0\x9f", b"\x90", b"\x9d!"], &[]);
        assert_eq!(texts, ["a", "", "\u{1f41d}!"]);
    }

    #[test]
    fn what_never_becomes_a_character_is_shown_as_such() {
        assert_eq!(run(&[b"\xff", b"a\xf0\x9f"], &[]).0, ["\u{fffd}", "a\u{fffd}"]);
        assert_eq!(run(&[b"\xf0\x9f", b"z"], &[]).0, ["", "\u{fffd}z"]);
    }

    #[test]
    fn no_part_of_a_stop_string_leaves() {
        assert_eq!(
            run(&[b"one E", b"N", b"D two"], &["END"]),
            (vec!["one ".into(), "".into(), "".into()], true)
        );
        assert_eq!(
            run(&[b"one E", b"N", b"d"], &["END"]),
            (vec!["one E".into(), "N".into(), "d".into()], false)
        );
        assert_eq!(run(&[b"x E", b"N"], &["END"]), (vec!["x E".into(), "N".into()], false));
    }

    #[test]
    fn the_first_of_several_stops_counts() {
        assert_eq!(run(&[b"a b c"], &["c", "b"]), (vec!["a ".into()], true));
    }

    #[test]
    fn text_before_a_possible_stop_is_not_delayed() {
        let mut text = TokenText::new(&["\n\n".to_owned()]);
        assert_eq!(text.push(0, b"hello").0.len(), 1);
        assert_eq!(text.push(1, b"\n").0.len(), 0);
        assert_eq!(text.push(2, b"x").0.len(), 2);
    }

    proptest! {
        #[test]
        fn the_joined_text_is_what_was_said_up_to_the_stop(
            bytes in prop::collection::vec(prop_oneof![
                Just(b'a'), Just(b'b'), Just(b'\n'), Just(0xf0u8), Just(0x9f), Just(0x90), Just(0x9d), any::<u8>()
            ], 0..60),
            cuts in prop::collection::vec(1usize..5, 1..60),
            stops in prop::collection::vec("[ab\n]{1,4}", 0..3),
        ) {
            let mut pieces = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            let borrowed: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (texts, stopped) = run(&pieces, &borrowed);
            let said = String::from_utf8_lossy(&bytes);
            let at = stops.iter().filter_map(|stop| said.find(stop.as_str())).min();
            prop_assert_eq!(stopped, at.is_some());
            prop_assert_eq!(texts.concat(), &said[..at.unwrap_or(said.len())]);
            prop_assert!(stopped || texts.len() == pieces.len());
        }
    }
}
