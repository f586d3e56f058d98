//! What the end of an ssh process means. ssh gives 255 for every failure of its own, so the words
//! on its standard error decide.

use api_types::{ErrorCode, ErrorDetail};
use serde_json::json;

use super::{Destination, RepoDir};

/// What is known once ssh has ended.
pub(super) struct Diagnosis<'a> {
    pub(super) destination: &'a Destination,
    pub(super) repo_dir: Option<&'a RepoDir>,
    /// Whether the remote side got as far as starting `rbees-pool`.
    pub(super) greeted: bool,
    /// The end of standard error.
    pub(super) said: &'a str,
}

/// The exit code of `rbees-pool`, or why it has none.
pub(super) fn diagnose(code: Option<i32>, seen: &Diagnosis<'_>) -> Result<u8, ErrorDetail> {
    match code.map(u8::try_from) {
        Some(Ok(code)) if code != 255 && seen.greeted => Ok(code),
        Some(Ok(126)) => Err(seen.repo_dir_missing()),
        Some(Ok(127)) => Err(seen.binary_missing()),
        _ if seen.greeted => Err(seen.lost()),
        _ => Err(seen.refused()),
    }
}

/// Words of ssh, the stable reason they stand for, and what to do about it.
const CAUSES: &[(&str, &str, &str)] = &[
    ("could not resolve", "name", "check the name, or give it an alias in ~/.ssh/config"),
    ("connection refused", "refused", "start the SSH server there, or name its port in ~/.ssh/config"),
    ("no route to host", "route", "check that the machine is on and in this network"),
    ("network is unreachable", "route", "check that the machine is on and in this network"),
    ("timed out", "route", "check that the machine is on and in this network"),
    ("host is down", "route", "check that the machine is on and in this network"),
    (
        "permission denied",
        "auth",
        "let ssh log in without a password: ssh-copy-id HOST, and ssh-add for a key with a passphrase",
    ),
    (
        "too many authentication failures",
        "auth",
        "name the right key as IdentityFile in ~/.ssh/config, with IdentitiesOnly yes",
    ),
    ("bad configuration option", "config", "mend the ssh configuration file"),
    ("bad owner or permissions", "config", "mend the ssh configuration file: chmod 600 ~/.ssh/config"),
];

impl Diagnosis<'_> {
    fn refused(&self) -> ErrorDetail {
        let lower = self.said.to_ascii_lowercase();
        if lower.contains("identification has changed") {
            return self.key_changed();
        }
        if lower.contains("host key verification failed") || lower.contains("host key is known for") {
            return self.key_unknown();
        }
        let cause = CAUSES.iter().find(|(words, _, _)| lower.contains(words));
        let (reason, hint) =
            cause.map_or(("other", "try it by hand: ssh HOST true"), |(_, reason, hint)| (reason, hint));
        self.failed(
            reason,
            &format!("{} cannot be reached over SSH: {}", self.destination, self.last_line()),
            hint,
        )
    }

    fn lost(&self) -> ErrorDetail {
        let message = format!("the SSH connection to {} was lost while the command ran", self.destination);
        self.failed("lost", &message, "run the same command again; downloads go on where they stopped")
    }

    fn failed(&self, reason: &str, message: &str, hint: &str) -> ErrorDetail {
        ErrorDetail::new(ErrorCode::SshFailed, message)
            .with_details(json!({ "reason": reason, "host": self.destination.as_str() }))
            .with_hint(hint.replace("HOST", self.destination.as_str()))
    }

    fn key_changed(&self) -> ErrorDetail {
        let message = format!(
            "the SSH host key of {} is not the one that is known; the machine was set up anew, or somebody stands between",
            self.destination
        );
        let hint = format!(
            "ask the machine for its key's fingerprint on another way; only if it is right: ssh-keygen -R {}",
            self.destination.host()
        );
        ErrorDetail::new(ErrorCode::HostKeyChanged, message).with_hint(hint)
    }

    fn key_unknown(&self) -> ErrorDetail {
        let message =
            format!("the SSH host key of {} is not known yet, and is not accepted unseen", self.destination);
        let hint = format!("connect once by hand and compare the fingerprint: ssh {}", self.destination);
        ErrorDetail::new(ErrorCode::HostKeyUnknown, message).with_hint(hint)
    }

    fn binary_missing(&self) -> ErrorDetail {
        let message = format!(
            "rbees-pool was not found on {}: not in a build of repo_dir, not in ~/.local/bin, not on its PATH",
            self.destination
        );
        ErrorDetail::new(ErrorCode::RemoteBinaryMissing, message)
            .with_hint(format!("scp rbees-pool rbees-workerd {}:.local/bin/", self.destination))
    }

    fn repo_dir_missing(&self) -> ErrorDetail {
        let dir = self.repo_dir.map_or("", RepoDir::as_str);
        let message = format!("the pool's repo_dir `{dir}` does not exist on {}", self.destination);
        ErrorDetail::new(ErrorCode::InvalidConfig, message)
            .with_field("repo_dir")
            .with_hint("correct repo_dir of this pool in rbees.toml, or leave it out")
    }

    fn last_line(&self) -> String {
        let line = self.said.lines().rev().map(str::trim).find(|line| !line.is_empty());
        let line = line.unwrap_or("ssh said nothing");
        line.chars().filter(|c| !c.is_control()).take(300).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(code: Option<i32>, greeted: bool, said: &str) -> Result<u8, ErrorDetail> {
        let destination = "mac".parse().expect("a name");
        diagnose(code, &Diagnosis { destination: &destination, repo_dir: None, greeted, said })
    }

    #[test]
    fn the_exit_code_of_the_pool_is_kept() {
        for code in 0..255 {
            assert_eq!(outcome(Some(code), true, "Permission denied").map(i32::from), Ok(code));
        }
    }

    #[test]
    fn each_failure_of_ssh_has_its_own_reason() {
        for (said, reason) in [
            ("ssh: Could not resolve hostname mac: Name or service not known", "name"),
            ("ssh: connect to host mac port 22: Connection refused", "refused"),
            ("ssh: connect to host mac port 22: No route to host", "route"),
            ("ssh: connect to host mac port 22: Connection timed out", "route"),
            ("me@mac: Permission denied (publickey).", "auth"),
            ("kex_exchange_identification: read: Connection reset by peer", "other"),
        ] {
            let error = outcome(Some(255), false, said).expect_err("a failure");
            assert_eq!(error.code, ErrorCode::SshFailed);
            assert_eq!(error.details.expect("details")["reason"], reason, "{said}");
        }
    }

    #[test]
    fn host_keys_missing_programs_and_lost_lines_are_told_apart() {
        let code = |code, greeted, said| outcome(code, greeted, said).expect_err("a failure").code;
        let unknown = "No ED25519 host key is known for mac and you have requested strict checking.\nHost key verification failed.";
        let changed = "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.";
        assert_eq!(code(Some(255), false, unknown), ErrorCode::HostKeyUnknown);
        assert_eq!(code(Some(255), false, changed), ErrorCode::HostKeyChanged);
        assert_eq!(code(Some(127), false, ""), ErrorCode::RemoteBinaryMissing);
        assert_eq!(code(Some(126), false, ""), ErrorCode::InvalidConfig);
        assert_eq!(code(Some(255), true, "Connection to mac closed"), ErrorCode::SshFailed);
        assert_eq!(code(None, true, ""), ErrorCode::SshFailed);
    }
}
