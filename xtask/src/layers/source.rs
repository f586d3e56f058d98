//! What a dependency list cannot show: the standard library's clock and I/O inside a core, and a
//! package that opted out of the lints.

use std::path::Path;

use anyhow::Context;

use crate::workspace::Member;

/// Packages whose own source must not name these.
const PURE: [&str; 2] = ["orchestrator-core", "pool-core"];
const IMPURE: [&str; 8] = [
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
    "Instant::now",
    "SystemTime::now",
    "RandomState",
];

/// What is wrong with the member's own files.
pub fn violations(member: &Member) -> anyhow::Result<Vec<String>> {
    let manifest = std::fs::read_to_string(&member.manifest_path)?;
    let mut found = Vec::new();
    if !has_lints(&manifest) {
        found.push(format!("{} has no [lints]: write `[lints]` and `workspace = true`", member.name));
    }
    if PURE.contains(&member.name.as_str()) {
        let folder = member.manifest_path.parent().context("a manifest lies in a folder")?;
        search(&folder.join("src"), &member.name, &mut found)?;
    }
    Ok(found)
}

/// Whether a manifest takes the workspace's lints or has a table of its own.
fn has_lints(manifest: &str) -> bool {
    manifest.lines().map(str::trim).any(|line| line == "[lints]" || line.starts_with("[lints."))
}

fn search(folder: &Path, package: &str, found: &mut Vec<String>) -> anyhow::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(|entry| entry.path());
    for path in entries.into_iter().map(|entry| entry.path()) {
        if path.is_dir() {
            search(&path, package, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.extend(impure_lines(&std::fs::read_to_string(&path)?, &format!("{package}/{name}")));
        }
    }
    Ok(())
}

/// The lines outside comments that reach around the arguments of a core.
fn impure_lines(source: &str, file: &str) -> Vec<String> {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for (index, line) in source.lines().map(code).enumerate() {
        for word in IMPURE.iter().filter(|word| line.contains(**word)) {
            found.push(format!(
                "{file}:{}: {word}: a core takes time, randomness and files as arguments",
                index + 1
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_in_a_core_is_named_with_its_line() {
        let source = "// std::fs in a comment is fine\nlet now = std::time::Instant::now();\n";
        let found = impure_lines(source, "core/a.rs");
        assert_eq!(found.len(), 1);
        assert!(found.iter().all(|line| line.starts_with("core/a.rs:2: Instant::now")), "{found:?}");
    }

    #[test]
    fn lints_may_come_from_the_workspace_or_be_own() {
        assert!(has_lints("[package]\n\n[lints]\nworkspace = true\n"));
        assert!(has_lints("[package]\n[lints.rust]\nunsafe_code = \"forbid\"\n"));
        assert!(!has_lints("[package]\n# [lints]\n"));
    }
}
