//! The families that are converted, and how each calls its tensors.

/// The classes of `config.json` that are converted.
pub const SUPPORTED: [&str; 9] = [
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Phi3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
];

/// A family of models with the same layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Llama, and Mistral, which has the same layers.
    Llama,
    Qwen2,
    Qwen3,
    Phi3,
    Gemma,
    Gemma2,
    Gemma3,
}

/// What happens to the rows of a tensor on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    /// The two halves of each query head become pairs, as the engine rotates them.
    PairQueryHeads,
    /// The same for key heads.
    PairKeyHeads,
    /// Gemma stores the distance of a norm's weights from one.
    AddOne,
}

/// The shape of a tensor in the words of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Hidden,
    /// All query heads.
    Queries,
    /// All key (or value) heads.
    Keys,
    /// Queries, keys and values.
    Fused,
    Head,
    FeedForward,
    /// Gate and up.
    TwiceFeedForward,
}

/// A tensor that each layer has: its name there, its name in a GGUF file, and its shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    /// Rows, and their length where it is a matrix.
    pub(crate) rows: Size,
    pub(crate) columns: Option<Size>,
    pub(crate) change: Change,
    pub(crate) optional: bool,
}

const fn matrix(from: &'static str, to: &'static str, rows: Size, columns: Size) -> Part {
    Part { from, to, rows, columns: Some(columns), change: Change::Nothing, optional: false }
}

const fn vector(from: &'static str, to: &'static str, rows: Size) -> Part {
    Part { from, to, rows, columns: None, change: Change::Nothing, optional: false }
}

impl Part {
    const fn with(mut self, change: Change) -> Self {
        self.change = change;
        self
    }

    const fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

use Size::{FeedForward, Fused, Head, Hidden, Keys, Queries, TwiceFeedForward};

const Q: Part = matrix("self_attn.q_proj.weight", "attn_q.weight", Queries, Hidden);
const K: Part = matrix("self_attn.k_proj.weight", "attn_k.weight", Keys, Hidden);
const V: Part = matrix("self_attn.v_proj.weight", "attn_v.weight", Keys, Hidden);
const O: Part = matrix("self_attn.o_proj.weight", "attn_output.weight", Hidden, Queries);
const Q_BIAS: Part = vector("self_attn.q_proj.bias", "attn_q.bias", Queries);
const K_BIAS: Part = vector("self_attn.k_proj.bias", "attn_k.bias", Keys);
const V_BIAS: Part = vector("self_attn.v_proj.bias", "attn_v.bias", Keys);
const Q_NORM: Part = vector("self_attn.q_norm.weight", "attn_q_norm.weight", Head);
const K_NORM: Part = vector("self_attn.k_norm.weight", "attn_k_norm.weight", Head);
const GATE: Part = matrix("mlp.gate_proj.weight", "ffn_gate.weight", FeedForward, Hidden);
const UP: Part = matrix("mlp.up_proj.weight", "ffn_up.weight", FeedForward, Hidden);
const DOWN: Part = matrix("mlp.down_proj.weight", "ffn_down.weight", Hidden, FeedForward);
const BEFORE_ATTENTION: Part = vector("input_layernorm.weight", "attn_norm.weight", Hidden);
const AFTER_ATTENTION: Part = vector("post_attention_layernorm.weight", "ffn_norm.weight", Hidden);

const LLAMA: &[Part] = &[
    BEFORE_ATTENTION,
    Q.with(Change::PairQueryHeads),
    K.with(Change::PairKeyHeads),
    V,
    O,
    Q_BIAS.with(Change::PairQueryHeads).optional(),
    K_BIAS.with(Change::PairKeyHeads).optional(),
    V_BIAS.optional(),
    vector("self_attn.o_proj.bias", "attn_output.bias", Hidden).optional(),
    AFTER_ATTENTION,
    GATE,
    UP,
    DOWN,
    vector("mlp.gate_proj.bias", "ffn_gate.bias", FeedForward).optional(),
    vector("mlp.up_proj.bias", "ffn_up.bias", FeedForward).optional(),
    vector("mlp.down_proj.bias", "ffn_down.bias", Hidden).optional(),
];

const QWEN2: &[Part] =
    &[BEFORE_ATTENTION, Q, K, V, O, Q_BIAS, K_BIAS, V_BIAS, AFTER_ATTENTION, GATE, UP, DOWN];

const QWEN3: &[Part] = &[BEFORE_ATTENTION, Q, K, V, O, Q_NORM, K_NORM, AFTER_ATTENTION, GATE, UP, DOWN];

const PHI3: &[Part] = &[
    BEFORE_ATTENTION,
    matrix("self_attn.qkv_proj.weight", "attn_qkv.weight", Fused, Hidden),
    O,
    AFTER_ATTENTION,
    matrix("mlp.gate_up_proj.weight", "ffn_up.weight", TwiceFeedForward, Hidden),
    DOWN,
];

const GEMMA: &[Part] = &[
    BEFORE_ATTENTION.with(Change::AddOne),
    Q,
    K,
    V,
    O,
    AFTER_ATTENTION.with(Change::AddOne),
    GATE,
    UP,
    DOWN,
];

const GEMMA2: &[Part] = &[
    BEFORE_ATTENTION.with(Change::AddOne),
    Q,
    K,
    V,
    O,
    vector("post_attention_layernorm.weight", "post_attention_norm.weight", Hidden).with(Change::AddOne),
    vector("pre_feedforward_layernorm.weight", "ffn_norm.weight", Hidden).with(Change::AddOne),
    GATE,
    UP,
    DOWN,
    vector("post_feedforward_layernorm.weight", "post_ffw_norm.weight", Hidden).with(Change::AddOne),
];

const GEMMA3: &[Part] = &[
    BEFORE_ATTENTION.with(Change::AddOne),
    Q,
    K,
    V,
    O,
    Q_NORM.with(Change::AddOne),
    K_NORM.with(Change::AddOne),
    vector("post_attention_layernorm.weight", "post_attention_norm.weight", Hidden).with(Change::AddOne),
    vector("pre_feedforward_layernorm.weight", "ffn_norm.weight", Hidden).with(Change::AddOne),
    GATE,
    UP,
    DOWN,
    vector("post_feedforward_layernorm.weight", "post_ffw_norm.weight", Hidden).with(Change::AddOne),
];

impl Family {
    pub(crate) fn parse(class: &str) -> Option<Self> {
        Some(match class {
            "LlamaForCausalLM" | "MistralForCausalLM" => Self::Llama,
            "Qwen2ForCausalLM" => Self::Qwen2,
            "Qwen3ForCausalLM" => Self::Qwen3,
            "Phi3ForCausalLM" => Self::Phi3,
            "GemmaForCausalLM" => Self::Gemma,
            "Gemma2ForCausalLM" => Self::Gemma2,
            "Gemma3ForCausalLM" | "Gemma3ForConditionalGeneration" => Self::Gemma3,
            _ => return None,
        })
    }

    pub(crate) const fn gguf_name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
        }
    }

    pub(crate) const fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }

    pub(crate) const fn layer(self) -> &'static [Part] {
        match self {
            Self::Llama => LLAMA,
            Self::Qwen2 => QWEN2,
            Self::Qwen3 => QWEN3,
            Self::Phi3 => PHI3,
            Self::Gemma => GEMMA,
            Self::Gemma2 => GEMMA2,
            Self::Gemma3 => GEMMA3,
        }
    }
}
