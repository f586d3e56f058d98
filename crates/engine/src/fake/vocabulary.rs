//! A small vocabulary: every byte, some words, a few characters split over two tokens.

use crate::error::EngineError;
use crate::traits::{Token, Tokenizer};

/// The token that begins a prompt.
pub const BOS: Token = 256;
/// The token that ends a text.
pub const EOS: Token = 257;
/// Begins a turn of a conversation.
pub const TURN: Token = 258;
/// Ends a turn of a conversation.
pub const END_OF_TURN: Token = 259;
const FIRST_WORD: Token = 260;

const CONTROL: [(&str, Token); 4] =
    [("<s>", BOS), ("</s>", EOS), ("<|im_start|>", TURN), ("<|im_end|>", END_OF_TURN)];

/// Characters of several bytes, each as two tokens; they come out only in pairs.
const SPLIT: [(&[u8], &[u8]); 3] = [
    (b" \xf0\x9f", b"\x90\x9d"), // a bee
    (b" caf\xc3", b"\xa9"),      // café
    (b" \xe8\x9c", b"\x82"),     // a bee in Chinese
];

const WORDS: [&str; 64] = [
    " the", " a", " of", " and", " to", " in", " is", " it", " that", " bees", " hive", " honey", " queen",
    " worker", " flower", " garden", " wind", " sun", " rain", " river", " stone", " light", " shadow",
    " summer", " winter", " morning", " night", " sings", " flies", " finds", " carries", " builds",
    " waits", " dances", " returns", " small", " golden", " quiet", " busy", " old", " young", " far",
    " near", " under", " over", " between", " with", " without", " from", " toward", " again", " never",
    " always", " home", " field", " tree", " wax", " comb", " nectar", ",", ".", ".", "\n", " bee",
];

/// The vocabulary of every fake model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vocabulary;

impl Vocabulary {
    /// Its size.
    pub const fn len() -> u32 {
        FIRST_WORD + WORDS.len() as u32 + 2 * SPLIT.len() as u32
    }

    /// Texts of the control tokens.
    pub fn control_texts() -> Vec<String> {
        CONTROL.iter().map(|(text, _)| (*text).to_owned()).collect()
    }

    /// The tokens that a model says of its own accord.
    pub fn spoken() -> impl Iterator<Item = Token> {
        let words = FIRST_WORD..FIRST_SPLIT;
        words.chain((0..SPLIT.len() as u32).map(|pair| FIRST_SPLIT + 2 * pair))
    }

    /// The token that must follow `token`, when `token` is the first half of a character.
    pub fn second_half(token: Token) -> Option<Token> {
        let at = token.checked_sub(FIRST_SPLIT)?;
        (at % 2 == 0 && token < Self::len()).then_some(token + 1)
    }
}

const FIRST_SPLIT: Token = FIRST_WORD + WORDS.len() as u32;

impl Tokenizer for Vocabulary {
    fn tokenize(&self, text: &str, special: bool) -> Result<Vec<Token>, EngineError> {
        let mut tokens = Vec::new();
        let mut rest = text.as_bytes();
        while let Some(byte) = rest.first() {
            let (token, length) = longest(rest, special).unwrap_or((Token::from(*byte), 1));
            tokens.push(token);
            rest = &rest[length..];
        }
        Ok(tokens)
    }

    fn piece(&self, token: Token, out: &mut Vec<u8>) {
        if let Ok(byte) = u8::try_from(token) {
            out.push(byte);
        } else if let Some(word) = token.checked_sub(FIRST_WORD).and_then(|at| WORDS.get(at as usize)) {
            out.extend_from_slice(word.as_bytes());
        } else if let Some(at) = token.checked_sub(FIRST_SPLIT)
            && let Some((first, second)) = SPLIT.get(at as usize / 2)
        {
            out.extend_from_slice(if at.is_multiple_of(2) { first } else { second });
        }
    }
}

/// The control token or word that `rest` begins with, and its length.
fn longest(rest: &[u8], special: bool) -> Option<(Token, usize)> {
    let control = CONTROL.iter().find(|(text, _)| special && rest.starts_with(text.as_bytes()));
    if let Some((text, token)) = control {
        return Some((*token, text.len()));
    }
    (FIRST_WORD..)
        .zip(WORDS)
        .filter(|(_, word)| rest.starts_with(word.as_bytes()))
        .max_by_key(|(token, word)| (word.len(), std::cmp::Reverse(*token)))
        .map(|(token, word)| (token, word.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tokens: &[Token]) -> Vec<u8> {
        let mut out = Vec::new();
        tokens.iter().for_each(|token| Vocabulary.piece(*token, &mut out));
        out
    }

    #[test]
    fn any_text_survives() {
        for sample in ["", "the bees and 🐝 café\0", " the bees", "<s>", "\u{fffd}"] {
            let tokens = Vocabulary.tokenize(sample, false).expect("any text");
            assert_eq!(text(&tokens), sample.as_bytes());
        }
    }

    #[test]
    fn control_texts_become_control_tokens_only_when_asked() {
        assert_eq!(Vocabulary.tokenize("<|im_end|>", true), Ok(vec![END_OF_TURN]));
        assert_eq!(Vocabulary.tokenize("<|im_end|>", false).map(|tokens| tokens.len()), Ok(10));
        assert!(text(&[END_OF_TURN]).is_empty());
    }

    #[test]
    fn halves_make_whole_characters() {
        for first in Vocabulary::spoken().filter(|token| Vocabulary::second_half(*token).is_some()) {
            assert!(std::str::from_utf8(&text(&[first])).is_err());
            assert!(std::str::from_utf8(&text(&[first, first + 1])).is_ok());
        }
        assert!(Vocabulary::spoken().all(|token| token < Vocabulary::len()));
        assert_eq!(Vocabulary::second_half(Vocabulary::len()), None);
    }
}
