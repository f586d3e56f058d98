//! The SSH carrier against a real SSH server: arguments, exit codes, and every way to fail.

mod sshd;

use std::path::Path;

use api_types::pool::RemoteRequest;
use api_types::{ErrorCode, ErrorDetail};
use clients::pool::{Pool, SshPool, SshSettings};
use sshd::{Sshd, write_program};

/// Stands for `rbees-pool remote`: answers by the first argument in the request.
const FAKE_POOL: &str = r#"#!/bin/sh
IFS= read -r request
case $request in
  *'"echo"'*) printf '%s' "$request" ;;
  *'"where"'*) pwd -P; echo "$0" ;;
  *'"streams"'*) echo out; echo err >&2; exit 7 ;;
  *'"exit75"'*) exit 75 ;;
  *'"broken-json"'*) echo 'not json' ;;
  *'"refuses"'*) echo '{"error":{"code":"STORAGE_FULL","message":"full","retriable":true}}' >&2; exit 4 ;;
  *'"wait"'*) echo waiting; cat >/dev/null; echo gone >"$HOME/stopped" ;;
  *'"cut"'*) echo cutting; until [ -e "$HOME/seen" ]; do sleep 0.05; done; kill -9 $PPID ;;
esac
"#;

fn install(home: &Path) {
    write_program(&home.join(".local/bin/rbees-pool"), FAKE_POOL);
}

fn pool_at(sshd: &Sshd, host: &str, repo_dir: Option<&str>) -> Pool {
    let control = sshd.dir().join("c");
    let _ = std::fs::create_dir(&control);
    let settings =
        SshSettings { program: None, config: Some(sshd.client_config().into()), control_dir: Some(control) };
    let repo_dir = repo_dir.map(|dir| dir.parse().expect("absolute"));
    Pool::Ssh(SshPool::new(host.parse().expect("a host"), repo_dir, settings))
}

/// A server with a pool installed, and the way to it.
fn installed() -> (Sshd, Pool) {
    let sshd = Sshd::start();
    install(&sshd.home());
    let pool = pool_at(&sshd, "testhost", None);
    (sshd, pool)
}

async fn run(pool: &Pool, args: &[&str]) -> Result<(u8, Vec<u8>, Vec<u8>), ErrorDetail> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = pool
        .run(&args, &mut |bytes| out.extend_from_slice(bytes), &mut |bytes| err.extend_from_slice(bytes))
        .await?;
    Ok((code, out, err))
}

async fn failure(pool: &Pool, args: &[&str]) -> ErrorDetail {
    run(pool, args).await.expect_err("a failure")
}

/// Arguments that a shell, ssh or JSON could damage.
fn nasty_strings() -> Vec<String> {
    let mut all: Vec<String> = [
        "",
        " ",
        "  two  ",
        "-",
        "--",
        "-oProxyCommand=touch /tmp/x",
        "--help",
        "~",
        "~root",
        "$HOME",
        "${IFS}",
        "$(touch pwned)",
        "`touch pwned`",
        "; touch pwned",
        "| touch pwned",
        "&& touch pwned",
        "> pwned",
        "< /etc/passwd",
        "'",
        "''",
        "'; touch pwned; '",
        "\"",
        "\\",
        "\\\\'",
        "\\n",
        "%h",
        "%%",
        "!!",
        "!$",
        "#",
        "*",
        "?",
        "[a-z]",
        "{a,b}",
        "a=b",
        "\u{1f41d}",
        "m\u{fc}nchen",
        "\u{202e}rtl",
        "e\u{301}",
        "\u{feff}bom",
        "line\nbreak",
        "\r\n",
        "\u{0}nul",
        "\u{7f}",
        "\u{85}",
        "\u{2028}",
        "rbees-pool-remote-1",
        "{\"protocol\":1}",
        "</dev/null",
        "^D",
        "\u{4}",
    ]
    .map(str::to_owned)
    .into();
    all.extend((1..=255u8).map(|byte| format!("x{}y", char::from(byte))));
    all.push("long ".repeat(20_000));
    all
}

#[tokio::test]
async fn arguments_arrive_byte_for_byte_and_nothing_is_run() {
    let (sshd, pool) = installed();
    let nasty = nasty_strings();
    assert!(nasty.len() > 200);
    let mut args = vec!["echo"];
    args.extend(nasty.iter().map(String::as_str));
    let (code, out, _) = run(&pool, &args).await.expect("it ran");
    assert_eq!(code, 0);
    let request: RemoteRequest = serde_json::from_slice(&out).expect("the request");
    assert_eq!(request.args, args);
    assert!(!sshd.home().join("pwned").exists());
}

#[tokio::test]
async fn outputs_stay_apart_and_exit_codes_are_kept() {
    let (_sshd, pool) = installed();
    let (code, out, err) = run(&pool, &["streams"]).await.expect("it ran");
    assert_eq!((code, out.as_slice(), err.as_slice()), (7, b"out\n".as_slice(), b"err\n".as_slice()));
    assert_eq!(run(&pool, &["exit75"]).await.expect("it ran").0, 75);
}

