//! What a script sees: the core's facts as read-only values with named fields.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::Arc;

use api_types::task::Priority;
use orchestrator_core::policy::{FailureFacts, JobFacts, Label, Labels, QueueFacts, WorkerLoad};
use rhai::{Array, Dynamic, Engine, Map};

/// One kind of facts: what the core calls it, what scripts call it, and its fields.
pub(crate) trait Kind: Clone + Send + Sync + 'static {
    /// The core's facts.
    type Of<'a>;
    /// The name of the type in error messages.
    const NAME: &'static str;
    /// Its fields.
    const FIELDS: &'static [Field<Self>];
}

/// A job, queue, worker or failure as a script holds it. A field that the script never names is
/// not filled in.
#[derive(Debug, Clone)]
pub(crate) struct View<K>(Arc<[Dynamic]>, PhantomData<K>);

/// A field of a kind.
pub(crate) struct Field<K: Kind> {
    /// As a script writes it.
    pub name: &'static str,
    value: for<'a> fn(&K::Of<'a>) -> Dynamic,
    key: for<'a> fn(&K::Of<'a>, &mut Vec<u8>),
}

/// Which fields of a kind a script names, by their place in the table.
#[derive(Debug, Clone)]
pub(crate) struct Named<K>(Vec<bool>, PhantomData<K>);

impl<K: Kind> Named<K> {
    /// The fields that occur as a word in the source. A superset of those that can be read, because
    /// a field is only ever read by its name.
    pub fn of(source: &str) -> Self {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let words: BTreeSet<&str> = source.split(|c| !is_part(c)).collect();
        Self(K::FIELDS.iter().map(|field| words.contains(field.name)).collect(), PhantomData)
    }

    /// The values of the named fields.
    pub fn view(&self, facts: &K::Of<'_>) -> View<K> {
        let value =
            |(field, named): (&Field<K>, &bool)| if *named { (field.value)(facts) } else { Dynamic::UNIT };
        View(K::FIELDS.iter().zip(&self.0).map(value).collect(), PhantomData)
    }

    /// The named fields as bytes that are equal exactly when the values are.
    pub fn write_key(&self, facts: &K::Of<'_>, key: &mut Vec<u8>) {
        for (field, _) in K::FIELDS.iter().zip(&self.0).filter(|(_, named)| **named) {
            (field.key)(facts, key);
        }
    }
}

/// Defines a kind and the table of its fields.
macro_rules! kind {
    ($kind:ident: $facts:ty, $($name:literal => |$f:ident| $value:expr;)*) => {
        #[derive(Debug, Clone)]
        pub(crate) struct $kind;

        impl Kind for $kind {
            type Of<'a> = $facts;
            const NAME: &'static str = stringify!($kind);
            const FIELDS: &'static [Field<Self>] = &[$(Field {
                name: $name,
                value: |$f| Fact::value(&$value),
                key: |$f, key| Fact::key(&$value, key),
            },)*];
        }
    };
}

kind! { Job: JobFacts<'a>,
    "tenant" => |f| f.tenant;
    "session" => |f| f.session;
    "model" => |f| f.model;
    "priority" => |f| word(f.priority);
    "prompt_bytes" => |f| f.prompt_bytes;
    "max_tokens" => |f| f.max_tokens.map(u64::from);
    "waited_ms" => |f| f.waited_ms;
    "deadline_in_ms" => |f| f.deadline_in_ms;
    "tries_failed" => |f| u64::from(f.tries_failed);
    "hour" => |f| u64::from(f.hour.of_day);
    "minute" => |f| u64::from(f.hour.minute);
    "weekday" => |f| u64::from(f.hour.weekday);
}

kind! { Worker: WorkerLoad<'a>,
    "model" => |f| f.model;
    "quantization" => |f| f.quantization;
    "backend" => |f| f.backend;
    "devices" => |f| f.devices;
    "gpus" => |f| Gpus(f.devices);
    "pool" => |f| f.pool;
    "slots" => |f| u64::from(f.slots);
    "slots_free" => |f| u64::from(f.slots_free);
    "context_length" => |f| u64::from(f.context_length);
    "free_memory_bytes" => |f| f.free_memory_bytes;
    "memory_bytes" => |f| f.memory_bytes;
    "prefix_share" => |f| f.prefix_share;
    "session_here" => |f| f.session_here;
    "idle_ms" => |f| f.idle_ms;
    "labels" => |f| f.labels;
    "hour" => |f| u64::from(f.hour.of_day);
    "minute" => |f| u64::from(f.hour.minute);
    "weekday" => |f| u64::from(f.hour.weekday);
}

kind! { Queue: QueueFacts,
    "waiting" => |f| f.waiting;
    "before" => |f| f.before;
    "capacity" => |f| f.capacity;
    "model_waiting" => |f| f.model_waiting;
    "workers" => |f| f.workers;
    "tenant_waiting" => |f| f.tenant_waiting;
    "tenant_running" => |f| f.tenant_running;
}

kind! { Failure: FailureFacts<'a>,
    "code" => |f| f.code;
    "workers_lost" => |f| f.workers_lost;
    "attempts" => |f| u64::from(f.attempts);
}

const fn word(priority: Priority) -> &'static str {
    match priority {
        Priority::Interactive => "interactive",
        Priority::Batch => "batch",
    }
}

/// Every field of every kind, as `job.model`.
pub(crate) fn all() -> Vec<String> {
    fn of<K: Kind>() -> impl Iterator<Item = String> {
        K::FIELDS.iter().map(|field| format!("{}.{}", K::NAME.to_ascii_lowercase(), field.name))
    }
    of::<Job>().chain(of::<Queue>()).chain(of::<Worker>()).chain(of::<Failure>()).collect()
}

