//! The configuration: every problem at once, and where each value comes from.

use orchestrator_core::{Quota, RetrySettings, Settings};
use rbees_orcd::config::{Config, Layers, Origin};
use tempfile::TempDir;

/// Reads one file, with nothing in the environment but `HOME`.
fn read(text: &str) -> (TempDir, Layers) {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("orchestrator.toml");
    std::fs::write(&file, text).expect("written");
    let home = folder.path().to_string_lossy().into_owned();
    let layers = Layers::read(Some(&file), |name| (name == "HOME").then(|| home.clone()));
    (folder, layers)
}

#[test]
fn every_problem_is_told_with_its_line() {
    let (_folder, layers) =
        read("bnd = \"x\"\nqueue_capacity = \"many\"\n\nfull_policy = \"drop\"\nmax_connections = 0\n");
    let problems = Config::from_layers(&layers).expect_err("refused");
    let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 4, "{text:?}");
    for (problem, words) in text.iter().zip([
        ["toml:1:", "did you mean `bind`?"],
        ["toml:2:", "whole number from -1"],
        ["toml:4:", "reject, drop-oldest-batch"],
        ["toml:5:", "whole number from 1"],
    ]) {
        assert!(words.iter().all(|word| problem.contains(word)), "{problem} lacks {words:?}");
    }
}

#[test]
fn times_for_single_models_are_read_and_contradictions_refused() {
    let (_folder, layers) = read(
        "keep_alive_ms = -1\nkeep_alive_models = [\"llama3=60000\", \"phi3=-1\"]\npinned_models = [\"a\"]\n",
    );
    let supply = Config::from_layers(&layers).expect("valid").settings.supply;
    assert_eq!((supply.keep_alive_ms, supply.on_demand), (None, true));
    assert_eq!(supply.keep_alive_of.get("llama3"), Some(&Some(60_000)));
    assert_eq!(supply.keep_alive_of.get("phi3"), Some(&None));
    assert!(supply.pinned.contains("a"));
    let (_folder, layers) = read(
        "spawn_on_demand = \"off\"\nmin_residency_ms = 9\nswap_patience_ms = 8\nkeep_alive_models = [\"x\"]\n",
    );
    let problems = Config::from_layers(&layers).expect_err("refused");
    let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 2, "{text:?}");
    assert!(text.iter().any(|t| t.contains("toml:4:") && t.contains("MODEL=MILLISECONDS")), "{text:?}");
    assert!(text.iter().any(|t| t.contains("toml:2:") && t.contains("at most as long")), "{text:?}");
}

#[test]
fn how_jobs_are_tried_again_and_how_batch_ages_can_be_set() {
    let (_folder, layers) = read(
        "retry_attempts = 7\nretry_backoff_first_ms = 10\nretry_backoff_max_ms = 20\nretry_poison_after = 3\n\
         retry_budget = 5\nretry_budget_percent = 50\nprotocol_errors_allowed = 9\nquarantine_ms = 1000\n\
         spawn_tries = 8\nspawn_backoff_first_ms = 30\nspawn_backoff_max_ms = 40\nbatch_ageing_ms = 60000\n\
         batch_aged_share = 2\n",
    );
    let settings = Config::from_layers(&layers).expect("valid").settings;
    let retry = RetrySettings {
        attempts: 7,
        backoff_first_ms: 10,
        backoff_max_ms: 20,
        poison_after: 3,
        budget: 5,
        budget_percent: 50,
    };
    assert_eq!(settings.retry, retry);
    assert_eq!((settings.protocol_errors_allowed, settings.quarantine_ms), (9, 1_000));
    let supply = settings.supply;
    assert_eq!((supply.spawn_tries, supply.backoff_first_ms, supply.backoff_max_ms), (8, 30, 40));
    assert_eq!((settings.batch_ageing_ms, settings.aged_share), (60_000, 2));
}

