//! How the next token is chosen from a model's scores. Pure: the same input gives the same token.
//!
//! Order: what may come at all, penalties, `logit_bias`, top-k, top-p, min-p, temperature, draw. The draw for token `i`
//! depends on `(seed, i)` alone, so a run that goes on elsewhere draws what it would have drawn.

use std::collections::{HashMap, HashSet};

use api_types::sampling::Sampling;

use crate::constraint::Allowed;
use crate::traits::Token;

/// Chooses the tokens of one run.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Sampling,
    seed: u64,
    /// Occurrences in the prompt or the completion.
    seen: HashSet<Token>,
    /// Occurrences in the completion.
    generated: HashMap<Token, u32>,
    index: u32,
    scratch: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    token: Token,
    score: f32,
}

impl Sampler {
    /// A sampler for one run. `prompt` counts for the repetition penalty.
    pub fn new(settings: &Sampling, seed: u64, prompt: &[Token]) -> Self {
        let seen = if settings.repetition_penalty == 1.0 {
            HashSet::new()
        } else {
            prompt.iter().copied().collect()
        };
        Self {
            settings: settings.clone(),
            seed,
            seen,
            generated: HashMap::new(),
            index: 0,
            scratch: Vec::new(),
        }
    }

    /// The next token, given the scores of the whole vocabulary. Remembers it.
    ///
    /// `None` only when there is no score at all. A score that is not a number counts as the
    /// lowest.
    pub fn next(&mut self, logits: &[f32]) -> Option<Token> {
        self.next_of(logits, None)
    }

    /// As [`Sampler::next`], but only a token that is allowed, where `allowed` says which are.
    ///
    /// `None` also when no token with a score is allowed.
    pub fn next_of(&mut self, logits: &[f32], allowed: Option<&Allowed>) -> Option<Token> {
        let greedy = self.settings.temperature == 0.0;
        let token = if greedy { self.greedy(logits, allowed) } else { self.draw(logits, allowed) }?;
        self.accept(token);
        Some(token)
    }

    /// Takes `token` as the next one without choosing it: what follows is as if it had been drawn.
    pub fn accept(&mut self, token: Token) {
        if self.settings.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
        if self.settings.frequency_penalty != 0.0 || self.settings.presence_penalty != 0.0 {
            *self.generated.entry(token).or_default() += 1;
        }
        self.index = self.index.wrapping_add(1);
    }

    fn adjusts(&self) -> bool {
        !self.seen.is_empty() || !self.generated.is_empty() || !self.settings.logit_bias.is_empty()
    }

    /// The highest score; the lowest id of equals.
    fn greedy(&mut self, logits: &[f32], allowed: Option<&Allowed>) -> Option<Token> {
        if !self.adjusts() && allowed.is_none() {
            return best((0..).zip(logits.iter().copied()));
        }
        self.fill(logits, allowed);
        best(self.scratch.iter().map(|candidate| (candidate.token, candidate.score)))
    }

    fn draw(&mut self, logits: &[f32], allowed: Option<&Allowed>) -> Option<Token> {
        self.fill(logits, allowed);
        let mut candidates = std::mem::take(&mut self.scratch);
        truncate(&mut candidates, &self.settings);
        let token = pick(
            &candidates,
            f64::from(self.settings.temperature),
            uniform(self.seed, u64::from(self.index)),
        );
        self.scratch = candidates;
        token
    }

    /// All tokens that may come, with penalties and bias applied, by id.
    fn fill(&mut self, logits: &[f32], allowed: Option<&Allowed>) {
        self.adjust(logits);
        // Taken out at the end: until here the place of a token in the list is its id.
        if let Some(allowed) = allowed {
            self.scratch.retain(|candidate| allowed.contains(candidate.token));
        }
    }

