//! The table of arrows: who may use what of ours, and what of others nobody may bring in.

use std::collections::BTreeSet;

use crate::layers::Reach;

/// What a package may use of ours.
struct Uses {
    package: &'static str,
    may: &'static [&'static str],
    because: &'static str,
}

/// What a package must never reach of others.
struct Never {
    packages: &'static [&'static str],
    banned: &'static [&'static str],
    because: &'static str,
}

const NOBODYS: &str = "nothing uses a binary, a test, a bench or the task runner: \
    programs meet over HTTP or SSH, and what ships does not lean on what tests it";

const USES: [Uses; 21] = [
    Uses {
        package: "api-types",
        may: &[],
        because: "the wire stands alone: a browser compiles it, and it must stay stable",
    },
    Uses {
        package: "orchestrator-core",
        may: &["api-types"],
        because: "the brain is a value; it meets the pool's side only in api-types",
    },
    Uses {
        package: "policy-script",
        may: &["api-types", "orchestrator-core"],
        because: "scripts are one way to make the core's policies; the core knows no script language",
    },
    Uses {
        package: "gguf",
        may: &[],
        because: "reading a model file needs no program of ours, so that engine and pool can share it",
    },
    Uses {
        package: "convert",
        may: &["gguf"],
        because: "turning a folder into a model file needs neither an engine nor a program of ours",
    },
    Uses {
        package: "pool-core",
        may: &["api-types", "gguf"],
        because: "the pool's decisions are a value; they meet the brain only in api-types",
    },
    Uses {
        package: "engine",
        may: &["api-types", "convert", "gguf"],
        because: "an engine is a trait that a C library can satisfy",
    },
    Uses {
        package: "clients",
        may: &["api-types"],
        because: "clients know the wire and nothing of who answers",
    },
    Uses { package: "cli-kit", may: &["api-types"], because: "printing knows the wire and no program" },
    Uses {
        package: "pool-host",
        may: &["api-types", "gguf", "pool-core"],
        because: "the pool's hands carry out what pool-core decided, and nothing else",
    },
    Uses {
        package: "llama-orch-sdk",
        may: &["api-types"],
        because: "the public surface knows public types only",
    },
    Uses {
        package: "rbees-orcd",
        may: &["api-types", "clients", "orchestrator-core", "policy-script"],
        because: "the orchestrator neither starts processes nor infers",
    },
    Uses {
        package: "rbees-workerd",
        may: &["api-types", "clients", "convert", "engine", "gguf"],
        because: "the worker decides nothing",
    },
    Uses {
        package: "rbees-pool",
        may: &["api-types", "cli-kit", "gguf", "pool-core", "pool-host"],
        because: "the pool's command line is its hands and its printer",
    },
    Uses {
        package: "rbees-ctl",
        may: &["api-types", "cli-kit", "clients", "llama-orch-sdk", "orchestrator-core", "policy-script"],
        because: "the operator's command line embeds no daemon and no pool; it tries policies on its own",
    },
    Uses {
        package: "campaign",
        may: &[],
        because: "what is kept of campaigns is the same whatever they drive",
    },
    Uses {
        package: "model-folder",
        may: &["api-types", "convert", "engine", "gguf"],
        because: "the two ways into the engine are compared below HTTP",
    },
    Uses {
        package: "sim",
        may: &["api-types", "campaign", "orchestrator-core", "policy-script", "pool-core"],
        because: "the simulated world drives values, not programs; a policy is one of them",
    },
    Uses {
        package: "e2e",
        may: &["api-types", "campaign", "clients", "llama-orch-sdk", "orchestrator-core", "policy-script"],
        because: "these tests start the programs by their path; what the brain was told they give to \
            the brain again, which is a value",
    },
    Uses {
        package: "bench",
        may: &["api-types", "orchestrator-core"],
        because: "what is measured is a program of its own, like its competitors; only the brain's \
            decisions, which are a value, are measured in the bench's own process",
    },
    Uses { package: "xtask", may: &[], because: "the task runner must build before anything else does" },
];

const IO: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "mio",
    "socket2",
    "rustix",
    "nix",
    "axum",
    "hyper",
    "hyper-util",
    "tower",
    "tower-http",
    "reqwest",
    "rusqlite",
    "libsqlite3-sys",
    "sqlx",
    "tempfile",
    "sysinfo",
    "nvml-wrapper",
    "getrandom",
    "rand",
    "rand_core",
    "fastrand",
    "jiff",
    "chrono",
    "time",
    "tracing-subscriber",
];

const ASYNC_AND_HTTP: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "mio",
    "futures-core",
    "futures-util",
    "axum",
    "http",
    "hyper",
    "hyper-util",
    "tower",
    "reqwest",
];

