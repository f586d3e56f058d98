//! The configuration as a file of it would say it.

use super::keys::Kind;
use super::layers::{Layers, Set};

impl Layers {
    /// Every key with its meaning and its value, as TOML that reads back to the same; with `origins`
    /// also where each value was set.
    pub fn shown(&self, origins: bool) -> String {
        let mut text = String::new();
        let mut show = |help: Option<&str>, name: &str, kind: Kind, set: &Set| {
            text += &help.map_or_else(String::new, |help| format!("# {help}\n"));
            text += &format!("{name} = {}\n", value(kind, &set.text));
            if origins {
                text += &format!("#   from {}\n", set.origin);
            }
        };
        for (key, set) in self.all() {
            show(Some(key.help), key.name, key.kind, &set);
        }
        for (name, set) in self.tenant_quotas() {
            show(None, &name, Kind::Number(i64::MIN, i64::MAX), set);
        }
        text
    }
}

/// A value that its key takes, as it stands in a file.
fn value(kind: Kind, text: &str) -> String {
    match kind {
        Kind::Number(..) => text.parse::<i64>().unwrap_or_default().to_string(),
        Kind::Text | Kind::OneOf(_) => quoted(text),
        Kind::List => {
            let items: Vec<String> = text.split(',').filter(|item| !item.is_empty()).map(quoted).collect();
            format!("[{}]", items.join(", "))
        }
    }
}

/// JSON's escapes are TOML's; DEL needs one in TOML only.
fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    api_types::json::write_string(&mut out, text);
    String::from_utf8_lossy(&out).replace('\u{7f}', "\\u007f")
}
