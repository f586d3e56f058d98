//! `rbees.toml`: the orchestrator's address, the token file, the pools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api_types::{ErrorDetail, PoolId};
use serde::{Deserialize, Serialize};

use crate::detail;

/// The operator's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the orchestrator.
    pub endpoint: Option<String>,
    /// File that holds the API key.
    pub token_file: Option<PathBuf>,
    /// The pools by name.
    #[serde(default)]
    pub pools: BTreeMap<PoolId, PoolConfig>,
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// `[user@]host`, or an alias of the SSH configuration.
    pub address: String,
    /// A checkout on that machine whose build is preferred, `/…` or `~/…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo_dir: Option<String>,
    /// How it is reached.
    #[serde(default, skip_serializing_if = "Transport::is_default")]
    pub transport: Transport,
}

/// How a pool is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Through the user's own OpenSSH.
    #[default]
    Ssh,
}

impl Transport {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Config {
    /// Reads `path`; a file that is not there is an empty one unless somebody named it.
    pub fn read(path: &Path, named: bool) -> Result<Self, ErrorDetail> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => Ok(Self::default()),
            Err(error) => Err(detail::file("read", path, &error)),
        }
    }

    /// Reads the text of `path`, which is named in errors together with the line.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ErrorDetail> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            detail::config(format!("{}:{line}: {}", path.display(), error.message())).with_hint(
                "allowed are endpoint, token_file, and [pools.NAME] with address, repo_dir, transport",
            )
        })
    }

    /// The pool of this name or address; `mac` and `mac.home.arpa` may be one.
    pub fn pool(&self, name: &str) -> Option<(&PoolId, &PoolConfig)> {
        let host = |address: &str| address.rsplit_once('@').map_or(address, |(_, host)| host).to_owned();
        self.pools.iter().find(|(id, _)| id.as_str() == name).or_else(|| {
            self.pools.iter().find(|(_, pool)| pool.address == name || host(&pool.address) == name)
        })
    }
}

/// Adds a pool at the end of the text, which keeps everybody's comments.
pub fn with_pool(text: &str, id: &PoolId, pool: &PoolConfig) -> Result<String, ErrorDetail> {
    let table = toml::to_string(pool).map_err(|error| detail::internal(error.to_string()))?;
    let gap = if text.is_empty() || text.ends_with("\n\n") { "" } else { "\n" };
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    Ok(format!("{text}{end}{gap}[pools.{}]\n{table}", quoted(id)))
}

/// Takes a pool's table out of the text; `None` when it is not there in that form.
pub fn without_pool(text: &str, id: &PoolId) -> Option<String> {
    let headings = [format!("[pools.{}]", quoted(id)), format!("[pools.{id}]")];
    let mut kept = String::new();
    let (mut inside, mut found) = (false, false);
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        if trimmed.starts_with('[') {
            inside = headings.iter().any(|heading| trimmed == heading);
            found |= inside;
        }
        if !inside {
            kept.push_str(line);
        }
    }
    found.then_some(kept)
}

/// A pool id as a TOML key: dots would nest.
fn quoted(id: &PoolId) -> String {
    if id.as_str().contains('.') { format!("\"{id}\"") } else { id.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ErrorDetail> {
        Config::parse(text, Path::new("rbees.toml"))
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_and_line() {
        let error = parse("endpoint = \"http://x\"\n\nprot = 1\n").expect_err("unknown");
        assert!(
            error.message.starts_with("rbees.toml:3: ") && error.message.contains("prot"),
            "{}",
            error.message
        );
        let error = parse("[pools.mac]\naddress = 7\n").expect_err("wrong type");
        assert!(error.message.starts_with("rbees.toml:2: "), "{}", error.message);
    }

    #[test]
    fn a_pool_is_found_by_name_and_by_address() {
        let config = parse("[pools.mac]\naddress = \"me@mac.home.arpa\"\n").expect("fine");
        for name in ["mac", "mac.home.arpa", "me@mac.home.arpa"] {
            assert_eq!(config.pool(name).expect(name).0.as_str(), "mac");
        }
        assert!(config.pool("other").is_none());
    }

    #[test]
    fn adding_and_removing_a_pool_keeps_the_rest() {
        let text = "# mine\nendpoint = \"http://x\"\n";
        for name in ["mac", "mac.home.arpa"] {
            let id: PoolId = name.parse().expect("an id");
            let pool = PoolConfig {
                address: "me@mac".into(),
                repo_dir: Some("~/r".into()),
                transport: Transport::Ssh,
            };
            let with = with_pool(text, &id, &pool).expect("written");
            assert!(with.starts_with(text));
            assert_eq!(parse(&with).expect("fine").pools.get(&id), Some(&pool));
            assert_eq!(without_pool(&with, &id).expect("there").trim_end(), text.trim_end());
            assert_eq!(without_pool(text, &id), None);
        }
    }
}
