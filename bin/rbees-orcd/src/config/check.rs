//! From texts to a configuration: the checks that need more than one value or the file system.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use orchestrator_core::policy::{Label, PolicyText};
use orchestrator_core::settings::LabelBook;
use orchestrator_core::{RetrySettings, SessionSettings, Settings, SupplySettings};

use super::layers::{Layers, Origin, Problem};
use super::{Config, Limits, Token, full_policy};
use crate::clock::Wall;
use crate::driver::Keeping;
use crate::relay::StallLimits;

/// Shortest token that is worth the name.
const MIN_TOKEN: usize = 16;

/// Everything that can be had; what is wrong goes to `problems`.
pub(super) fn assemble(layers: &Layers, problems: &mut Vec<Problem>) -> Option<Config> {
    let bind = bind(layers, problems);
    let home = home(layers, problems);
    let token = token(layers, problems);
    problems.extend(layers.zero_quotas());
    if let Some(bind) = bind {
        exposure(layers, bind, token.is_some(), problems);
    }
    Some(Config {
        bind: bind?,
        home: home?,
        allowed_hosts: list(layers, "allowed_hosts"),
        token,
        url: Some(layers.get("url").text).filter(|url| !url.is_empty()),
        limits: Limits {
            body_bytes: usize::try_from(number(layers, "body_limit_bytes")).unwrap_or(usize::MAX),
            connections: usize::try_from(number(layers, "max_connections")).unwrap_or(usize::MAX),
            header_time: milliseconds(layers, "header_timeout_ms"),
            body_time: milliseconds(layers, "body_timeout_ms"),
            silent_time: milliseconds(layers, "silent_client_ms"),
        },
        settings: Settings {
            queue_capacity: layers.get("queue_capacity").text.parse().ok(),
            full_policy: full_policy(&layers.get("full_policy").text),
            job_time_limit_ms: number(layers, "job_time_limit_ms"),
            supply: supply(layers, problems),
            retry: retry(layers, problems),
            protocol_errors_allowed: small(layers, "protocol_errors_allowed"),
            quarantine_ms: number(layers, "quarantine_ms"),
            batch_ageing_ms: number(layers, "batch_ageing_ms"),
            aged_share: small(layers, "batch_aged_share"),
            quotas: layers.quotas(),
            sessions: SessionSettings {
                ttl_ms: number(layers, "session_ttl_ms"),
                token_budget: layers.get("session_token_budget").text.parse().ok(),
                capacity: usize::try_from(number(layers, "session_capacity")).unwrap_or(usize::MAX),
            },
            utc_offset_minutes: layers.get("utc_offset_minutes").text.parse().unwrap_or_default(),
            labels: LabelBook {
                pools: labels(layers, "pool_labels", problems),
                workers: labels(layers, "worker_labels", problems),
            },
            ..Settings::default()
        },
        policy: policy_file(layers, problems),
        stalls: StallLimits {
            first_token: milliseconds(layers, "first_token_timeout_ms"),
            between_events: milliseconds(layers, "stall_timeout_ms"),
        },
        keeping: Keeping {
            retention: Duration::from_secs(number(layers, "retention_hours") * 3_600),
            prompts: layers.get("keep_prompts").text == "on",
            journal_snapshot_bytes: number(layers, "journal_snapshot_bytes"),
        },
        pool_interval: milliseconds(layers, "pool_interval_ms"),
        wall: Wall::default(),
    })
}

fn bind(layers: &Layers, problems: &mut Vec<Problem>) -> Option<SocketAddr> {
    let set = layers.get("bind");
    let found = set.text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    if found.is_none() {
        let message = format!("bind is {:?}; allowed is ADDRESS:PORT, for example 127.0.0.1:8080", set.text);
        problems.push(Problem { origin: set.origin, message });
    }
    found
}

