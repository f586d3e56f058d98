//! How fast which model runs where, how talkative it is, and how long it takes to load.

use std::collections::BTreeMap;

use api_types::event::RunEnd;
use api_types::worker::WorkerFacts;
use serde::{Deserialize, Serialize};

use super::stream::{Curve, Mean};

/// Most keys of each kind; the one that was not seen for longest makes room.
const MOST_KEYS: usize = 128;
/// The shortest decode interval that is believed, in ms: below the resolution of the figures.
const SHORTEST_MS: f64 = 0.01;

/// What runs a model: its backend and its first device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Engine {
    /// The model's id.
    pub model: String,
    /// As in the model's file.
    pub quantization: Option<String>,
    /// `cpu`, `cuda`, `metal`, `vulkan` or `fake`.
    pub backend: String,
    /// As the worker names it.
    pub device: Option<String>,
}

impl Engine {
    /// What this worker is.
    pub fn of(facts: &WorkerFacts) -> Self {
        Self {
            model: facts.model.clone(),
            quantization: facts.quantization.clone(),
            backend: facts.backend.clone(),
            device: facts.devices.first().cloned(),
        }
    }

    /// Whether this is what the worker is.
    pub fn is_of(&self, facts: &WorkerFacts) -> bool {
        self.model == facts.model
            && self.quantization == facts.quantization
            && self.backend == facts.backend
            && self.device.as_ref() == facts.devices.first()
    }
}

/// How near the figures behind an estimate are to the job, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// This model in this quantization on this kind of device.
    Exact,
    /// This model elsewhere.
    Model,
    /// Other models on this backend: an order of magnitude, on which nothing is refused.
    Backend,
}

impl Basis {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Model => "model",
            Self::Backend => "backend",
        }
    }
}

/// Milliseconds per token of one kind of engine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Pace {
    /// Of the prompt, by its length.
    prefill: Curve,
    /// Of the answer, by the runs that shared the worker.
    decode: Curve,
    seen: u64,
}

/// What a model makes of a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Manner {
    tokens_per_byte: Mean,
    /// Share of `max_tokens` that was generated, by `max_tokens`.
    share: Curve,
    /// Tokens generated where no bound was given.
    unbounded: Mean,
    seen: u64,
}

/// All rates. Bounded in memory, whatever models and devices come by.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    #[serde(with = "pairs")]
    paces: BTreeMap<Engine, Pace>,
    backends: BTreeMap<String, Pace>,
    manners: BTreeMap<String, Manner>,
    anyones: Manner,
    /// Milliseconds of an attempt that are neither prefill nor decode.
    overhead: Mean,
    /// From a worker's introduction to its readiness, in ms.
    loads: ByPool,
    /// From the wish for a worker to its readiness, in ms.
    spawns: ByPool,
    clock: u64,
}

/// How long something took so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Took {
    /// Milliseconds, on average.
    pub ms: f64,
    /// Times it was seen.
    pub runs: u32,
}

/// Milliseconds by model and pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct ByPool(#[serde(with = "pairs")] BTreeMap<(String, String), Mean>);

impl ByPool {
    fn note(&mut self, model: &str, pool: &str, ms: u64) {
        let key = (model.to_owned(), pool.to_owned());
        if self.0.len() >= MOST_KEYS && !self.0.contains_key(&key) {
            self.0.pop_first();
        }
        self.0.entry(key).or_default().note(ms as f64);
    }

    /// Of this pool, else the longest of any.
    fn get(&self, model: &str, pool: &str) -> Option<Took> {
        let took = |mean: &Mean| Some(Took { ms: mean.get()?, runs: mean.runs() });
        let exact = self.0.get(&(model.to_owned(), pool.to_owned())).and_then(took);
        let from = (model.to_owned(), String::new());
        let others = || self.0.range(from..).take_while(|((of, _), _)| of == model);
        exact.or_else(|| others().filter_map(|(_, mean)| took(mean)).max_by(|a, b| a.ms.total_cmp(&b.ms)))
    }
}

/// The size of a job as it is known before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Bytes of prompt or messages.
    pub prompt_bytes: u64,
    /// Tokens it may generate; `None` is what the context leaves.
    pub max_tokens: Option<u32>,
}

/// How long an attempt is expected to take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Service {
    /// Milliseconds from its dispatch to its end.
    pub ms: f64,
    /// What that is known from.
    pub basis: Basis,
    /// Runs behind the figure that the fewest are behind.
    pub runs: u32,
}

/// A service, and where it was looked up.
struct Expected<'a> {
    service: Service,
    prompt_at: u32,
    pace_of: Option<&'a Engine>,
}

