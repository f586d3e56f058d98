//! `cargo xtask openapi`: the API documents, as the daemons print them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::process;
use crate::workspace::Workspace;

/// Which daemon prints which file of `openapi/`.
const DOCUMENTS: [(&str, &str); 2] = [("rbees-orcd", "orchestrator.json"), ("rbees-workerd", "worker.json")];

/// Writes `openapi/*.json` from what the daemons print.
#[derive(clap::Args)]
pub struct Args {
    /// Write nothing; fail when a file is not what its daemon prints.
    #[arg(long)]
    check: bool,
}

/// Builds the daemons (a development build, without the native engine) and writes or checks.
pub fn run(workspace: &Workspace, args: &Args) -> anyhow::Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--locked"]);
    for (daemon, _) in DOCUMENTS {
        cargo.args(["--package", daemon]);
    }
    process::run(&mut cargo)?;
    let programs = workspace.target.join("debug");
    if args.check { check(workspace, &programs) } else { write(workspace, &programs) }
}

/// Fails when a committed file is not what the program in `programs` prints.
pub fn check(workspace: &Workspace, programs: &Path) -> anyhow::Result<()> {
    for (daemon, file) in DOCUMENTS {
        let path = workspace.root.join("openapi").join(file);
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        let printed = print(programs, daemon)?;
        if let Some(line) = first_difference(&committed, &printed) {
            bail!(
                "openapi/{file} is not what `{daemon} openapi` prints (first difference in line {line}); \
                 `cargo xtask openapi` renews it"
            );
        }
    }
    println!("the API documents are what the daemons print");
    Ok(())
}

fn write(workspace: &Workspace, programs: &Path) -> anyhow::Result<()> {
    let folder = workspace.root.join("openapi");
    std::fs::create_dir_all(&folder)?;
    for (daemon, file) in DOCUMENTS {
        std::fs::write(folder.join(file), print(programs, daemon)?)?;
        println!("wrote openapi/{file}");
    }
    Ok(())
}

/// The document, ending in exactly one line feed.
fn print(programs: &Path, daemon: &str) -> anyhow::Result<String> {
    let text = process::read(Command::new(programs.join(daemon)).arg("openapi"))?;
    serde_json::from_str::<serde::de::IgnoredAny>(&text)
        .with_context(|| format!("`{daemon} openapi` printed something else than JSON"))?;
    Ok(format!("{}\n", text.trim_end()))
}

/// The number of the first line that differs, from 1.
fn first_difference(a: &str, b: &str) -> Option<usize> {
    if a == b {
        return None;
    }
    let same = a.lines().zip(b.lines()).take_while(|(a, b)| a == b).count();
    Some(same + 1)
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn the_first_line_that_differs_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("", "a\n"), Some(1));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some(2));
    }
}
