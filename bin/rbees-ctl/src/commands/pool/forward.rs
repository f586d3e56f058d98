//! A command of `rbees-pool`, run where `--host` says, its output and exit code passed on.

use std::io::Write;

use api_types::ErrorDetail;
use api_types::pool::Progress;
use clap::Args;
use cli_kit::{ExitStatus, Format, Printer, ProgressView, report};
use clients::pool::{LineBuffer, Pool};

use crate::commands::Outcome;
use crate::context::Context;
use crate::detail;
use crate::signals::asked_to_stop;

/// What goes to `rbees-pool` as it is, but for `--host HOST`
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct ForwardArgs {
    /// Arguments of rbees-pool; `--host HOST` (also `--remote`, `--pool`) picks the machine
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// Runs `rbees-pool GROUP ARGS`.
pub async fn run(context: &Context, group: &str, args: ForwardArgs) -> Outcome {
    let (host, args) = split_host(args.args)?;
    let mut call = vec![group.to_owned()];
    if context.printer.is_json() {
        call.push("--json".into());
    }
    call.extend(args);
    let pool = match &host {
        Some(host) => context.pool(host)?,
        None => context.local_pool()?,
    };
    let pool = if name_orchestrator(context, host.as_deref(), &mut call).await {
        pool.with_orchestrator_token(context.worker_token()?)
    } else {
        pool
    };
    // `--json` may stand among the arguments of the pool, where only it reads them.
    if !context.printer.is_json() && wants_json(&call) {
        let printer = Printer::new(Format::Json);
        let outcome = pass_on(&pool, &call, &printer).await;
        return Ok(outcome.unwrap_or_else(|error| report(&printer, &error)));
    }
    pass_on(&pool, &call, &context.printer).await
}

async fn pass_on(pool: &Pool, call: &[String], printer: &Printer) -> Outcome {
    let mut errors = Errors::new(printer);
    let call = async {
        let (on_stdout, on_stderr) =
            (&mut |bytes: &[u8]| printer.bytes(bytes), &mut |bytes: &[u8]| errors.take(bytes));
        pool.run_shown(call, printer.columns(), on_stdout, on_stderr).await
    };
    let code = tokio::select! {
        code = call => code,
        () = asked_to_stop() => Err(detail::interrupted()),
    };
    errors.end();
    code.map(ExitStatus::from_code)
}

/// Standard error of the pool: progress is shown as this terminal wants it, the rest as it is.
struct Errors {
    lines: LineBuffer,
    view: Option<ProgressView>,
}

impl Errors {
    fn new(printer: &Printer) -> Self {
        Self { lines: LineBuffer::default(), view: (!printer.is_json()).then(|| ProgressView::new(printer)) }
    }

    fn take(&mut self, bytes: &[u8]) {
        let Self { lines, view } = self;
        lines.push(bytes, |line| show_line(view.as_ref(), line));
    }

    fn end(&mut self) {
        let rest = self.lines.rest();
        if let Some(view) = &self.view {
            view.clear();
        }
        if !rest.is_empty() {
            write_line(&rest);
        }
    }
}

fn show_line(view: Option<&ProgressView>, line: &[u8]) {
    match (view, serde_json::from_slice::<Progress>(line)) {
        (Some(view), Ok(progress)) => view.show(&progress),
        _ => write_line(line),
    }
}

fn write_line(line: &[u8]) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(line).and_then(|()| stderr.write_all(b"\n"));
}

/// Tells a new worker where to register, unless the command line does. Says whether it registers at
/// the orchestrator of this command, whose token it then needs.
async fn name_orchestrator(context: &Context, host: Option<&str>, call: &mut Vec<String>) -> bool {
    let spawns = call.iter().filter(|arg| !arg.starts_with('-')).take(2).eq(["worker", "spawn"]);
    let named = call.iter().any(|arg| arg.starts_with("--orchestrator"));
    let helps = call.iter().any(|arg| matches!(arg.as_str(), "--help" | "-h" | "--"));
    if !spawns || helps {
        return false;
    }
    let endpoint = context.endpoint();
    if named {
        return call.iter().any(|arg| arg.rsplit('=').next() == Some(endpoint));
    }
    let elsewhere = host.is_some_and(|host| !context.is_local(host));
    if elsewhere && is_loopback(endpoint) {
        context.printer.warn(format!(
            "the worker will not register by itself: {endpoint} cannot be reached from another machine; name an address of this one with --orchestrator"
        ));
        return false;
    }
    let answers = match context.client() {
        Ok(client) => client.health().await.is_ok(),
        Err(_) => false,
    };
    if answers {
        call.extend(["--orchestrator".to_owned(), endpoint.to_owned()]);
    }
    answers
}

fn is_loopback(url: &str) -> bool {
    ["://127.", "://localhost", "://[::1]"].iter().any(|part| url.contains(part))
}

fn wants_json(call: &[String]) -> bool {
    let ours = || call.iter().take_while(|arg| *arg != "--");
    let pairs = ours().zip(ours().skip(1));
    ours().any(|arg| matches!(arg.as_str(), "--json" | "-ojson" | "-o=json" | "--output=json"))
        || pairs
            .into_iter()
            .any(|(flag, value)| matches!(flag.as_str(), "-o" | "--output") && value == "json")
}

const HOST_FLAGS: [&str; 3] = ["--host", "--remote", "--pool"];

/// Takes the host out of the arguments; what stands behind `--` is not looked at.
fn split_host(args: Vec<String>) -> Result<(Option<String>, Vec<String>), ErrorDetail> {
    let (mut host, mut rest) = (None, Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            rest.push(arg);
            rest.extend(args);
            break;
        }
        let (flag, value) = match arg.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        if !HOST_FLAGS.contains(&flag) {
            rest.push(arg);
            continue;
        }
        let value = value.or_else(|| args.next()).ok_or_else(|| {
            detail::usage(format!("{flag} needs a host"), "for example: rbees pool status --host mac")
        })?;
        if host.replace(value).is_some() {
            return Err(detail::usage(
                "two hosts are named; one is allowed",
                "run the command once per host",
            ));
        }
    }
    Ok((host, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(args: &[&str]) -> Result<(Option<String>, Vec<String>), ErrorDetail> {
        split_host(args.iter().map(|arg| (*arg).to_owned()).collect())
    }

    #[test]
    fn the_host_is_found_wherever_it_stands() {
        for args in [
            ["spawn", "--host", "mac", "--gpu", "0"].as_slice(),
            &["--remote=mac", "spawn", "--gpu", "0"],
            &["spawn", "--gpu", "0", "--pool", "mac"],
        ] {
            let (host, rest) = split(args).expect("fine");
            assert_eq!(host.as_deref(), Some("mac"));
            assert_eq!(rest, ["spawn", "--gpu", "0"]);
        }
    }

    #[test]
    fn what_belongs_to_the_pool_is_left_alone() {
        let (host, rest) = split(&["register", "--name", "a b", "--", "--host", "x"]).expect("fine");
        assert_eq!(host, None);
        assert_eq!(rest, ["register", "--name", "a b", "--", "--host", "x"]);
        assert!(split(&["--host"]).is_err());
        assert!(split(&["--host", "a", "--host", "b"]).is_err());
    }

    #[test]
    fn json_is_seen_in_each_of_its_forms() {
        let call = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        for args in [["list", "--json"].as_slice(), &["-o", "json"], &["--output=json"]] {
            assert!(wants_json(&call(args)), "{args:?}");
        }
        assert!(!wants_json(&call(&["--output", "table", "--", "--json"])));
    }
}