#[test]
fn what_the_configuration_leaves_out_is_as_the_core_promises() {
    let (_folder, layers) = read("");
    assert_eq!(Config::from_layers(&layers).expect("valid").settings, Settings::default());
}

#[test]
fn wrong_numbers_for_retries_and_pauses_are_named() {
    let (_folder, layers) = read(
        "retry_attempts = 0\nretry_poison = 1\nretry_backoff_first_ms = 9\nretry_backoff_max_ms = 8\n\
         spawn_backoff_first_ms = 7\nspawn_backoff_max_ms = 6\nbatch_aged_share = 0\n",
    );
    let problems = Config::from_layers(&layers).expect_err("refused");
    let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let named = |line: &str, words: &str| text.iter().any(|t| t.contains(line) && t.contains(words));
    assert!(named("toml:1:", "whole number from 1"), "{text:?}");
    assert!(named("toml:2:", "retry_poison"), "{text:?}");
    assert!(named("toml:3:", "at most as long") && named("toml:5:", "at most as long"), "{text:?}");
    assert!(named("toml:7:", "whole number from 1") && text.len() == 5, "{text:?}");
}

#[test]
fn what_is_not_toml_is_told_with_its_line() {
    let (_folder, layers) = read("bind = \"127.0.0.1:1\"\nhome = = 1\n");
    let problems = Config::from_layers(&layers).expect_err("refused");
    assert!(problems[0].to_string().contains("toml:2:"), "{}", problems[0]);
}

#[test]
fn flags_win_over_the_environment_and_that_over_files() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("orchestrator.toml");
    let text =
        "retention_hours = 1\nqueue_capacity = -1\nbind = \"127.0.0.1:1\"\nallowed_hosts = [\"a\", \"b\"]\n";
    std::fs::write(&file, text).expect("written");
    let mut layers = Layers::read(Some(&file), |name| match name {
        "RBEES_RETENTION_HOURS" => Some("2".to_owned()),
        "RBEES_BIND" => Some("127.0.0.1:2".to_owned()),
        "RBEES_HOME" => Some("/somewhere".to_owned()),
        _ => None,
    });
    layers.set_flag("bind", "127.0.0.1:3");
    let config = Config::from_layers(&layers).expect("valid");
    assert_eq!((config.bind.port(), config.keeping.retention.as_secs()), (3, 7_200));
    assert_eq!((config.settings.queue_capacity, config.allowed_hosts.len()), (None, 2));
    assert_eq!(layers.get("bind").origin, Origin::Flag("bind".to_owned()));
    assert_eq!(layers.get("retention_hours").origin, Origin::Environment("RBEES_RETENTION_HOURS".to_owned()));
    assert_eq!(layers.get("queue_capacity").origin, Origin::File(file, 2));
    assert_eq!(layers.get("max_connections").origin, Origin::Default);
}

#[test]
fn a_missing_file_that_was_asked_for_is_a_problem() {
    let layers = Layers::read(Some(std::path::Path::new("/nowhere/at/all.toml")), |_| None);
    assert_eq!(layers.problems().len(), 1);
}

#[test]
fn quotas_are_tables_and_a_tenants_table_leaves_the_rest_as_by_default() {
    let text = "[quotas.default]\nconcurrency = 4\nqueued = 100\n[quotas.tenants.lab]\nweight = 3\n\
                concurrency = -1\n[quotas.tenants.\"night-shift\"]\ntokens_per_minute = 5000\n";
    let (_folder, layers) = read(text);
    let quotas = Config::from_layers(&layers).expect("valid").settings.quotas;
    let default = Quota { concurrency: Some(4), queued: Some(100), ..Quota::default() };
    assert_eq!(quotas.default, default);
    let of = |name: &str| *quotas.of(&name.parse().expect("an id"));
    assert_eq!(of("lab"), Quota { weight: 3, concurrency: None, ..default });
    assert_eq!(of("night-shift"), Quota { tokens_per_minute: Some(5_000), ..default });
    assert_eq!(of("anybody"), default);
    let shown: Vec<String> =
        layers.tenant_quotas().map(|(name, set)| format!("{name} {}", set.origin)).collect();
    assert!(
        shown[0].starts_with("quotas.tenants.lab.concurrency") && shown[0].ends_with("toml:6"),
        "{shown:?}"
    );
}