fn home(layers: &Layers, problems: &mut Vec<Problem>) -> Option<PathBuf> {
    let set = layers.get("home");
    if !set.text.is_empty() {
        return Some(PathBuf::from(set.text));
    }
    let data = etcetera::choose_base_strategy().map(|strategy| etcetera::BaseStrategy::data_dir(&strategy));
    match data {
        Ok(data) => Some(data.join("rbees")),
        Err(_) => {
            let message = "there is no home directory; give --home DIR or set RBEES_HOME".to_owned();
            problems.push(Problem { origin: set.origin, message });
            None
        }
    }
}

fn token(layers: &Layers, problems: &mut Vec<Problem>) -> Option<Token> {
    let set = layers.get("token_file");
    if set.text.is_empty() {
        return None;
    }
    let message = match std::fs::read_to_string(&set.text) {
        Ok(text) if is_token(text.trim()) => return Some(Token(text.trim().to_owned())),
        Ok(_) => format!(
            "token_file {} holds no token of at least {MIN_TOKEN} printable ASCII characters without a space",
            set.text
        ),
        Err(error) => format!("token_file {} cannot be read: {error}", set.text),
    };
    problems.push(Problem { origin: set.origin, message });
    None
}

/// What fits into a header, and cannot be guessed soon.
fn is_token(text: &str) -> bool {
    text.len() >= MIN_TOKEN && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Other machines may only reach us with a credential, and never over an open line by accident.
fn exposure(layers: &Layers, bind: SocketAddr, has_token: bool, problems: &mut Vec<Problem>) {
    if bind.ip().is_loopback() {
        return;
    }
    let origin: Origin = layers.get("bind").origin;
    if !has_token {
        let message = format!(
            "bind {bind} can be reached from other machines and no credential is set; \
             set token_file, or bind to 127.0.0.1"
        );
        problems.push(Problem { origin: origin.clone(), message });
    }
    if layers.get("tls").text != "terminated-by-proxy" {
        let message = format!(
            "bind {bind} can be reached from other machines without TLS; put a proxy with TLS in front and \
             set tls = \"terminated-by-proxy\", or bind to 127.0.0.1"
        );
        problems.push(Problem { origin, message });
    }
}

/// When workers are made and taken away.
fn supply(layers: &Layers, problems: &mut Vec<Problem>) -> SupplySettings {
    let settings = SupplySettings {
        on_demand: layers.get("spawn_on_demand").text == "on",
        keep_alive_ms: keep_alive(&layers.get("keep_alive_ms").text).unwrap_or_default(),
        keep_alive_of: keep_alive_of(layers, problems),
        pinned: list(layers, "pinned_models").into_iter().collect(),
        min_residency_ms: number(layers, "min_residency_ms"),
        swap_patience_ms: number(layers, "swap_patience_ms"),
        spawn_tries: small(layers, "spawn_tries"),
        backoff_first_ms: number(layers, "spawn_backoff_first_ms"),
        backoff_max_ms: number(layers, "spawn_backoff_max_ms"),
        spawn_timeout_ms: number(layers, "spawn_timeout_ms"),
        stop_timeout_ms: number(layers, "stop_timeout_ms"),
    };
    not_above(layers, "spawn_backoff_first_ms", "spawn_backoff_max_ms", problems);
    if settings.min_residency_ms > settings.swap_patience_ms {
        let message = format!(
            "min_residency_ms is {} and swap_patience_ms {}; it may be at most as long",
            settings.min_residency_ms, settings.swap_patience_ms
        );
        problems.push(Problem { origin: layers.get("min_residency_ms").origin, message });
    }
    settings
}

/// How jobs are tried again.
fn retry(layers: &Layers, problems: &mut Vec<Problem>) -> RetrySettings {
    not_above(layers, "retry_backoff_first_ms", "retry_backoff_max_ms", problems);
    RetrySettings {
        attempts: small(layers, "retry_attempts"),
        backoff_first_ms: number(layers, "retry_backoff_first_ms"),
        backoff_max_ms: number(layers, "retry_backoff_max_ms"),
        poison_after: usize::try_from(number(layers, "retry_poison_after")).unwrap_or(usize::MAX),
        budget: number(layers, "retry_budget"),
        budget_percent: number(layers, "retry_budget_percent"),
    }
}

/// The first pause of a row that doubles may not be longer than the longest.
fn not_above(layers: &Layers, first: &str, most: &str, problems: &mut Vec<Problem>) {
    let (low, high) = (number(layers, first), number(layers, most));
    if low > high {
        let message = format!("{first} is {low} and {most} is {high}; the first may be at most as long");
        problems.push(Problem { origin: layers.get(first).origin, message });
    }
}

/// The policy of the configured file, if one is.
fn policy_file(layers: &Layers, problems: &mut Vec<Problem>) -> Option<PolicyText> {
    let set = layers.get("policy_file");
    if set.text.is_empty() {
        return None;
    }
    match crate::policy::read(Path::new(&set.text)) {
        Ok(text) => Some(text),
        Err(error) => {
            problems.push(Problem { origin: set.origin, message: format!("policy_file {error}") });
            None
        }
    }
}

/// Labels by the id of a pool or worker.
fn labels<K: FromStr + Ord>(
    layers: &Layers,
    key: &str,
    problems: &mut Vec<Problem>,
) -> BTreeMap<K, BTreeMap<String, Label>> {
    let mut book: BTreeMap<K, BTreeMap<String, Label>> = BTreeMap::new();
    for item in list(layers, key) {
        match label(&item) {
            Some((id, name, value)) => drop(book.entry(id).or_default().insert(name, value)),
            None => problems.push(Problem {
                origin: layers.get(key).origin,
                message: format!(
                    "{key} holds {item:?}; allowed is ID:NAME=VALUE, with a number, true, false or a text"
                ),
            }),
        }
    }
    book
}

fn label<K: FromStr>(item: &str) -> Option<(K, String, Label)> {
    let (id, rest) = item.split_once(':')?;
    let (name, value) = rest.split_once('=')?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let number = value.parse::<f64>().ok().filter(|number| number.is_finite());
    let label = if let Ok(flag) = value.parse() {
        Label::Flag(flag)
    } else if let Ok(whole) = value.parse() {
        Label::Integer(whole)
    } else {
        number.map_or_else(|| Label::Text(value.to_owned()), Label::Decimal)
    };
    is_name.then_some(())?;
    Some((id.parse().ok()?, name.to_owned(), label))
}

fn keep_alive_of(layers: &Layers, problems: &mut Vec<Problem>) -> BTreeMap<String, Option<u64>> {
    let mut times = BTreeMap::new();
    for item in list(layers, "keep_alive_models") {
        let parsed = item.split_once('=').and_then(|(model, text)| Some((model, keep_alive(text)?)));
        match parsed {
            Some((model, time)) => drop(times.insert(model.to_owned(), time)),
            None => problems.push(Problem {
                origin: layers.get("keep_alive_models").origin,
                message: format!(
                    "keep_alive_models holds {item:?}; allowed is MODEL=MILLISECONDS, with -1 for never"
                ),
            }),
        }
    }
    times
}

/// Milliseconds, or `Some(None)` for never.
fn keep_alive(text: &str) -> Option<Option<u64>> {
    if text == "-1" { Some(None) } else { text.parse().ok().map(Some) }
}

fn list(layers: &Layers, name: &str) -> Vec<String> {
    let text = layers.get(name).text;
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// A number that the layers have checked; 0 never gets here.
fn number(layers: &Layers, name: &str) -> u64 {
    layers.get(name).text.parse().unwrap_or(0)
}

/// As [`number`], for what is never near four thousand million.
fn small(layers: &Layers, name: &str) -> u32 {
    u32::try_from(number(layers, name)).unwrap_or(u32::MAX)
}

fn milliseconds(layers: &Layers, name: &str) -> Duration {
    Duration::from_millis(number(layers, name))
}
