//! The command line itself: help, completions, exit codes, the shape of failures.

use crate::program::{Program, Run};

#[test]
fn help_names_every_command_and_every_command_has_help() {
    let program = Program::install();
    let help = program.run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for command in
        ["up", "down", "status", "doctor", "run", "jobs", "models", "workers", "pool", "completions"]
    {
        assert!(help.out.contains(&format!("\n  {command} ")), "{command}: {}", help.out);
        let own = program.run(&[command, "--help"]);
        assert_eq!(own.code, Some(0), "{command}");
        assert!(own.out.contains("Usage: rbees "), "{command}: {}", own.out);
    }
}

#[test]
fn completions_are_made_for_every_shell() {
    let program = Program::install();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = program.run(&["completions", shell]);
        assert_eq!((script.code, script.err.as_str()), (Some(0), ""), "{shell}");
        assert!(script.out.contains("submit"), "{shell}");
    }
}

#[test]
fn failures_say_what_why_and_what_next_and_have_their_exit_code() {
    let program = Program::install();
    for (args, code, word, next) in [
        (["jobs", "list"].as_slice(), 5, "ORCHESTRATOR_UNREACHABLE", "rbees up"),
        (&["jobs", "show", "x"], 2, "INVALID_FIELD", "rbees jobs list"),
        (&["pool", "status", "--host", "-oProxyCommand=touch pwned"], 2, "INVALID_HOST", "~/.ssh/config"),
        (&["pool", "add", "-oProxyCommand=touch pwned"], 2, "INVALID_HOST", "~/.ssh/config"),
        (&["pool", "remove", "nobody"], 3, "POOL_NOT_FOUND", "rbees pool list"),
        (&["pool", "status"], 5, "REMOTE_BINARY_MISSING", "cargo build"),
        (&["--endpoint", "localhost:1", "models"], 2, "INVALID_CONFIG", ""),
    ] {
        let run = program.run(args);
        assert_eq!(run.code, Some(code), "{args:?}: {}", run.err);
        assert_eq!(run.out, "", "{args:?}");
        assert!(
            run.err.starts_with("error: ") && run.err.contains(word) && run.err.contains(next),
            "{}",
            run.err
        );
        assert!(!run.err.contains('\u{1b}'), "colours in a pipe: {}", run.err);

        let json = program.run(&[&["--json"], args].concat());
        assert_eq!(json.code, Some(code), "{args:?}");
        let body: api_types::ErrorBody = serde_json::from_str(&json.err).expect("an error body");
        assert_eq!(body.error.code.as_str(), word);
    }
    assert!(!program.dir().join("pwned").exists());
}

#[test]
fn a_wrong_command_line_is_refused_with_a_suggestion() {
    let program = Program::install();
    let run = program.run(&["jbos", "list"]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("jobs"), "{}", run.err);
    assert_eq!(program.run(&["jobs", "submit", "--model", "m"]).code, Some(2), "no prompt");
    assert_eq!(
        program.run(&["jobs", "submit", "--prompt", "a", "--prompt-file", "b"]).code,
        Some(2),
        "two prompts"
    );
    assert_eq!(program.run(&["up", "--once", "--detach"]).code, Some(2));
}

#[test]
fn an_unknown_key_of_the_configuration_is_named_with_its_line() {
    let program = Program::install();
    program.configure("endpoint = \"http://127.0.0.1:9\"\nendpiont = 1\n");
    let run = program.run(&["models"]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("rbees.toml:2") && run.err.contains("endpiont"), "{}", run.err);
}

#[test]
fn the_orchestrator_may_be_named_in_three_ways() {
    let program = Program::install();
    for flag in ["--endpoint", "--orchestrator", "--orchestrator-url"] {
        let run = program.run(&["models", flag, "http://127.0.0.1:11"]);
        assert!(run.err.contains("127.0.0.1:11"), "{flag}: {}", run.err);
    }
    program.configure("endpoint = \"http://127.0.0.1:12\"\n");
    let run = Run::of(program.command(&["models"]).env_remove("RBEES_ENDPOINT").output().expect("it runs"));
    assert!(run.err.contains("127.0.0.1:12"), "{}", run.err);
}

#[test]
fn doctor_names_what_is_missing_and_the_command_that_mends_it() {
    let program = Program::install().with_script("rbees-orcd", "#!/bin/sh\necho rbees-orcd 9.9.9\n");
    let run = program.run(&["--json", "doctor"]);
    assert_eq!(run.code, Some(1), "{}", run.err);
    let report: serde_json::Value = serde_json::from_str(&run.out).expect("JSON");
    let check = |name: &str| {
        let checks = report["checks"].as_array().expect("checks");
        checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    };
    assert_eq!(check("rbees-orcd")["result"], "fail", "another version");
    assert_eq!(check("rbees-workerd")["next"], "build it: cargo build --release -p rbees-workerd");
    assert_eq!(check("home")["result"], "ok");
    assert_eq!(check("orchestrator")["next"], "rbees up");
}

#[test]
fn up_says_who_holds_the_port() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let bind = holder.local_addr().expect("bound").to_string();
    let status = r#"{"version":"0","protocol":1,"host":"h","home":"/h","binary":"/b","hardware":{"os":"linux","arch":"x","cpu":"c","cores":1,"cpu_features":[],"ram_total_bytes":1,"ram_available_bytes":1,"disk_free_bytes":1,"gpus":[],"notes":[]},"models":[],"workers":[]}"#;
    let program = Program::install().with_script("rbees-pool", &format!("#!/bin/sh\necho '{status}'\n"));
    let run = program.run(&["up", "--once", "--model", "fake:bee", "--bind", &bind]);
    assert_eq!(run.code, Some(4), "{}", run.err);
    assert!(run.err.contains("PORT_TAKEN") && run.err.contains("--bind"), "{}", run.err);
}

#[test]
fn a_reader_that_leaves_early_is_not_an_error() {
    let program = Program::install();
    let mut child = program
        .command(&["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it runs");
    drop(child.stdout.take());
    let run = Run::of(child.wait_with_output().expect("it ends"));
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
}

#[cfg(target_os = "linux")]
#[test]
fn data_that_cannot_be_written_is_a_failure() {
    let program = Program::install();
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let output = program.command(&["pool", "list"]).stdout(full).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("standard output could not be written"), "{told}");
}

#[test]
fn a_file_that_is_no_text_is_a_wrong_command_line_and_no_broken_disk() {
    let program = Program::install();
    let bytes = program.dir().join("bytes.rhai");
    std::fs::write(&bytes, b"fn score() { \xff }").expect("written");
    let folder = program.dir().to_string_lossy().into_owned();
    let bytes = bytes.to_string_lossy().into_owned();
    for (file, words) in [(&folder, "is a folder"), (&bytes, "is not UTF-8 text")] {
        for args in [
            ["policy", "check", file.as_str()].as_slice(),
            &["policy", "set", file],
            &["jobs", "submit", "--prompt-file", file],
        ] {
            let output = program.command(args).output().expect("it runs");
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
            assert!(told.contains(words) && told.contains("INVALID_FIELD"), "{args:?}: {told}");
        }
    }
}