impl Rates {
    /// Learns from a run that came to its own end: `attempt_ms` from dispatch to end, beside `load`
    /// other runs and itself.
    pub fn note_run(&mut self, engine: &Engine, size: Size, end: &RunEnd, attempt_ms: u64, load: u32) {
        self.clock += 1;
        // What the worker still held took none of the time.
        let processed = end.tokens_in.saturating_sub(end.tokens_cached.unwrap_or(0)).max(1);
        let prefill = (end.prefill_time_ms as f64 / f64::from(processed)).max(SHORTEST_MS);
        // Of a few tokens behind a long start that was held, most of the time is not theirs.
        let tells = processed >= end.tokens_in / 2;
        let intervals = end.tokens_out.saturating_sub(1);
        let decode = (end.decode_time_ms as f64 / f64::from(intervals.max(1))).max(SHORTEST_MS);
        let clock = self.clock;
        for pace in [
            entry(&mut self.paces, engine, |pace| pace.seen),
            entry(&mut self.backends, &engine.backend, |pace| pace.seen),
        ] {
            pace.seen = clock;
            if tells {
                pace.prefill.note(end.tokens_in, prefill);
            } else {
                pace.prefill.note_cut(end.tokens_in);
            }
            if intervals > 0 {
                pace.decode.note(load, decode);
            }
        }
        let manner = entry(&mut self.manners, &engine.model, |manner| manner.seen);
        manner.seen = clock;
        for manner in [manner, &mut self.anyones] {
            manner.note(size, end);
        }
        let spent = end.prefill_time_ms.saturating_add(end.decode_time_ms);
        self.overhead.note((attempt_ms.saturating_sub(spent) as f64).max(SHORTEST_MS));
    }

    /// Learns that a run was cut off before its end: of what it would have taken only that it was
    /// more. The figures stay; they rest on one run more.
    pub fn note_cut(&mut self, engine: &Engine, size: Size, load: u32) {
        let Some(expected) = self.expect(engine, size, load) else { return };
        let (at, key) = (expected.prompt_at, expected.pace_of.cloned());
        let pace = match key {
            Some(key) => self.paces.get_mut(&key),
            None => self.backends.get_mut(&engine.backend),
        };
        if let Some(pace) = pace {
            pace.prefill.note_cut(at);
            pace.decode.note_cut(load);
        }
        self.manners.get_mut(&engine.model).unwrap_or(&mut self.anyones).note_cut(size);
        self.overhead.note_cut();
    }

    /// Learns how long a worker of `model` on `pool` took to read its model.
    pub fn note_load(&mut self, model: &str, pool: &str, ms: u64) {
        self.loads.note(model, pool, ms);
    }

    /// Learns how long it took from asking `pool` for a worker of `model` to its readiness.
    pub fn note_spawn(&mut self, model: &str, pool: &str, ms: u64) {
        self.spawns.note(model, pool, ms);
    }

    /// How long a worker of `model` takes to read its model on `pool`; on any pool where this one is
    /// not known.
    pub fn load(&self, model: &str, pool: &str) -> Option<Took> {
        self.loads.get(model, pool)
    }

    /// How long a worker of `model` takes from being asked for to being ready; as [`Self::load`].
    pub fn spawn(&self, model: &str, pool: &str) -> Option<Took> {
        self.spawns.get(model, pool)
    }

    /// How long one attempt of a job of this size takes on this engine while `load` runs share the
    /// worker. `None`: nothing like it was ever seen.
    pub fn service(&self, engine: &Engine, size: Size, load: u32) -> Option<Service> {
        self.expect(engine, size, load).map(|expected| expected.service)
    }

    /// How long one attempt takes before it says anything, whatever it will say: prompt and overhead.
    pub fn least(&self, engine: &Engine, size: Size) -> Option<Service> {
        let (manner, manner_basis) = self.manner(&engine.model);
        let (pace, _, pace_basis) = self.pace(engine)?;
        let tokens_in = manner.tokens_in(size.prompt_bytes)?;
        let prefill = pace.prefill.at(whole(tokens_in))?;
        let ms = tokens_in * prefill.get()? + self.overhead.get().unwrap_or(0.0);
        let runs = prefill.runs().min(manner.tokens_per_byte.runs());
        Some(Service { ms, basis: pace_basis.max(manner_basis), runs })
    }