const NEVER: [Never; 5] = [
    Never {
        packages: &["orchestrator-core"],
        banned: &["rhai"],
        because: "the brain asks a trait; scripts, and what they cost, stay outside of it",
    },
    Never {
        packages: &["orchestrator-core", "pool-core"],
        banned: IO,
        because: "a core has no I/O, no clock and no randomness, so that a run can be replayed",
    },
    Never {
        packages: &["api-types"],
        banned: IO,
        because: "the wire builds for a browser, and ids are drawn by shells only",
    },
    Never {
        packages: &["engine", "gguf", "convert"],
        banned: ASYNC_AND_HTTP,
        because: "an engine and the reader of its files are synchronous and know no network",
    },
    Never {
        packages: &["xtask"],
        banned: &["tokio", "hyper", "reqwest"],
        because: "the task runner is small, so that the first command starts at once",
    },
];

/// Every rule that `reach` breaks, as sentences with the reason.
pub fn violations(reach: &Reach, ours: &BTreeSet<String>) -> Vec<String> {
    let mut found = uses_violations(reach, ours);
    for rule in NEVER.iter().filter(|rule| rule.packages.contains(&reach.package.as_str())) {
        let banned = rule.banned.iter().filter(|name| reach.built_in.contains(**name));
        found.extend(banned.map(|name| format!("{} -> {name}: {}", reach.package, rule.because)));
    }
    found
}

fn uses_violations(reach: &Reach, ours: &BTreeSet<String>) -> Vec<String> {
    let Some(row) = USES.iter().find(|row| row.package == reach.package) else {
        return vec![format!(
            "{} has no row in the table of layers: add one, with its reason",
            reach.package
        )];
    };
    let reached = reach.built_in.union(&reach.named);
    reached
        .filter(|name| ours.contains(*name) && **name != reach.package && !row.may.contains(&name.as_str()))
        .map(|name| format!("{} -> {name}: {}", reach.package, reason(name, row)))
        .collect()
}

/// Packages that nobody may use have one reason for all.
fn reason(name: &str, row: &Uses) -> &'static str {
    let is_used_by_somebody = USES.iter().any(|other| other.may.contains(&name));
    if is_used_by_somebody { row.because } else { NOBODYS }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn check(package: &str, built_in: &[&str]) -> Vec<String> {
        let ours = USES.iter().map(|row| row.package.to_owned()).collect();
        let reach = Reach { package: package.into(), built_in: set(built_in), named: BTreeSet::new() };
        violations(&reach, &ours)
    }

    #[test]
    fn allowed_arrows_pass() {
        assert_eq!(check("orchestrator-core", &["api-types", "serde", "serde_json"]), [""; 0]);
        assert_eq!(
            check("rbees-orcd", &["api-types", "orchestrator-core", "clients", "tokio", "rusqlite"]),
            [""; 0]
        );
    }

    #[test]
    fn each_never_arrow_is_caught() {
        for (package, reached) in [
            ("orchestrator-core", "tokio"),
            ("orchestrator-core", "rhai"),
            ("orchestrator-core", "policy-script"),
            ("pool-core", "getrandom"),
            ("api-types", "orchestrator-core"),
            ("api-types", "rand"),
            ("orchestrator-core", "pool-core"),
            ("pool-core", "orchestrator-core"),
            ("rbees-orcd", "pool-host"),
            ("rbees-orcd", "engine"),
            ("rbees-workerd", "orchestrator-core"),
            ("rbees-workerd", "pool-core"),
            ("engine", "tokio"),
            ("engine", "http"),
            ("rbees-ctl", "rbees-pool"),
            ("clients", "rbees-orcd"),
            ("llama-orch-sdk", "clients"),
            ("llama-orch-sdk", "orchestrator-core"),
            ("rbees-pool", "e2e"),
        ] {
            let found = check(package, &[reached, "serde"]);
            assert_eq!(found.len(), 1, "{package} -> {reached}: {found:?}");
            assert!(
                found.iter().all(|line| line.starts_with(&format!("{package} -> {reached}: "))),
                "{found:?}"
            );
        }
    }

    #[test]
    fn an_arrow_that_only_a_test_draws_is_caught_too() {
        let ours = set(&["engine", "sim"]);
        let reach = Reach { package: "engine".into(), built_in: set(&[]), named: set(&["sim"]) };
        assert_eq!(violations(&reach, &ours), [format!("engine -> sim: {NOBODYS}")]);
    }

    #[test]
    fn a_package_without_a_row_is_named() {
        assert!(check("novelty", &[]).first().is_some_and(|line| line.starts_with("novelty has no row")));
    }
}
