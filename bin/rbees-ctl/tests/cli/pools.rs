//! `rbees pool …`: here and over a real SSH server, its output and exit codes passed on.

use crate::program::{Program, Run};
use crate::sshd::{Sshd, write_program};

/// Stands for `rbees-pool remote`: answers by what stands in the request.
const FAKE_POOL: &str = r#"#!/bin/sh
IFS= read -r request
case $request in
  *'"status"'*) printf '%s\n' '{"version":"0.1.0","protocol":1,"host":"mac.lan","home":"/h","binary":"/b","hardware":{"os":"macos","arch":"aarch64","cpu":"M1","cores":8,"cpu_features":[],"ram_total_bytes":2,"ram_available_bytes":1,"disk_free_bytes":5,"gpus":[],"notes":[]},"models":[],"workers":[]}' ;;
  *'"download"'*) echo '{"type":"note","message":"half way"}' >&2; echo noise >&2; echo done ;;
  *'"stop"'*) echo '{"error":{"code":"WORKER_NOT_FOUND","message":"none","retriable":false}}' >&2; exit 3 ;;
  *) printf '%s\n' "$request" ;;
esac
"#;

fn over_ssh(program: &Program, sshd: &Sshd, args: &[&str]) -> Run {
    let mut command = program.command(args);
    Run::of(command.env("RBEES_SSH_CONFIG", sshd.client_config()).output().expect("it runs"))
}

fn installed() -> (Program, Sshd) {
    let sshd = Sshd::start();
    write_program(&sshd.home().join(".local/bin/rbees-pool"), FAKE_POOL);
    (Program::install(), sshd)
}

#[test]
fn a_command_runs_where_host_says_and_its_arguments_arrive_whole() {
    let (program, sshd) = installed();
    let args = [
        "pool",
        "models",
        "register",
        "--id",
        "x",
        "--host",
        "testhost",
        "--name",
        "it's $(touch pwned) \"x\"",
    ];
    let run = over_ssh(&program, &sshd, &args);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
    let request: api_types::pool::RemoteRequest = serde_json::from_str(&run.out).expect("the request");
    assert_eq!(request.args, ["models", "register", "--id", "x", "--name", "it's $(touch pwned) \"x\""]);
    assert_eq!(request.columns, None, "a pipe has no width");
}

#[test]
fn outputs_stay_apart_and_the_exit_code_is_kept() {
    let (program, sshd) = installed();
    let run = over_ssh(&program, &sshd, &["pool", "models", "download", "x", "--remote=testhost"]);
    assert_eq!((run.code, run.out.as_str()), (Some(0), "done\n"));
    assert_eq!(run.err, "half way\nnoise\n");
    let run = over_ssh(&program, &sshd, &["pool", "worker", "stop", "w", "--host", "testhost", "--json"]);
    assert_eq!((run.code, run.out.as_str()), (Some(3), ""));
    assert!(run.err.contains("WORKER_NOT_FOUND"), "{}", run.err);
}

#[test]
fn the_pool_of_this_machine_is_the_program_beside() {
    let program = Program::install().with_script("rbees-pool", FAKE_POOL);
    let run = program.run(&["-o", "json", "pool", "models", "catalog", "--help"]);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
    let request: api_types::pool::RemoteRequest = serde_json::from_str(&run.out).expect("the request");
    assert_eq!(request.args, ["models", "--json", "catalog", "--help"]);
}

#[test]
fn local_names_the_pool_of_this_machine_as_the_orchestrator_does() {
    let program = Program::install().with_script("rbees-pool", FAKE_POOL);
    let run = program.run(&["pool", "models", "catalog", "--host", "local"]);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
    let request: api_types::pool::RemoteRequest = serde_json::from_str(&run.out).expect("the request");
    assert_eq!(request.args, ["models", "catalog"]);
}

#[test]
fn a_pool_is_added_listed_used_by_name_and_removed() {
    let (program, sshd) = installed();
    program.configure("# mine\n");
    let added = over_ssh(&program, &sshd, &["pool", "add", "testhost", "--name", "mac"]);
    assert_eq!(added.code, Some(0), "{}", added.err);
    assert!(added.out.contains("mac.lan") && added.out.contains("aarch64"), "{}", added.out);
    let again = over_ssh(&program, &sshd, &["pool", "add", "testhost", "--name", "mac"]);
    assert_eq!(again.code, Some(0), "adding it again is fine: {}", again.err);

    assert!(program.run(&["pool", "list"]).out.contains("testhost"));
    for name in ["mac", "testhost"] {
        let run = over_ssh(&program, &sshd, &["pool", "worker", "list", "--host", name]);
        assert_eq!(run.code, Some(0), "{name}: {}", run.err);
    }
    let status = over_ssh(&program, &sshd, &["--json", "status"]);
    assert_eq!(status.code, Some(5), "nobody is at the endpoint");
    let status: serde_json::Value = serde_json::from_str(&status.out).expect("JSON");
    assert_eq!(status["pools"][1]["status"]["host"], "mac.lan", "what answers is shown all the same");

    assert_eq!(program.run(&["pool", "remove", "mac"]).code, Some(0));
    let left = std::fs::read_to_string(program.config()).expect("there");
    assert_eq!(left.trim(), "# mine");
}

#[test]
fn ssh_refusals_have_their_own_words_and_exit_codes() {
    let (program, sshd) = installed();
    let status = || over_ssh(&program, &sshd, &["pool", "status", "--host", "testhost"]);
    let refused = |run: Run, code, word: &str| {
        assert_eq!(run.code, Some(code), "{}", run.err);
        assert!(run.err.contains(word) && run.err.contains("next: "), "{}", run.err);
    };
    sshd.forget_host_key();
    refused(status(), 4, "HOST_KEY_UNKNOWN");
    sshd.trust_another_key();
    refused(status(), 4, "HOST_KEY_CHANGED");
    sshd.trust_host_key();
    sshd.refuse_logins();
    refused(status(), 5, "SSH_FAILED");
}