    fn expect(&self, engine: &Engine, size: Size, load: u32) -> Option<Expected<'_>> {
        let (manner, manner_basis) = self.manner(&engine.model);
        let tokens_in = manner.tokens_in(size.prompt_bytes)?;
        let tokens_out = manner.tokens_out(size.max_tokens)?;
        let (pace, pace_of, pace_basis) = self.pace(engine)?;
        let prompt_at = whole(tokens_in);
        let (prefill, decode) = (pace.prefill.at(prompt_at)?, pace.decode.at(load));
        // Answers of one token tell nothing of the decode; where only such came, none is expected.
        let decode_ms = (tokens_out - 1.0).max(0.0) * decode.and_then(Mean::get).unwrap_or(0.0);
        let ms = tokens_in * prefill.get()? + decode_ms + self.overhead.get().unwrap_or(0.0);
        let means = [Some(prefill), decode, manner.of_answer(size.max_tokens), Some(&manner.tokens_per_byte)];
        let runs = means.into_iter().flatten().map(Mean::runs).min().unwrap_or(0);
        let service = Service { ms, basis: pace_basis.max(manner_basis), runs };
        Some(Expected { service, prompt_at, pace_of })
    }

    /// The pace of an engine, and whose it is; `None` for that of a whole backend.
    fn pace(&self, engine: &Engine) -> Option<(&Pace, Option<&Engine>, Basis)> {
        if let Some((key, pace)) = self.paces.get_key_value(engine) {
            return Some((pace, Some(key), Basis::Exact));
        }
        let from = Engine { model: engine.model.clone(), quantization: None, ..Engine::unknown() };
        let same_model = self.paces.range(from..).take_while(|(key, _)| key.model == engine.model);
        let latest = same_model.max_by_key(|(_, pace)| pace.seen);
        let latest = latest.map(|(key, pace)| (pace, Some(key), Basis::Model));
        latest.or_else(|| self.backends.get(&engine.backend).map(|pace| (pace, None, Basis::Backend)))
    }

    fn manner(&self, model: &str) -> (&Manner, Basis) {
        self.manners.get(model).map_or((&self.anyones, Basis::Backend), |manner| (manner, Basis::Exact))
    }
}

impl Engine {
    /// Nothing is known of it; before every other of the same model.
    pub const fn unknown() -> Self {
        Self { model: String::new(), quantization: None, backend: String::new(), device: None }
    }
}

impl Manner {
    fn note(&mut self, size: Size, end: &RunEnd) {
        self.tokens_per_byte.note(f64::from(end.tokens_in) / size.prompt_bytes.max(1) as f64);
        let out = f64::from(end.tokens_out.max(1));
        match size.max_tokens {
            Some(most) => self.share.note(most, out / f64::from(most.max(1))),
            None => self.unbounded.note(out),
        }
    }

    fn tokens_in(&self, prompt_bytes: u64) -> Option<f64> {
        self.tokens_per_byte.get().map(|per_byte| (prompt_bytes as f64 * per_byte).max(1.0))
    }

    fn tokens_out(&self, max_tokens: Option<u32>) -> Option<f64> {
        let mean = self.of_answer(max_tokens)?.get()?;
        Some(max_tokens.map_or(mean, |most| (mean * f64::from(most)).max(1.0)))
    }

    /// What is known of how long answers under this bound are.
    fn of_answer(&self, max_tokens: Option<u32>) -> Option<&Mean> {
        match max_tokens {
            Some(most) => self.share.at(most),
            None => Some(&self.unbounded),
        }
    }

    fn note_cut(&mut self, size: Size) {
        self.tokens_per_byte.note_cut();
        match size.max_tokens {
            Some(most) => self.share.note_cut(most),
            None => self.unbounded.note_cut(),
        }
    }
}

const fn whole(tokens: f64) -> u32 {
    tokens.min(u32::MAX as f64) as u32
}

/// The value of a key; a new one takes the place of the one seen longest ago when there are many.
fn entry<'a, K: Ord + Clone, V: Default>(
    map: &'a mut BTreeMap<K, V>,
    key: &K,
    seen: impl Fn(&V) -> u64,
) -> &'a mut V {
    if !map.contains_key(key) {
        let oldest = map.iter().min_by_key(|(_, value)| seen(value)).map(|(key, _)| key.clone());
        if let Some(oldest) = oldest.filter(|_| map.len() >= MOST_KEYS) {
            map.remove(&oldest);
        }
    }
    map.entry(key.clone()).or_default()
}

/// Maps whose keys are no words, as lists of pairs: JSON has no other way.
pub(in crate::estimate) mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<K, V, S>(map: &BTreeMap<K, V>, serializer: S) -> Result<S::Ok, S::Error>
    where
        K: Serialize,
        V: Serialize,
        S: Serializer,
    {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
#[path = "rates_tests.rs"]
mod tests;
