//! Output that must have a form: which tokens may come next.
//!
//! A [`Vocabulary`] is made once per model and knows the bytes of every token, nothing else, so it is
//! the same for every engine. A [`Constraint`] follows one run: it says what may come, takes what came,
//! and knows when nothing may follow. Between the parts of a JSON text it allows little white space,
//! because a model that may repeat a blank for ever sometimes does.

use std::collections::BTreeSet;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::Value;

use crate::traits::{ModelInfo, Token, Tokenizer};

/// Longest token that a constraint may use, in bytes; longer ones are never drawn.
const MAX_PIECE: usize = 512;
/// Begins the names that the library gives to control tokens; no text has this byte.
const MARKER: u8 = 0xff;
/// What may stand once between two parts of a JSON text.
const WHITE_SPACE: &str = r"\x20{1,2}|\n(\x20{0,24}|\t{0,6})";
/// States of a run's lexer, 1 to 2 kB each. The library's own bound would allow half a gigabyte.
const MAX_LEXER_STATES: usize = 50_000;
/// Longest reason of the library that is passed on, in characters.
const MAX_REASON: usize = 300;

/// Why a form cannot be had or kept. Never holds completion text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The tokens of the model are of a kind that cannot be told apart by their bytes.
    #[error("the model's vocabulary cannot be constrained")]
    Vocabulary,
    /// The schema is no schema, or asks for what cannot be enforced.
    #[error("the schema cannot be enforced: {0}")]
    Schema(String),
    /// A token that the form does not allow here.
    #[error("token {index} does not follow the response format")]
    Token {
        /// Its index in the completion.
        index: u32,
    },
    /// No token of the model goes on from here, or finding them takes too many steps.
    #[error("no token of the model continues the response format")]
    DeadEnd,
}

/// The tokens of a model, ready to be constrained. Shared between threads.
pub struct Vocabulary {
    factory: ParserFactory,
    ends: Arc<BTreeSet<Token>>,
    blanks: Arc<SimpleVob>,
}

impl Vocabulary {
    /// Reads the bytes of every token; a vocabulary of a quarter of a million takes seconds.
    ///
    /// # Errors
    /// `Vocabulary`.
    pub fn new(tokenizer: &dyn Tokenizer, info: &ModelInfo) -> Result<Self, ConstraintError> {
        // The library asserts what it needs.
        std::panic::catch_unwind(AssertUnwindSafe(|| Self::build(tokenizer, info)))
            .ok()
            .flatten()
            .ok_or(ConstraintError::Vocabulary)
    }

    fn build(tokenizer: &dyn Tokenizer, info: &ModelInfo) -> Option<Self> {
        let ends: BTreeSet<Token> = info.end_tokens.iter().copied().collect();
        let pieces: Vec<Vec<u8>> = (0..info.vocab)
            .map(|token| if ends.contains(&token) { Vec::new() } else { piece(tokenizer, token) })
            .collect();
        let end = ends.first().copied().unwrap_or(INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(info.vocab, end), &pieces);
        let mut blanks = trie.alloc_token_set();
        for (token, piece) in (0..).zip(&pieces) {
            if !piece.is_empty() && piece.iter().all(u8::is_ascii_whitespace) {
                blanks.allow_token(token);
            }
        }
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices).ok()?;
        // It must not write to stderr, nor put completions into errors.
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        factory.limits_mut().max_lexer_states = MAX_LEXER_STATES;
        Some(Self { factory, ends: Arc::new(ends), blanks: Arc::new(blanks) })
    }

    /// A constraint to JSON that `schema` describes. Takes up to a few hundred milliseconds.
    ///
    /// # Errors
    /// `Schema` with the reason.
    pub fn json(&self, schema: &str) -> Result<Constraint, ConstraintError> {
        let mut schema: Value =
            serde_json::from_str(schema).map_err(|_| ConstraintError::Schema("it is not JSON".to_owned()))?;
        if !schema.is_object() {
            return Err(ConstraintError::Schema("it is not an object".to_owned()));
        }
        let options = JsonCompileOptions {
            whitespace_pattern: Some(WHITE_SPACE.to_owned()),
            ..JsonCompileOptions::default()
        };
        // In place of options that the schema itself may bring along.
        options.apply_to(&mut schema);
        let parser = self
            .factory
            .create_parser(TopLevelGrammar::from_json_schema(schema))
            .map_err(|error| ConstraintError::Schema(reason(&error.to_string())))?;
        let mut constraint = Constraint {
            matcher: Matcher::new(Ok(parser)),
            ends: Arc::clone(&self.ends),
            blanks: Arc::clone(&self.blanks),
            next: None,
            taken: 0,
            complete: false,
        };
        // What no token can begin is refused now, and the first step need not wait.
        constraint.allowed().map_err(|_| {
            ConstraintError::Schema(
                "no text of this model's tokens follows it, or it is too complex".to_owned(),
            )
        })?;
        Ok(constraint)
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").finish_non_exhaustive()
    }
}

