//! `config.json`: the numbers of a model, checked.

use gguf::{Document, Entry};
use serde_json::Value;

use crate::architecture::{Family, Size};
use crate::error::ConvertError;
use crate::folder::{CONFIG, Folder};
use crate::json::Object;
use crate::rope::{self, Rope};

const MAX_LAYERS: u64 = 1024;
const MAX_HEADS: u64 = 4096;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_CONTEXT: u64 = 1 << 27;

/// What the converter needs to know of a model.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) family: Family,
    pub(crate) layers: u64,
    pub(crate) heads: u64,
    pub(crate) key_heads: u64,
    pub(crate) head: u64,
    pub(crate) tied: bool,
    pub(crate) rope: Rope,
    hidden: u64,
    feed_forward: u64,
    context: u64,
    epsilon: f64,
    window: Option<u64>,
    attention_cap: Option<f64>,
    final_cap: Option<f64>,
}

/// Reads and checks the configuration of `folder`.
pub(crate) fn read(folder: &Folder) -> Result<Config, ConvertError> {
    let fields = folder
        .object(CONFIG)?
        .ok_or_else(|| ConvertError::malformed(CONFIG, "it is missing", "the configuration of a model"))?;
    let whole = Object { file: CONFIG, fields: &fields };
    let family = family(whole)?;
    if whole.get("quantization_config").is_some() {
        return Err(ConvertError::unsupported(CONFIG, "a quantised model", "weights in F32, F16 or BF16"));
    }
    let object = whole.object("text_config")?.unwrap_or(whole);
    let config = numbers(family, object, whole)?;
    check(&config, object)?;
    Ok(config)
}

fn family(whole: Object<'_>) -> Result<Family, ConvertError> {
    let classes = whole.get("architectures").and_then(Value::as_array);
    let Some(class) = classes.and_then(|classes| classes.first()).and_then(Value::as_str) else {
        return Err(whole.wrong("architectures", "names nothing", "a list with the name of one class"));
    };
    Family::parse(class).ok_or_else(|| ConvertError::architecture(class))
}

fn numbers(family: Family, object: Object<'_>, whole: Object<'_>) -> Result<Config, ConvertError> {
    let heads = object.needed("num_attention_heads", MAX_HEADS)?;
    let hidden = object.needed("hidden_size", MAX_WIDTH)?;
    let head = match object.count("head_dim", 4096)? {
        Some(head) => head,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(object.wrong(
                "hidden_size",
                "does not fit the heads",
                "a multiple of num_attention_heads",
            ));
        }
    };
    let context = object.needed("max_position_embeddings", MAX_CONTEXT)?;
    let tied = object.truth("tie_word_embeddings")?.or(whole.truth("tie_word_embeddings")?);
    Ok(Config {
        family,
        layers: object.needed("num_hidden_layers", MAX_LAYERS)?,
        heads,
        key_heads: object.count("num_key_value_heads", MAX_HEADS)?.unwrap_or(heads),
        head,
        tied: tied.unwrap_or_else(|| family.is_gemma()),
        rope: rope::read(family, object, head, context)?,
        hidden,
        feed_forward: object.needed("intermediate_size", MAX_WIDTH * 16)?,
        context,
        epsilon: object.needed_number("rms_norm_eps")?,
        window: window(family, object)?,
        attention_cap: object.number("attn_logit_softcapping")?,
        final_cap: object.number("final_logit_softcapping")?,
    })
}

/// The sliding window, where the model uses one.
fn window(family: Family, object: Object<'_>) -> Result<Option<u64>, ConvertError> {
    let window = object.count("sliding_window", MAX_CONTEXT)?;
    let off =
        matches!(family, Family::Qwen2 | Family::Qwen3) && object.truth("use_sliding_window")? != Some(true);
    Ok(window.filter(|_| !off))
}

fn check(config: &Config, object: Object<'_>) -> Result<(), ConvertError> {
    if !config.heads.is_multiple_of(config.key_heads) {
        return Err(object.wrong(
            "num_key_value_heads",
            "does not divide num_attention_heads",
            "a divisor of it",
        ));
    }
    if !config.head.is_multiple_of(2) {
        return Err(object.wrong("head_dim", "is odd", "an even number"));
    }
    activation(config, object)?;
    if config.family.is_gemma() && config.family != Family::Gemma {
        gemma(config, object)?;
    }
    Ok(())
}