#[tokio::test]
async fn an_answer_is_read_and_an_error_keeps_its_code() {
    let (_sshd, pool) = installed();
    let request: RemoteRequest = pool.json(&["echo"]).await.expect("an answer");
    assert_eq!(request.args, ["echo", "--json"]);
    let error = pool.json::<RemoteRequest>(&["refuses"]).await.expect_err("refused");
    assert_eq!(error.code, ErrorCode::StorageFull);
    let error = pool.json::<RemoteRequest>(&["broken-json"]).await.expect_err("not an answer");
    assert_eq!(error.code, ErrorCode::VersionSkew);
}

#[tokio::test]
async fn the_build_in_the_repo_dir_goes_before_the_installed_copy() {
    let (sshd, _) = installed();
    let repo = sshd.home().join("it's a \"repo\" $(touch pwned)");
    let built = repo.join("target/release/rbees-pool");
    write_program(&built, FAKE_POOL);
    let pool = pool_at(&sshd, "testhost", Some("~/it's a \"repo\" $(touch pwned)"));
    let (_, out, _) = run(&pool, &["where"]).await.expect("it ran");
    let repo = repo.canonicalize().expect("there");
    assert_eq!(String::from_utf8_lossy(&out), format!("{}\n{}\n", repo.display(), built.display()));
    assert!(!sshd.home().join("pwned").exists());

    let missing = pool_at(&sshd, "testhost", Some("/does/not/exist"));
    assert_eq!(failure(&missing, &["where"]).await.code, ErrorCode::InvalidConfig);
}

#[tokio::test]
async fn what_a_login_shell_prints_is_not_taken_for_the_answer() {
    let (sshd, pool) = installed();
    std::fs::write(sshd.home().join(".bashrc"), "echo Welcome to this machine\n").expect("written");
    let request: RemoteRequest = pool.json(&["echo"]).await.expect("an answer");
    assert_eq!(request.args, ["echo", "--json"]);
}

#[tokio::test]
async fn an_unknown_and_a_changed_host_key_are_refused_by_name() {
    let (sshd, pool) = installed();
    sshd.forget_host_key();
    assert_eq!(failure(&pool, &["echo"]).await.code, ErrorCode::HostKeyUnknown);
    sshd.trust_another_key();
    assert_eq!(failure(&pool, &["echo"]).await.code, ErrorCode::HostKeyChanged);
    let known = std::fs::read_to_string(sshd.dir().join("known_hosts")).expect("there");
    assert_eq!(known.lines().count(), 1, "nothing was accepted");
    sshd.trust_host_key();
    assert_eq!(run(&pool, &["exit75"]).await.expect("it ran").0, 75);
}

#[tokio::test]
async fn a_missing_program_a_closed_port_a_wrong_name_and_a_refused_key_are_told_apart() {
    let sshd = Sshd::start();
    let reason = |error: ErrorDetail| error.details.expect("details")["reason"].as_str().map(str::to_owned);
    let pool = pool_at(&sshd, "testhost", None);
    assert_eq!(failure(&pool, &["echo"]).await.code, ErrorCode::RemoteBinaryMissing);
    let closed = pool_at(&sshd, "closedhost", None);
    assert_eq!(reason(failure(&closed, &["echo"]).await).as_deref(), Some("refused"));
    let nameless = pool_at(&sshd, "namelesshost", None);
    assert_eq!(reason(failure(&nameless, &["echo"]).await).as_deref(), Some("name"));

    let locked = Sshd::start();
    locked.refuse_logins();
    let pool = pool_at(&locked, "testhost", None);
    assert_eq!(reason(failure(&pool, &["echo"]).await).as_deref(), Some("auth"));
}

#[tokio::test]
async fn a_line_that_is_lost_while_the_command_runs_says_so() {
    let (sshd, pool) = installed();
    let seen = sshd.home().join("seen");
    let on_stdout = &mut |_: &[u8]| std::fs::write(&seen, "").expect("written");
    let error = pool.run(&["cut".to_owned()], on_stdout, &mut |_| {}).await.expect_err("a failure");
    assert_eq!(error.code, ErrorCode::SshFailed);
    assert_eq!(error.details.expect("details")["reason"], "lost");
}

#[tokio::test]
async fn the_remote_side_notices_that_nobody_waits_any_more() {
    let (sshd, pool) = installed();
    let (waiting, was_waiting) = tokio::sync::oneshot::channel();
    let command = tokio::spawn(async move {
        let mut waiting = Some(waiting);
        let on_stdout = &mut |_: &[u8]| {
            if let Some(waiting) = waiting.take() {
                let _ = waiting.send(());
            }
        };
        pool.run(&["wait".to_owned()], on_stdout, &mut |_| {}).await
    });
    was_waiting.await.expect("it runs");
    command.abort();
    let stopped = sshd.home().join("stopped");
    for _ in 0..600 {
        if stopped.exists() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the remote command goes on");
}

#[test]
fn a_host_that_could_be_an_option_never_reaches_ssh() {
    for host in ["-oProxyCommand=touch pwned", "a b", "h;id", "$(id)", "-"] {
        assert_eq!(Pool::ssh(host, None).expect_err(host).code, ErrorCode::InvalidHost);
    }
}