/// Lets scripts read fields by name. There is nothing to write them with.
pub(crate) fn register(engine: &mut Engine) {
    register_kind::<Job>(engine);
    register_kind::<Queue>(engine);
    register_kind::<Worker>(engine);
    register_kind::<Failure>(engine);
}

fn register_kind<K: Kind>(engine: &mut Engine) {
    engine.register_type_with_name::<View<K>>(K::NAME);
    for (place, field) in K::FIELDS.iter().enumerate() {
        engine.register_get(field.name, move |view: &mut View<K>| {
            view.0.get(place).cloned().unwrap_or(Dynamic::UNIT)
        });
    }
}

/// One field's value, for a script and as part of a key.
trait Fact {
    fn value(&self) -> Dynamic;
    fn key(&self, key: &mut Vec<u8>);
}

impl Fact for u64 {
    fn value(&self) -> Dynamic {
        i64::try_from(*self).unwrap_or(i64::MAX).into()
    }

    fn key(&self, key: &mut Vec<u8>) {
        key.extend(self.to_le_bytes());
    }
}

impl Fact for f64 {
    fn value(&self) -> Dynamic {
        (*self).into()
    }

    fn key(&self, key: &mut Vec<u8>) {
        key.extend(self.to_bits().to_le_bytes());
    }
}

impl Fact for bool {
    fn value(&self) -> Dynamic {
        (*self).into()
    }

    fn key(&self, key: &mut Vec<u8>) {
        key.push(u8::from(*self));
    }
}

impl Fact for &str {
    fn value(&self) -> Dynamic {
        (*self).into()
    }

    fn key(&self, key: &mut Vec<u8>) {
        (self.len() as u64).key(key);
        key.extend(self.as_bytes());
    }
}

/// Absent is `()`.
impl<T: Fact> Fact for Option<T> {
    fn value(&self) -> Dynamic {
        self.as_ref().map_or(Dynamic::UNIT, Fact::value)
    }

    fn key(&self, key: &mut Vec<u8>) {
        self.is_some().key(key);
        if let Some(value) = self {
            value.key(key);
        }
    }
}

impl Fact for &[String] {
    fn value(&self) -> Dynamic {
        self.iter().map(|text| text.as_str().into()).collect::<Array>().into()
    }

    fn key(&self, key: &mut Vec<u8>) {
        (self.len() as u64).key(key);
        self.iter().for_each(|text| text.as_str().key(key));
    }
}

/// The numbers of the cards among devices such as `CUDA0 (NVIDIA GeForce RTX 3060)`.
struct Gpus<'a>(&'a [String]);

impl Gpus<'_> {
    fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().filter_map(|device| {
            let name = device.split_whitespace().next()?;
            let number = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
            number.parse().ok()
        })
    }
}

impl Fact for Gpus<'_> {
    fn value(&self) -> Dynamic {
        self.numbers().map(|number| number.value()).collect::<Array>().into()
    }

    fn key(&self, key: &mut Vec<u8>) {
        self.0.key(key);
    }
}

impl Fact for Labels<'_> {
    fn value(&self) -> Dynamic {
        let value = |label: &Label| match label {
            Label::Flag(flag) => Dynamic::from(*flag),
            Label::Integer(number) => Dynamic::from(*number),
            Label::Decimal(number) => Dynamic::from(*number),
            Label::Text(text) => text.as_str().into(),
        };
        self.all().into_iter().map(|(name, label)| (name.into(), value(label))).collect::<Map>().into()
    }

    fn key(&self, key: &mut Vec<u8>) {
        let all = self.all();
        (all.len() as u64).key(key);
        for (name, label) in all {
            name.key(key);
            match label {
                Label::Flag(flag) => (0, u64::from(*flag)),
                Label::Integer(number) => (1, number.cast_unsigned()),
                Label::Decimal(number) => (2, number.to_bits()),
                Label::Text(text) => (3, text.len() as u64),
            }
            .key(key);
            if let Label::Text(text) = label {
                key.extend(text.as_bytes());
            }
        }
    }
}

impl Fact for (u8, u64) {
    fn value(&self) -> Dynamic {
        self.1.value()
    }

    fn key(&self, key: &mut Vec<u8>) {
        key.push(self.0);
        self.1.key(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_known_by_the_engines_numbers() {
        let devices =
            ["CUDA1 (NVIDIA GeForce RTX 3060)", "Vulkan0", "CPU", "fake"].map(str::to_owned).to_vec();
        assert_eq!(Gpus(&devices).numbers().collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn a_field_is_named_by_the_word_alone() {
        let named = Named::<Worker>::of("fn score(job, worker) { worker.slots_free * 2 }");
        let fields = Worker::FIELDS.iter().zip(&named.0);
        let names: Vec<_> = fields.filter(|(_, named)| **named).map(|(field, _)| field.name).collect();
        assert_eq!(names, ["slots_free"]);
    }

    #[test]
    fn keys_tell_texts_apart_wherever_they_are_cut() {
        let key = |pool: Option<&str>, backend: &str| {
            let load = WorkerLoad { pool, backend, ..WorkerLoad::default() };
            let mut key = Vec::new();
            Named::<Worker>::of("backend pool").write_key(&load, &mut key);
            key
        };
        assert_ne!(key(Some("a"), "bc"), key(Some("ab"), "c"));
        assert_ne!(key(None, "a"), key(Some(""), "a"));
        assert_eq!(key(Some("a"), "b"), key(Some("a"), "b"));
    }
}
