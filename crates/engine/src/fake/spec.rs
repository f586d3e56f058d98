//! What a fake model is told by its name.

use std::time::Duration;

/// Faults at a token of an answer, counted from 0; `None` never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// The process aborts instead of giving this token.
    pub crash_at: Option<u32>,
    /// The step that should give this token never ends.
    pub stall_at: Option<u32>,
    /// The step that should give this token fails.
    pub error_at: Option<u32>,
    /// The answer ends instead of this token.
    pub eos_at: Option<u32>,
}

/// A parsed `NAME?key=value&…`.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// What stands before the question mark.
    pub name: String,
    /// `seed=N`: another seed gives other scores. Default 0.
    pub seed: u64,
    /// `pace_ms=N`: how long a step takes, whatever its rows. Default 0.
    pub pace: Duration,
    /// `load_ms=N`: how long loading takes. Default 0.
    pub load: Duration,
    /// `context=N`: tokens the model can hold per sequence. Default 4096.
    pub context: u32,
    /// `memory_mb=N`: MiB of memory it says it takes. It takes none: this is how a pool's memory is
    /// tried out without filling a machine. Default 0.
    pub memory_mb: u64,
    /// `eos=P`: chance of the end at each token, 0 to 1. Default 0: answers end at `max_tokens`.
    pub eos: f64,
    /// `template=none`: no chat template.
    pub template: bool,
    /// `refuse=REASON`: loading fails.
    pub refuse: Option<String>,
    /// `crash_at=N`, `stall_at=N`, `error_at=N`, `eos_at=N`: for every sequence.
    pub faults: Faults,
}

const KEYS: &str =
    "seed, pace_ms, load_ms, context, memory_mb, eos, template, refuse, crash_at, stall_at, error_at, eos_at";

impl Spec {
    /// Reads what follows `fake:`.
    ///
    /// # Errors
    /// A sentence naming the key that is unknown or the value that is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, settings) = text.split_once('?').unwrap_or((text, ""));
        if name.is_empty() {
            return Err("a fake model needs a name: fake:NAME?key=value".to_owned());
        }
        let mut spec = Self {
            name: name.to_owned(),
            seed: 0,
            pace: Duration::ZERO,
            load: Duration::ZERO,
            context: 4096,
            memory_mb: 0,
            eos: 0.0,
            template: true,
            refuse: None,
            faults: Faults::default(),
        };
        for setting in settings.split('&').filter(|setting| !setting.is_empty()) {
            let (key, value) =
                setting.split_once('=').ok_or_else(|| format!("`{setting}` is not key=value"))?;
            spec.set(key, value)?;
        }
        Ok(spec)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "seed" => self.seed = number(key, value)?,
            "pace_ms" => self.pace = Duration::from_millis(number(key, value)?),
            "load_ms" => self.load = Duration::from_millis(number(key, value)?),
            "context" => self.context = number(key, value)?,
            "memory_mb" => self.memory_mb = number(key, value)?,
            "eos" => self.eos = probability(value)?,
            "template" => self.template = template(value)?,
            "refuse" => self.refuse = Some(value.to_owned()),
            "crash_at" => self.faults.crash_at = Some(number(key, value)?),
            "stall_at" => self.faults.stall_at = Some(number(key, value)?),
            "error_at" => self.faults.error_at = Some(number(key, value)?),
            "eos_at" => self.faults.eos_at = Some(number(key, value)?),
            _ => return Err(format!("a fake model has no setting `{key}`; allowed are {KEYS}")),
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{key} is `{value}`; allowed is a whole number of 0 or more"))
}

fn probability(value: &str) -> Result<f64, String> {
    let parsed = value.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    parsed.ok_or_else(|| format!("eos is `{value}`; allowed is 0 to 1"))
}

fn template(value: &str) -> Result<bool, String> {
    match value {
        "chatml" => Ok(true),
        "none" => Ok(false),
        _ => Err(format!("template is `{value}`; allowed are chatml and none")),
    }
}

impl Faults {
    /// These faults, and those that markers in a prompt ask for on top.
    #[must_use]
    pub fn with_markers(mut self, prompt: &str) -> Self {
        for (word, fault) in [
            ("crash", &mut self.crash_at),
            ("stall", &mut self.stall_at),
            ("error", &mut self.error_at),
            ("eos", &mut self.eos_at),
        ] {
            if let Some(at) = marker(prompt, word) {
                *fault = Some(at);
            }
        }
        self
    }
}

/// N of the first `[[word:N]]`, 0 of `[[word]]`.
fn marker(prompt: &str, word: &str) -> Option<u32> {
    prompt.split("[[").skip(1).find_map(|rest| {
        let (inside, _) = rest.split_once("]]")?;
        match inside.strip_prefix(word)? {
            "" => Some(0),
            number => number.strip_prefix(':')?.parse().ok(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_unknown_ones_refused() {
        let spec = Spec::parse("bee?seed=7&pace_ms=5&context=64&template=none&crash_at=3").expect("known");
        assert_eq!((spec.name.as_str(), spec.seed, spec.context, spec.template), ("bee", 7, 64, false));
        assert_eq!((spec.pace, spec.faults.crash_at), (Duration::from_millis(5), Some(3)));
        assert!(Spec::parse("bee?speed=9").is_err_and(|message| message.contains("speed")));
        assert!(Spec::parse("bee?eos=2").is_err());
        assert!(Spec::parse("?seed=1").is_err());
    }

    #[test]
    fn markers_name_a_token() {
        let faults = Faults::default().with_markers("do [[crash]] and [[eos:12]] [[stall:x]]");
        assert_eq!((faults.crash_at, faults.eos_at, faults.stall_at), (Some(0), Some(12), None));
    }
}
