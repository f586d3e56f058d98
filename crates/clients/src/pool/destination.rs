//! Names that go onto a command line of ssh, checked before ssh is started.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use api_types::{ErrorCode, ErrorDetail};

const MAX_HOST_BYTES: usize = 253;
const MAX_USER_BYTES: usize = 32;
const ALLOWED: &str = "allowed is [user@]host: letters, digits, `.`, `_` and `-`, not starting with `-` or `.`, or an IPv6 address";

/// `[user@]host` as ssh takes it: a name, an alias of the ssh configuration or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination(String);

impl Destination {
    /// The destination as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host without the user.
    pub fn host(&self) -> &str {
        self.0.rsplit_once('@').map_or(&self.0, |(_, host)| host)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Destination {
    type Err = ErrorDetail;

    fn from_str(text: &str) -> Result<Self, ErrorDetail> {
        let (user, host) = match text.split_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, text),
        };
        if user.is_some_and(|user| !is_name(user, MAX_USER_BYTES)) {
            return Err(invalid(text));
        }
        let host = bare_ipv6(host).or_else(|| is_name(host, MAX_HOST_BYTES).then(|| host.to_owned()));
        let host = host.ok_or_else(|| invalid(text))?;
        Ok(Self(user.map_or_else(|| host.clone(), |user| format!("{user}@{host}"))))
    }
}

/// An IPv6 address, brackets dropped.
fn bare_ipv6(host: &str) -> Option<String> {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    inner.parse::<Ipv6Addr>().ok().map(|address| address.to_string())
}

fn is_name(text: &str, max: usize) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= max
        && bytes.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

fn invalid(text: &str) -> ErrorDetail {
    let shown: String = text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    ErrorDetail::new(ErrorCode::InvalidHost, format!("`{shown}` is not a host name; {ALLOWED}"))
        .with_field("host")
        .with_hint("give ports, keys and jump hosts an alias in ~/.ssh/config and use the alias")
}

/// A folder on another machine: absolute, or below the home folder as `~/…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoDir(String);

impl RepoDir {
    /// The folder as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepoDir {
    type Err = ErrorDetail;

    fn from_str(text: &str) -> Result<Self, ErrorDetail> {
        let absolute = text.starts_with('/') || text.starts_with("~/");
        if absolute && text.len() <= 4096 && !text.chars().any(char::is_control) {
            return Ok(Self(text.to_owned()));
        }
        Err(ErrorDetail::new(
            ErrorCode::InvalidConfig,
            "repo_dir must be a path that starts with `/` or `~/`, without control characters",
        )
        .with_field("repo_dir"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_destinations_are_taken() {
        for (text, kept) in [
            ("mac", "mac"),
            ("mac.home.arpa", "mac.home.arpa"),
            ("me@box_1", "me@box_1"),
            ("192.0.2.7", "192.0.2.7"),
            ("[::1]", "::1"),
            ("fe80::1", "fe80::1"),
        ] {
            assert_eq!(text.parse::<Destination>().expect(text).as_str(), kept);
        }
    }

    #[test]
    fn what_ssh_or_a_shell_could_misread_is_refused() {
        let long = "a".repeat(300);
        for text in [
            "",
            "-oProxyCommand=id",
            "-F/etc/passwd",
            "--",
            "-",
            "a b",
            "a;id",
            "a$(id)",
            "a`id`",
            "a\nb",
            "a|b",
            "a&b",
            "a>b",
            "%h",
            "a%h",
            "user@-x",
            "-u@host",
            "@host",
            "user@",
            "u@h@i",
            "$USER@h",
            "a\\b@h",
            "a'b",
            "a\"b",
            "*",
            "m\u{fc}nchen",
            "host:22",
            "ssh://host",
            "../x",
            ".x",
            "a/b",
            "[::1",
            "::1%eth0",
            "a\0b",
            &long,
        ] {
            let error = text.parse::<Destination>().expect_err(text);
            assert_eq!(error.code, ErrorCode::InvalidHost, "{text}");
        }
    }

    #[test]
    fn a_repo_dir_is_absolute() {
        assert!("/srv/rbees".parse::<RepoDir>().is_ok());
        assert!("~/Projects/it's here".parse::<RepoDir>().is_ok());
        for text in ["", "-", "x", "~root/x", "/a\nb"] {
            assert!(text.parse::<RepoDir>().is_err(), "{text:?}");
        }
    }
}
