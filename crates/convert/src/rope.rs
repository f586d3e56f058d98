//! How positions turn queries and keys: the base, and how it is stretched for longer texts.

use std::f64::consts::TAU;

use gguf::{Document, Entry};

use crate::architecture::Family;
use crate::error::ConvertError;
use crate::folder::CONFIG;
use crate::json::Object;

/// The rotation of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    /// Elements of a head that turn.
    pub(crate) dimensions: u64,
    base: f64,
    /// Base of layers with a sliding window.
    local_base: Option<f64>,
    scaling: Scaling,
}

#[derive(Debug, Clone, PartialEq)]
enum Scaling {
    None,
    Linear {
        factor: f64,
    },
    Yarn {
        factor: f64,
        original: u64,
    },
    /// A divisor per frequency.
    Factors(Vec<f32>),
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        attention: f64,
        original: u64,
    },
}

/// Reads what `object` says, for heads of `head` elements and texts of up to `context` tokens.
pub(crate) fn read(
    family: Family,
    object: Object<'_>,
    head: u64,
    context: u64,
) -> Result<Rope, ConvertError> {
    let parameters = object.object("rope_parameters")?;
    let (global, local) = match parameters {
        Some(all) => (all.object("full_attention")?.or(Some(all)), all.object("sliding_attention")?),
        None => (object.object("rope_scaling")?, None),
    };
    let inner = |object: Option<Object<'_>>| object.map_or(Ok(None), |object| object.number("rope_theta"));
    let default = if family == Family::Gemma3 { 1e6 } else { 1e4 };
    let base = inner(global)?.or(object.number("rope_theta")?).unwrap_or(default);
    let local_base = match family {
        Family::Gemma3 => Some(inner(local)?.or(object.number("rope_local_base_freq")?).unwrap_or(1e4)),
        _ => None,
    };
    let share = match global {
        Some(global) => global.number("partial_rotary_factor")?.or(object.number("partial_rotary_factor")?),
        None => object.number("partial_rotary_factor")?,
    };
    let dimensions = dimensions(family, object, head, share)?;
    let scaling = match global {
        None => Scaling::None,
        Some(global) => scaling(family, global, object, dimensions, base, context)?,
    };
    Ok(Rope { dimensions, base, local_base, scaling })
}

fn dimensions(
    family: Family,
    object: Object<'_>,
    head: u64,
    share: Option<f64>,
) -> Result<u64, ConvertError> {
    let turned = share.map_or(head as f64, |share| (head as f64 * share).floor()) as u64;
    if turned == 0 || turned > head || !turned.is_multiple_of(2) || (turned != head && family != Family::Phi3)
    {
        return Err(object.wrong("partial_rotary_factor", "does not fit the heads", "1, or less for Phi-3"));
    }
    Ok(turned)
}

fn scaling(
    family: Family,
    said: Object<'_>,
    object: Object<'_>,
    dimensions: u64,
    base: f64,
    context: u64,
) -> Result<Scaling, ConvertError> {
    let kind = said.text("rope_type")?.or(said.text("type")?).unwrap_or("default");
    Ok(match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: said.needed_number("factor")? },
        "llama3" if family == Family::Llama => Scaling::Factors(llama3(said, dimensions, base)?),
        "yarn" => yarn(said, context)?,
        "longrope" | "su" if family == Family::Phi3 => long(said, object, dimensions, context)?,
        other => {
            let found = format!("the rotation {other:?} in this family");
            let allowed = "default, linear, yarn, llama3 (Llama) and longrope (Phi-3)";
            return Err(ConvertError::unsupported(CONFIG, found, allowed));
        }
    })
}

