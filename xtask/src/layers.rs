//! `cargo xtask layers`: fails when a package reaches what it must never reach.
//!
//! The lists come from `cargo tree` of one package at a time, with all its features, normal and
//! build edges: what would really be built into it. The rules are one table in `layers/rules.rs`.

mod rules;
mod source;

use std::collections::BTreeSet;

use anyhow::bail;

use crate::process;
use crate::workspace::{Member, Workspace};

/// One package and all that it reaches.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// The package.
    pub package: String,
    /// Packages built into it, itself left out.
    pub built_in: BTreeSet<String>,
    /// What its manifest names, for tests too.
    pub named: BTreeSet<String>,
}

/// Checks every package of the workspace.
pub fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let ours: BTreeSet<String> = workspace.members.iter().map(|member| member.name.clone()).collect();
    let mut problems = Vec::new();
    for member in &workspace.members {
        problems.extend(rules::violations(&reach(workspace, member)?, &ours));
        problems.extend(source::violations(member)?);
    }
    if !problems.is_empty() {
        bail!("{} arrows that must never be drawn:\n  {}", problems.len(), problems.join("\n  "));
    }
    println!("layers hold in {} packages", workspace.members.len());
    Ok(())
}

fn reach(workspace: &Workspace, member: &Member) -> anyhow::Result<Reach> {
    let tree = process::read(workspace.cargo().args([
        "tree",
        "--package",
        &member.name,
        "--edges",
        "normal,build",
        "--all-features",
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--locked",
    ]))?;
    Ok(Reach {
        package: member.name.clone(),
        built_in: names(&tree).filter(|name| *name != member.name).map(str::to_owned).collect(),
        named: member.dependencies.iter().map(|dependency| dependency.name.clone()).collect(),
    })
}

/// The package names of a `cargo tree` list.
fn names(tree: &str) -> impl Iterator<Item = &str> {
    tree.lines().filter_map(|line| line.split(' ').next()).filter(|name| !name.is_empty())
}
