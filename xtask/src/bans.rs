//! Packages that must not be built into anything, with the reason: the same list as `deny.toml`,
//! checked without another tool. Where cargo-deny is installed it checks licences and sources too.

use std::process::Command;

use anyhow::bail;

use crate::process;
use crate::workspace::Workspace;

/// A package that must be absent, and why.
const BANNED: [(&str, &str); 5] = [
    ("aws-lc-sys", "ring is the one TLS crypto: a second one costs minutes of C build"),
    ("aws-lc-rs", "ring is the one TLS crypto: a second one costs minutes of C build"),
    ("openssl-sys", "TLS is rustls: no OpenSSL of the system is needed or linked"),
    ("native-tls", "TLS is rustls, with the same behaviour on every system"),
    ("sqlx-sqlite", "SQLite is reached by rusqlite alone: two drivers cannot share the library"),
];

/// `cargo xtask bans`.
pub fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let found = found_in(&process::read(workspace.cargo().args([
        "tree",
        "--workspace",
        "--all-features",
        "--edges",
        "all",
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--locked",
    ]))?);
    if !found.is_empty() {
        let lines: Vec<String> = found
            .iter()
            .map(|(name, reason)| format!("{name}: {reason}. `cargo tree -i {name}` shows who brings it."))
            .collect();
        bail!("banned packages are in the dependency tree:\n  {}", lines.join("\n  "));
    }
    run_cargo_deny(workspace)
}

/// The banned packages in a `cargo tree` list.
fn found_in(tree: &str) -> Vec<(&'static str, &'static str)> {
    let is_there = |name: &str| tree.lines().any(|line| line.split(' ').next() == Some(name));
    BANNED.into_iter().filter(|(name, _)| is_there(name)).collect()
}

fn run_cargo_deny(workspace: &Workspace) -> anyhow::Result<()> {
    if process::find("cargo-deny").is_none()
        && !process::succeeds(Command::new("cargo-deny").arg("--version"))
    {
        println!("bans hold; licences and sources are not checked, for cargo-deny is not installed");
        return Ok(());
    }
    process::run(workspace.cargo().args(["deny", "--all-features", "check", "bans", "licenses", "sources"]))
}

#[cfg(test)]
mod tests {
    use super::found_in;

    #[test]
    fn a_banned_package_is_found_by_its_whole_name() {
        assert_eq!(found_in("ring v0.17.14\nnot-aws-lc-sys v1.0.0\naws-lc-sys-x v1.0.0"), []);
        let found = found_in("ring v0.17.14\naws-lc-sys v0.30.0 (*)\nopenssl-sys v0.9.1");
        assert_eq!(found.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["aws-lc-sys", "openssl-sys"]);
    }
}