fn yarn(said: Object<'_>, context: u64) -> Result<Scaling, ConvertError> {
    for key in ["attention_factor", "mscale", "mscale_all_dim", "truncate"] {
        if said.get(key).is_some() {
            return Err(ConvertError::unsupported(CONFIG, format!("yarn with {key}"), "yarn without it"));
        }
    }
    for (key, usual) in [("beta_fast", 32.0), ("beta_slow", 1.0)] {
        if said.number(key)?.is_some_and(|number| number != usual) {
            return Err(ConvertError::unsupported(CONFIG, format!("this {key}"), usual.to_string()));
        }
    }
    let factor = said.needed_number("factor")?;
    let original = said.count("original_max_position_embeddings", 1 << 27)?.unwrap_or(context);
    Ok(Scaling::Yarn { factor, original })
}

fn long(
    said: Object<'_>,
    object: Object<'_>,
    dimensions: u64,
    context: u64,
) -> Result<Scaling, ConvertError> {
    const KEY: &str = "original_max_position_embeddings";
    let original = match said.count(KEY, 1 << 27)? {
        Some(original) => original,
        None => object.needed(KEY, 1 << 27)?,
    };
    let stretch = context as f64 / original as f64;
    let attention = match said.number("attention_factor")? {
        Some(attention) => attention,
        None if stretch <= 1.0 => 1.0,
        None => (1.0 + stretch.ln() / (original as f64).ln()).sqrt(),
    };
    Ok(Scaling::Long {
        short: said.numbers("short_factor", dimensions / 2)?,
        long: said.numbers("long_factor", dimensions / 2)?,
        attention,
        original,
    })
}

/// Long waves are stretched by the factor, short ones not at all, those between partly.
fn llama3(said: Object<'_>, dimensions: u64, base: f64) -> Result<Vec<f32>, ConvertError> {
    let factor = said.needed_number("factor")?;
    let low = said.needed_number("low_freq_factor")?;
    let high = said.needed_number("high_freq_factor")?;
    let original = said.needed("original_max_position_embeddings", 1 << 27)? as f64;
    if high <= low {
        return Err(said.wrong("high_freq_factor", "is not above low_freq_factor", "a larger number"));
    }
    let divisor = |pair: u64| {
        let wave = TAU * base.powf(2.0 * pair as f64 / dimensions as f64);
        if wave < original / high {
            1.0
        } else if wave > original / low {
            factor
        } else {
            let share = (original / wave - low) / (high - low);
            1.0 / ((1.0 - share) / factor + share)
        }
    };
    Ok((0..dimensions / 2).map(|pair| divisor(pair) as f32).collect())
}

impl Rope {
    /// Adds the keys of the rotation.
    pub(crate) fn describe(&self, family: &str, document: &mut Document) {
        let mut put = |key: &str, entry: Entry| document.put(format!("{family}.rope.{key}"), entry);
        let whole = |number: u64| Entry::U32(u32::try_from(number).unwrap_or(u32::MAX));
        put("freq_base", Entry::F32(self.base as f32));
        if let Some(base) = self.local_base {
            put("freq_base_swa", Entry::F32(base as f32));
        }
        match &self.scaling {
            Scaling::None | Scaling::Factors(_) => {}
            Scaling::Linear { factor } => {
                put("scaling.type", Entry::Text("linear".to_owned()));
                put("scaling.factor", Entry::F32(*factor as f32));
            }
            Scaling::Yarn { factor, original } => {
                put("scaling.type", Entry::Text("yarn".to_owned()));
                put("scaling.factor", Entry::F32(*factor as f32));
                put("scaling.original_context_length", whole(*original));
            }
            Scaling::Long { attention, original, .. } => {
                put("scaling.type", Entry::Text("longrope".to_owned()));
                put("scaling.attn_factor", Entry::F32(*attention as f32));
                put("scaling.original_context_length", whole(*original));
            }
        }
    }

    /// Tensors of divisors, which are no weights of the folder.
    pub(crate) fn tensors(&self) -> Vec<(&'static str, &[f32])> {
        match &self.scaling {
            Scaling::Factors(factors) => vec![("rope_freqs.weight", factors)],
            Scaling::Long { short, long, .. } => {
                vec![("rope_factors_long.weight", long), ("rope_factors_short.weight", short)]
            }
            Scaling::None | Scaling::Linear { .. } | Scaling::Yarn { .. } => Vec::new(),
        }
    }
}
