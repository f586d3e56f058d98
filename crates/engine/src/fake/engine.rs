//! The fake model at work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::spec::{Faults, Spec};
use super::vocabulary::{BOS, END_OF_TURN, EOS, Vocabulary};
use crate::backend::Backend;
use crate::error::EngineError;
use crate::loader::DEFAULT_CONTEXT;
use crate::sampler::{mix, uniform};
use crate::traits::{
    Caps, Engine, LoadOptions, ModelInfo, Row, SavedSeq, Seq, StepOutcome, Token, Tokenizer,
};

/// Rows in one step.
const MAX_ROWS: u32 = 512;
/// Score of a token that must come, and of one that must not.
const CERTAIN: f32 = 80.0;
const NEVER: f32 = -80.0;
const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
    {{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// See the module's documentation.
#[derive(Debug)]
pub struct FakeEngine {
    spec: Spec,
    info: ModelInfo,
    caps: Caps,
    sequences: Vec<Sequence>,
    logits: Vec<Vec<f32>>,
}

#[derive(Debug, Default, Clone)]
struct Sequence {
    tokens: Vec<Token>,
    /// `states[n]` depends on the engine's seed and the first n tokens.
    states: Vec<u64>,
    /// Length of the prompt, known at the first request for scores.
    prompt: Option<usize>,
    faults: Faults,
}

enum Fault {
    Stall,
    Error,
}

impl FakeEngine {
    pub(super) fn new(spec: Spec, options: &LoadOptions) -> Result<Self, EngineError> {
        let context = options.context.unwrap_or_else(|| spec.context.min(DEFAULT_CONTEXT));
        if context > spec.context {
            let message = format!("context is {context}; this model holds at most {} tokens", spec.context);
            return Err(EngineError::InvalidOption { field: "context", message });
        }
        let caps = Caps { max_seqs: options.slots, max_rows: MAX_ROWS, partial_remove: true };
        let sequences = vec![Sequence::default(); options.slots as usize];
        Ok(Self { info: info(&spec, context), spec, caps, sequences, logits: Vec::new() })
    }

    fn sequence(&mut self, seq: Seq) -> Result<&mut Sequence, EngineError> {
        let sequence = self.sequences.get_mut(seq as usize);
        sequence.ok_or_else(|| EngineError::StepFailed(format!("there is no sequence {seq}")))
    }

    fn push(&mut self, row: &Row) -> Result<(), EngineError> {
        let seed = self.spec.seed;
        let context = self.info.context_length;
        let Some(sequence) = self.sequences.get_mut(row.seq as usize) else {
            return Err(EngineError::StepFailed(format!("there is no sequence {}", row.seq)));
        };
        if row.pos as usize != sequence.tokens.len() || row.pos >= context || row.token >= Vocabulary::len() {
            return Err(EngineError::StepFailed(format!(
                "row of sequence {} at position {} does not follow {} tokens of {context}",
                row.seq,
                row.pos,
                sequence.tokens.len()
            )));
        }
        let before = sequence.states.last().copied().unwrap_or_else(|| mix(seed));
        sequence.states.push(mix(before ^ u64::from(row.token).wrapping_add(1)));
        sequence.tokens.push(row.token);
        Ok(())
    }

    /// Scores after the last token of a sequence, or the fault that is due.
    fn score(&mut self, seq: Seq) -> Result<Vec<f32>, Fault> {
        let scripted = self.spec.faults;
        let chance = self.spec.eos;
        let Some(sequence) = self.sequences.get_mut(seq as usize) else {
            return Err(Fault::Error);
        };
        let answered = sequence.answered(scripted);
        let due = |at: Option<u32>| at.is_some_and(|at| at == answered);
        if due(sequence.faults.crash_at) {
            std::process::abort();
        }
        if due(sequence.faults.stall_at) {
            return Err(Fault::Stall);
        }
        if due(sequence.faults.error_at) {
            return Err(Fault::Error);
        }
        let state = sequence.states.last().copied().unwrap_or_default();
        let last = sequence.tokens.last().copied().unwrap_or(BOS);
        let ends =
            sequence.faults.eos_at.map_or_else(|| uniform(state, u64::MAX) < chance, |at| answered >= at);
        Ok(scores(state, last, ends))
    }
}

impl Sequence {
    /// Tokens of the answer so far; the first call finds the faults that the prompt asks for.
    fn answered(&mut self, scripted: Faults) -> u32 {
        if self.prompt.is_none() {
            let mut bytes = Vec::new();
            self.tokens.iter().for_each(|token| Vocabulary.piece(*token, &mut bytes));
            self.faults = scripted.with_markers(&String::from_utf8_lossy(&bytes));
            self.prompt = Some(self.tokens.len());
        }
        (self.tokens.len() - self.prompt.unwrap_or_default().min(self.tokens.len())) as u32
    }
}

fn scores(state: u64, last: Token, ends: bool) -> Vec<f32> {
    let mut scores = vec![NEVER; Vocabulary::len() as usize];
    if let Some(half) = Vocabulary::second_half(last) {
        scores[half as usize] = CERTAIN;
    } else if ends {
        scores[EOS as usize] = CERTAIN;
    } else {
        for token in Vocabulary::spoken() {
            scores[token as usize] = 8.0 * uniform(state, u64::from(token)) as f32 - 4.0;
        }
    }
    scores
}

fn info(spec: &Spec, context: u32) -> ModelInfo {
    ModelInfo {
        engine: concat!("fake ", env!("CARGO_PKG_VERSION")).to_owned(),
        backend: Backend::Fake,
        devices: vec!["fake".to_owned()],
        architecture: "fake".to_owned(),
        name: Some(spec.name.clone()),
        quantization: None,
        tokenizer: Some("fake".to_owned()),
        context_length: context,
        vocab: Vocabulary::len(),
        chat_template: spec.template.then(|| TEMPLATE.to_owned()),
        bos: Some(BOS),
        bos_text: "<s>".to_owned(),
        eos_text: "</s>".to_owned(),
        add_bos: true,
        end_tokens: vec![EOS, END_OF_TURN],
        control_texts: Vocabulary::control_texts(),
        vram_bytes: 0,
        ram_bytes: spec.memory_mb << 20,
    }
}

impl Engine for FakeEngine {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::new(Vocabulary)
    }

    fn caps(&self) -> Caps {
        self.caps
    }

    fn step(&mut self, rows: &[Row], abandon: &AtomicBool) -> Result<StepOutcome, EngineError> {
        if rows.is_empty() || rows.len() > MAX_ROWS as usize {
            return Err(EngineError::StepFailed(format!(
                "a step has {} rows; allowed is 1 to {MAX_ROWS}",
                rows.len()
            )));
        }
        self.logits.clear();
        for row in rows {
            self.push(row)?;
            let scores = if row.logits { self.score(row.seq) } else { Ok(Vec::new()) };
            match scores {
                Ok(scores) => self.logits.push(scores),
                Err(Fault::Error) => {
                    return Err(EngineError::StepFailed(
                        "the spec or the prompt asks for this failure".to_owned(),
                    ));
                }
                Err(Fault::Stall) => return Ok(wait(Duration::MAX, abandon)),
            }
        }
        Ok(wait(self.spec.pace, abandon))
    }

    fn logits(&self, row: usize) -> &[f32] {
        self.logits.get(row).map_or(&[], Vec::as_slice)
    }

    fn seq_remove(&mut self, seq: Seq, from: u32) -> Result<(), EngineError> {
        let sequence = self.sequence(seq)?;
        sequence.tokens.truncate(from as usize);
        sequence.states.truncate(from as usize);
        sequence.prompt = None;
        Ok(())
    }

    fn seq_copy(&mut self, from: Seq, to: Seq, upto: u32) -> Result<(), EngineError> {
        let mut copy = self.sequence(from)?.clone();
        copy.tokens.truncate(upto as usize);
        copy.states.truncate(upto as usize);
        copy.prompt = None;
        *self.sequence(to)? = copy;
        Ok(())
    }

    fn seq_save(&mut self, seq: Seq) -> Result<Box<dyn SavedSeq>, EngineError> {
        Ok(Box::new(Sequence { prompt: None, ..self.sequence(seq)?.clone() }))
    }

    fn seq_load(&mut self, seq: Seq, saved: &dyn SavedSeq) -> Result<(), EngineError> {
        let Some(saved) = saved.as_any().downcast_ref::<Sequence>() else {
            return Err(EngineError::Unsupported("the sequence was saved by another engine"));
        };
        self.sequence(seq)?.clone_from(saved);
        Ok(())
    }
}

impl SavedSeq for Sequence {
    fn bytes(&self) -> u64 {
        (self.tokens.len() * size_of::<Token>() + self.states.len() * size_of::<u64>()) as u64
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Lets time pass, in slices, so that the end of the process need not wait.
fn wait(time: Duration, abandon: &AtomicBool) -> StepOutcome {
    let begin = Instant::now();
    while begin.elapsed() < time {
        if abandon.load(Ordering::Relaxed) {
            return StepOutcome::Abandoned;
        }
        std::thread::sleep(Duration::from_millis(20).min(time.saturating_sub(begin.elapsed())));
    }
    StepOutcome::Done
}