    fn adjust(&mut self, logits: &[f32]) {
        self.scratch.clear();
        self.scratch.extend((0..).zip(logits).map(|(token, score)| Candidate {
            token,
            score: if score.is_nan() { f32::MIN } else { *score },
        }));
        let repetition = self.settings.repetition_penalty;
        for token in &self.seen {
            if let Some(candidate) = self.scratch.get_mut(*token as usize) {
                candidate.score = if candidate.score > 0.0 {
                    candidate.score / repetition
                } else {
                    candidate.score * repetition
                };
            }
        }
        for (token, count) in &self.generated {
            if let Some(candidate) = self.scratch.get_mut(*token as usize) {
                candidate.score -=
                    self.settings.frequency_penalty * *count as f32 + self.settings.presence_penalty;
            }
        }
        for (token, bias) in &self.settings.logit_bias {
            if let Some(candidate) = self.scratch.get_mut(*token as usize) {
                candidate.score += bias;
            }
        }
    }
}

fn best(scores: impl Iterator<Item = (Token, f32)>) -> Option<Token> {
    let mut best: Option<(Token, f32)> = None;
    for (token, score) in scores {
        let score = if score.is_nan() { f32::MIN } else { score };
        if best.is_none_or(|(_, highest)| score > highest) {
            best = Some((token, score));
        }
    }
    best.map(|(token, _)| token)
}

/// Higher scores first, lower ids first among equals.
fn by_rank(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.score.total_cmp(&a.score).then(a.token.cmp(&b.token))
}

/// Top-k, then top-p, then min-p. What is left stands in order of id.
fn truncate(candidates: &mut Vec<Candidate>, settings: &Sampling) {
    let top_k = settings.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k, by_rank);
        candidates.truncate(top_k);
    }
    if settings.top_p < 1.0 {
        keep_top_p(candidates, f64::from(settings.top_p));
    }
    if settings.min_p > 0.0 {
        let floor = highest(candidates) + f64::from(settings.min_p).ln();
        candidates.retain(|candidate| f64::from(candidate.score) >= floor);
    }
    candidates.sort_unstable_by_key(|candidate| candidate.token);
}

fn highest(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.score)).fold(f64::NEG_INFINITY, f64::max)
}

/// The smallest set of likeliest tokens whose probability reaches `top_p`. Only as many candidates
/// as are needed get sorted.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    let highest = highest(candidates);
    let weight = |candidate: &Candidate| (f64::from(candidate.score) - highest).exp();
    // The sum runs in order of id, so that it does not depend on how the candidates were cut.
    candidates.sort_unstable_by_key(|candidate| candidate.token);
    let wanted = top_p * candidates.iter().map(weight).sum::<f64>();
    let mut sorted = 0;
    let mut reached = 0.0;
    let mut block = 64;
    while sorted < candidates.len() {
        let end = (sorted + block).min(candidates.len());
        let rest = &mut candidates[sorted..];
        if end < sorted + rest.len() {
            rest.select_nth_unstable_by(end - sorted, by_rank);
        }
        candidates[sorted..end].sort_unstable_by(by_rank);
        for at in sorted..end {
            reached += weight(&candidates[at]);
            if reached >= wanted {
                candidates.truncate(at + 1);
                return;
            }
        }
        sorted = end;
        block *= 4;
    }
}

/// Walks the candidates until `uniform` of their total weight is behind.
fn pick(candidates: &[Candidate], temperature: f64, uniform: f64) -> Option<Token> {
    let highest = highest(candidates);
    let weight = |candidate: &Candidate| ((f64::from(candidate.score) - highest) / temperature).exp();
    let goal = uniform * candidates.iter().map(weight).sum::<f64>();
    let mut behind = 0.0;
    for candidate in candidates {
        behind += weight(candidate);
        if behind > goal {
            return Some(candidate.token);
        }
    }
    // Rounding may leave the goal a hair beyond the last weight.
    candidates.iter().min_by(|a, b| by_rank(a, b)).map(|candidate| candidate.token)
}

/// A number in [0, 1) that depends on `seed` and `index` alone.
pub fn uniform(seed: u64, index: u64) -> f64 {
    let bits = mix(mix(seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_add(index.wrapping_mul(0xd1b5_4a32_d192_ed03)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// A well-mixed permutation of 64-bit numbers (the finaliser of SplitMix64).
pub(crate) const fn mix(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
