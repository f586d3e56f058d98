//! Where each value comes from: every layer is read whole, every problem is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{KEYS, Key, Kind, find, nearest};
use super::quotas::{self, TenantQuotas};

/// Name of the file in a configuration folder.
const FILE_NAME: &str = "orchestrator.toml";

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In this file, on this line.
    File(PathBuf, usize),
    /// In the environment, under this name.
    Environment(String),
    /// On the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

/// A value with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The value, as it would stand in the environment.
    pub text: String,
    /// Where it was set.
    pub origin: Origin,
}

/// All values with their origins, and what was wrong with the layers.
#[derive(Debug, Clone)]
pub struct Layers {
    values: BTreeMap<&'static str, Set>,
    pub(super) tenant_quotas: TenantQuotas,
    problems: Vec<Problem>,
}

impl Layers {
    /// Nothing but the defaults.
    pub fn defaults() -> Self {
        let default = |key: &Key| (key.name, Set { text: key.default.to_owned(), origin: Origin::Default });
        Self {
            values: KEYS.iter().map(default).collect(),
            tenant_quotas: TenantQuotas::new(),
            problems: Vec::new(),
        }
    }

    /// Reads the files where they are looked for, then `explicit` (which has to be there), then
    /// the environment.
    pub fn read(explicit: Option<&Path>, environment: impl Fn(&str) -> Option<String>) -> Self {
        let mut layers = Self::defaults();
        layers.read_file_if_there(&Path::new("/etc/rbees").join(FILE_NAME));
        let user = environment("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| environment("HOME").map(|home| Path::new(&home).join(".config")));
        if let Some(user) = user {
            layers.read_file_if_there(&user.join("rbees").join(FILE_NAME));
        }
        if let Some(path) = explicit {
            layers.read_file(path);
        }
        for key in KEYS {
            let name = format!("RBEES_{}", key.name.replace('.', "_").to_ascii_uppercase());
            if let Some(text) = environment(&name) {
                layers.set(key, text, Origin::Environment(name));
            }
        }
        layers
    }

    /// Sets a value as a flag of the command line does.
    pub fn set_flag(&mut self, name: &'static str, text: &str) {
        if let Some(key) = find(name) {
            self.set(key, text.to_owned(), Origin::Flag(name.to_owned()));
        }
    }

    /// What was wrong.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// A value; every known key has one.
    pub fn get(&self, name: &str) -> Set {
        let missing = || Set { text: String::new(), origin: Origin::Default };
        self.values.get(name).cloned().unwrap_or_else(missing)
    }

    /// Every key with its meaning and its value.
    pub fn all(&self) -> impl Iterator<Item = (&'static Key, Set)> {
        KEYS.iter().map(|key| (key, self.get(key.name)))
    }

    fn read_file_if_there(&mut self, path: &Path) {
        if path.exists() {
            self.read_file(path);
        }
    }

    fn read_file(&mut self, path: &Path) {
        let origin = |line| Origin::File(path.to_owned(), line);
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return self.problem(origin(0), format!("the file cannot be read: {error}")),
        };
        match DeTable::parse(&text) {
            Ok(table) => self.take_table(table.get_ref(), &text, path),
            Err(error) => {
                let line = error.span().map_or(0, |span| line_of(&text, span.start));
                self.problem(origin(line), format!("this is not TOML: {}", error.message()));
            }
        }
    }

    fn take_table(&mut self, table: &DeTable<'_>, text: &str, path: &Path) {
        // Tables come sorted by name; people read from the top.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let origin_of = |span: Range<usize>| Origin::File(path.to_owned(), line_of(text, span.start));
            let origin = origin_of(name.span());
            if name.get_ref() == quotas::TABLE {
                self.take_quotas(value.get_ref(), &origin_of);
                continue;
            }
            let Some(key) = find(name.get_ref()) else {
                self.problem(origin, unknown_key(name.get_ref()));
                continue;
            };
            match as_text(key, value) {
                Some(text) => self.set(key, text, origin),
                None => self.problem(origin, format!("{} has the wrong type; {}", key.name, key.allowed())),
            }
        }
    }

    fn set(&mut self, key: &'static Key, text: String, origin: Origin) {
        if key.kind.takes(&text) {
            self.put(key, Set { text, origin });
        } else {
            self.problem(origin, format!("{} is {text:?}; {}", key.name, key.allowed()));
        }
    }

    /// Keeps a value that its key takes.
    pub(super) fn put(&mut self, key: &'static Key, set: Set) {
        self.values.insert(key.name, set);
    }

    pub(super) fn problem(&mut self, origin: Origin, message: String) {
        self.problems.push(Problem { origin, message });
    }
}

fn unknown_key(name: &str) -> String {
    match nearest(name) {
        Some(near) => format!("unknown key `{name}`; did you mean `{near}`?"),
        None => {
            let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
            format!("unknown key `{name}`; known are {}", names.join(", "))
        }
    }
}

/// A value of a file as it would stand in the environment; `None` when it is of another type.
pub(super) fn as_text(key: &Key, value: &Spanned<DeValue<'_>>) -> Option<String> {
    match (key.kind, value.get_ref()) {
        (Kind::Text | Kind::OneOf(_), DeValue::String(text)) => Some(text.to_string()),
        (Kind::Number(..), DeValue::Integer(number)) if number.radix() == 10 => {
            Some(number.as_str().replace('_', ""))
        }
        (Kind::List, DeValue::Array(items)) => {
            let texts: Option<Vec<&str>> = items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) if !text.contains(',') => Some(text.as_ref()),
                    _ => None,
                })
                .collect();
            texts.map(|texts| texts.join(","))
        }
        _ => None,
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}