#[test]
fn nonsense_in_quotas_is_refused_with_its_line() {
    let text = "session_token_budget = \"lots\"\n[quotas.default]\nconcurency = 1\nweight = 0\n\
                [quotas.tenants.a]\nqueued = 0\nqueued_jobs = 1\n[quotas.tenants.\"a b\"]\n[quotas.other]\n";
    let (_folder, layers) = read(text);
    let text: Vec<String> =
        Config::from_layers(&layers).expect_err("refused").iter().map(ToString::to_string).collect();
    for (line, words) in [
        ("toml:1:", "whole number from -1"),
        ("toml:3:", "did you mean `concurrency`?"),
        ("toml:4:", "whole number from 1 to 1000"),
        ("toml:6:", "quotas.tenants.a.queued is 0"),
        ("toml:7:", "known are concurrency, queued, tokens_per_minute, weight"),
        ("toml:8:", "tenant id must be"),
        ("toml:9:", "[quotas.default] and [quotas.tenants.NAME]"),
    ] {
        assert!(
            text.iter().any(|told| told.contains(line) && told.contains(words)),
            "{line} {words}: {text:#?}"
        );
    }
    assert_eq!(text.len(), 7, "{text:#?}");
}

#[test]
fn how_often_the_journal_begins_anew_can_be_set() {
    let bytes = |text: &str| {
        let (_folder, layers) = read(text);
        Config::from_layers(&layers).map(|config| config.keeping.journal_snapshot_bytes)
    };
    assert_eq!(bytes("").expect("the default"), 16 << 20);
    assert_eq!(bytes("journal_snapshot_bytes = 65536\n").expect("valid"), 65_536);
    let problems = bytes("journal_snapshot_bytes = 65535\n").expect_err("refused");
    assert!(problems[0].to_string().contains("from 65536"), "{problems:?}");
}

#[test]
fn prompts_of_ended_jobs_are_kept_only_when_that_is_said() {
    let keeps = |text| Config::from_layers(&read(text).1).map(|config| config.keeping.prompts);
    assert_eq!(keeps(""), Ok(false));
    assert_eq!(keeps("keep_prompts = \"on\"\n"), Ok(true));
    let problems = keeps("keep_prompts = \"seven days\"\n").expect_err("refused");
    assert!(problems.iter().any(|problem| problem.to_string().contains("on, off")), "{problems:?}");
}

#[test]
fn what_is_shown_reads_back_to_the_same() {
    let text = "queue_capacity = -1\nutc_offset_minutes = -60\nallowed_hosts = [\"a\", \"b\"]\n\
                home = 'C:\\bees \"here\"'\nspawn_on_demand = \"off\"\n[quotas.default]\nqueued = 7\n\
                [quotas.tenants.\"night.shift\"]\nweight = 3\n[quotas.tenants.lab]\nqueued = -1\n";
    let (_folder, written) = read(text);
    assert_eq!(written.problems(), []);
    let texts = |layers: &Layers| -> Vec<(String, String)> {
        let keys = layers.all().map(|(key, set)| (key.name.to_owned(), set.text));
        keys.chain(layers.tenant_quotas().map(|(name, set)| (name, set.text.clone()))).collect()
    };
    for origins in [false, true] {
        let (_folder, again) = read(&written.shown(origins));
        assert_eq!(again.problems(), [], "{}", written.shown(origins));
        assert_eq!(texts(&again), texts(&written));
    }
    assert!(written.shown(true).contains("toml:1"), "{}", written.shown(true));
}