/// The bytes that a token may add to a constrained text; none for what may never be drawn.
fn piece(tokenizer: &dyn Tokenizer, token: Token) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokenizer.piece(token, &mut bytes);
    if bytes.first() == Some(&MARKER) || bytes.len() > MAX_PIECE { Vec::new() } else { bytes }
}

/// The first lines of what the library says, without what it says about itself.
fn reason(error: &str) -> String {
    if error.starts_with("panic") {
        return "it is of a kind that is not understood".to_owned();
    }
    let told = error.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('<'));
    let told = told.collect::<Vec<_>>().join("; ");
    match told.char_indices().nth(MAX_REASON) {
        Some((end, _)) => format!("{}...", told.get(..end).unwrap_or_default()),
        None => told,
    }
}

/// The form that one run must keep.
pub struct Constraint {
    matcher: Matcher,
    ends: Arc<BTreeSet<Token>>,
    blanks: Arc<SimpleVob>,
    /// What may come next, once it is known.
    next: Option<Allowed>,
    taken: u32,
    complete: bool,
}

/// Tokens that may come next.
#[derive(Debug, Clone)]
pub struct Allowed(SimpleVob);

impl Allowed {
    /// Whether `token` may.
    pub fn contains(&self, token: Token) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }
}

impl Constraint {
    /// The tokens that may come next; those that end a text are among them when it may end here.
    ///
    /// # Errors
    /// `DeadEnd` when there is none.
    pub fn allowed(&mut self) -> Result<&Allowed, ConstraintError> {
        let known = match self.next.take() {
            Some(known) => known,
            None => self.find_allowed()?,
        };
        Ok(self.next.insert(known))
    }

    fn find_allowed(&mut self) -> Result<Allowed, ConstraintError> {
        let mut tokens = self.matcher.compute_mask_or_eos().map_err(|_| ConstraintError::DeadEnd)?;
        let may_end = self.matcher.is_accepting().map_err(|_| ConstraintError::DeadEnd)?;
        let size = tokens.len();
        for end in self.ends.iter().filter(|end| (**end as usize) < size) {
            if may_end {
                tokens.allow_token(*end);
            } else {
                tokens.disallow_token(*end);
            }
        }
        if tokens.is_zero() { Err(ConstraintError::DeadEnd) } else { Ok(Allowed(tokens)) }
    }

    /// Takes the next token, which is none that ends a text.
    ///
    /// # Errors
    /// `Token` when it may not come here, `DeadEnd` when nothing may follow although the text is not
    /// complete.
    pub fn accept(&mut self, token: Token) -> Result<(), ConstraintError> {
        let index = self.taken;
        self.next = None;
        let followed = !self.complete && !self.ends.contains(&token);
        if !followed || self.matcher.consume_token(token).is_err() {
            return Err(ConstraintError::Token { index });
        }
        self.taken += 1;
        self.complete = self.nothing_follows()?;
        Ok(())
    }

    /// Takes tokens that were drawn elsewhere.
    ///
    /// # Errors
    /// As [`Constraint::accept`].
    pub fn accept_all(&mut self, tokens: &[Token]) -> Result<(), ConstraintError> {
        tokens.iter().try_for_each(|token| self.accept(*token))
    }

    /// Whether the text has its form and nothing but white space could follow.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    fn nothing_follows(&mut self) -> Result<bool, ConstraintError> {
        if self.matcher.is_stopped() {
            return Ok(true);
        }
        if !self.matcher.is_accepting().map_err(|_| ConstraintError::DeadEnd)? {
            return Ok(false);
        }
        let mut more = self.allowed()?.0.clone();
        more.sub(&self.blanks);
        let mut text = false;
        more.iter_set_entries(|token| text |= !self.ends.contains(&(token as Token)));
        Ok(!text)
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("taken", &self.taken).field("complete", &self.complete).finish()
    }
}