fn activation(config: &Config, object: Object<'_>) -> Result<(), ConvertError> {
    let named = object.text("hidden_activation")?.or(object.text("hidden_act")?);
    let allowed: &[&str] =
        if config.family.is_gemma() { &["gelu_pytorch_tanh", "gelu"] } else { &["silu", "swish"] };
    match named {
        Some(name) if !allowed.contains(&name) => {
            Err(ConvertError::unsupported(CONFIG, format!("the activation {name}"), allowed.join(", ")))
        }
        _ => Ok(()),
    }
}

/// The engine derives these of Gemma 2 and 3 from the other numbers; a model that says otherwise
/// would run wrongly.
fn gemma(config: &Config, object: Object<'_>) -> Result<(), ConvertError> {
    let largest = if config.family == Family::Gemma2 { 46 } else { 62 };
    let scale = if config.layers == largest { config.hidden / config.heads } else { config.head };
    if object.number("query_pre_attn_scalar")?.is_some_and(|said| said != scale as f64) {
        return Err(ConvertError::unsupported(CONFIG, "this query_pre_attn_scalar", scale.to_string()));
    }
    let every = if config.family == Family::Gemma2 { 2 } else { 6 };
    let pattern = object.count("sliding_window_pattern", MAX_LAYERS)?;
    let pattern = pattern.or(object.count("_sliding_window_pattern", MAX_LAYERS)?);
    let wrong = pattern.is_some_and(|said| said != every)
        || object.get("layer_types").and_then(Value::as_array).is_some_and(|types| {
            !types.iter().zip(1u64..).all(|(name, number)| {
                let full = number.is_multiple_of(every);
                name.as_str() == Some(if full { "full_attention" } else { "sliding_attention" })
            })
        });
    if wrong {
        let allowed = format!("full attention in every layer number {every}");
        return Err(ConvertError::unsupported(CONFIG, "this pattern of sliding windows", allowed));
    }
    if config.window.is_none() {
        return Err(object.wrong("sliding_window", "is missing", "a number of tokens"));
    }
    Ok(())
}

impl Config {
    /// Elements along one side of a tensor.
    pub(crate) const fn length(&self, size: Size) -> u64 {
        match size {
            Size::Hidden => self.hidden,
            Size::Queries => self.heads * self.head,
            Size::Keys => self.key_heads * self.head,
            Size::Fused => (self.heads + 2 * self.key_heads) * self.head,
            Size::Head => self.head,
            Size::FeedForward => self.feed_forward,
            Size::TwiceFeedForward => 2 * self.feed_forward,
        }
    }

    /// Adds the keys of the architecture.
    pub(crate) fn describe(&self, document: &mut Document) {
        let mut count = |key: &str, number: u64| {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            document.put(format!("{}.{key}", self.family.gguf_name()), Entry::U32(number));
        };
        count("context_length", self.runnable_context());
        count("embedding_length", self.hidden);
        count("block_count", self.layers);
        count("feed_forward_length", self.feed_forward);
        count("attention.head_count", self.heads);
        count("attention.head_count_kv", self.key_heads);
        count("attention.key_length", self.head);
        count("attention.value_length", self.head);
        count("rope.dimension_count", self.rope.dimensions);
        if let Some(window) = self.window.filter(|_| self.family.is_gemma()) {
            count("attention.sliding_window", window);
        }
        let mut number = |key: &str, number: f64| {
            document.put(format!("{}.{key}", self.family.gguf_name()), Entry::F32(number as f32));
        };
        number("attention.layer_norm_rms_epsilon", self.epsilon);
        if self.family == Family::Gemma2 {
            number("attn_logit_softcapping", self.attention_cap.unwrap_or(50.0));
            number("final_logit_softcapping", self.final_cap.unwrap_or(30.0));
        }
        self.rope.describe(self.family.gguf_name(), document);
    }

    /// The engine attends to everything in these families, which is the same as the model's own
    /// window as long as the text fits into it.
    fn runnable_context(&self) -> u64 {
        match self.window {
            Some(window) if !self.family.is_gemma() => self.context.min(window),
            _ => self.context,
        }
    }
}
