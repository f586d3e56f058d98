//! The checks of `rbees doctor`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use api_types::ErrorDetail;
use api_types::pool::PoolStatus;
use cli_kit::{human_bytes, human_count, human_duration};

use super::Check;
use crate::context::Context;
use crate::stack::lock::{Holder, holder};
use crate::stack::orchestrator::beside;
use crate::stack::port;

/// Less free disk than this holds no model worth the name.
const LITTLE_DISK: u64 = 2_000_000_000;
/// A sync slower than this limits how many jobs a second can be acknowledged.
const SLOW_SYNC: Duration = Duration::from_millis(20);

/// All checks, in the order of what depends on what.
pub async fn all(context: &Context) -> Vec<Check> {
    let mut checks: Vec<Check> =
        ["rbees-orcd", "rbees-pool", "rbees-workerd"].into_iter().map(program).collect();
    match context.home() {
        Ok(home) => {
            checks.extend(writable(&home));
            checks.push(orchestrator(context, &home).await);
        }
        Err(error) => checks.push(failed("home", &error)),
    }
    checks.extend(pool(context).await);
    checks.push(ssh());
    checks
}

fn failed(check: &str, error: &ErrorDetail) -> Check {
    Check::fail(check, error.message.clone(), error.hint.clone().unwrap_or_else(|| "see the message".into()))
}

fn program(name: &str) -> Check {
    let path = match beside(name) {
        Ok(path) => path,
        Err(error) => return failed(name, &error),
    };
    let answer = std::process::Command::new(&path).arg("--version").output();
    let said = match answer {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(output) => {
            return Check::fail(
                name,
                format!("{} --version ended with {}", path.display(), output.status),
                rebuild(name),
            );
        }
        Err(error) => {
            return Check::fail(name, format!("{} cannot be run: {error}", path.display()), rebuild(name));
        }
    };
    let ours = env!("CARGO_PKG_VERSION");
    if said.split_whitespace().any(|word| word == ours) {
        Check::ok(name, format!("{said}, {}", path.display()))
    } else {
        Check::fail(name, format!("{said}; this is {ours}"), rebuild(name))
    }
}

fn rebuild(name: &str) -> String {
    format!("cargo build --release -p {name}")
}

/// Whether the home can be written, and what making a write durable costs there.
fn writable(home: &Path) -> Vec<Check> {
    let probe = home.join(".doctor");
    let write = || -> std::io::Result<Duration> {
        std::fs::create_dir_all(home)?;
        let mut file = File::create(&probe)?;
        let began = Instant::now();
        for _ in 0..5 {
            file.write_all(b"rbees")?;
            file.sync_all()?;
        }
        Ok(began.elapsed() / 5)
    };
    let written = write();
    let _ = std::fs::remove_file(&probe);
    match written {
        Ok(each) => vec![Check::ok("home", home.display().to_string()), sync_cost(each)],
        Err(error) => vec![Check::fail(
            "home",
            format!("{} cannot be written: {error}", home.display()),
            "give another one: --home DIR or RBEES_HOME",
        )],
    }
}

fn sync_cost(each: Duration) -> Check {
    let found = format!("{} to make a write durable", human_duration(each));
    if each <= SLOW_SYNC {
        Check::ok("disk sync", found)
    } else {
        Check::warn("disk sync", found, "put the home on a faster disk: --home DIR")
    }
}

async fn orchestrator(context: &Context, home: &Path) -> Check {
    let endpoint = context.endpoint();
    let health = match context.client() {
        Ok(client) => client.health().await.map_err(llama_orch_sdk::Error::into_detail),
        Err(error) => return failed("orchestrator", &error),
    };
    match (health, holder(home)) {
        (Ok(health), _) => Check::ok(
            "orchestrator",
            format!("{endpoint}: {}, version {}", human_count(health.workers, "worker"), health.version),
        ),
        (Err(_), Ok(Holder::Running(running))) if !same_address(&running.url, endpoint) => Check::warn(
            "orchestrator",
            format!("runs at {}, not at {endpoint}", running.url),
            format!("--endpoint {}", running.url),
        ),
        (Err(error), Ok(Holder::Running(_))) => Check::fail(
            "orchestrator",
            format!("runs and does not answer: {}", error.message),
            "rbees down, then rbees up",
        ),
        (Err(error), _) => match stranger(endpoint) {
            Some(check) => check,
            None => Check::warn("orchestrator", error.message, "rbees up"),
        },
    }
}

fn same_address(one: &str, other: &str) -> bool {
    one.trim_end_matches('/').replace("localhost", "127.0.0.1")
        == other.trim_end_matches('/').replace("localhost", "127.0.0.1")
}

/// Whether a program that is no orchestrator holds the port of a loopback endpoint.
fn stranger(endpoint: &str) -> Option<Check> {
    let address = endpoint.trim_end_matches('/').rsplit_once('/')?.1.replace("localhost", "127.0.0.1");
    let error = port::check_free(
        address.parse().ok().filter(|address: &std::net::SocketAddr| address.ip().is_loopback())?,
    )
    .err()?;
    Some(failed("port", &error))
}

async fn pool(context: &Context) -> Vec<Check> {
    let pool = match context.local_pool() {
        Ok(pool) => pool,
        Err(error) => return vec![failed("pool", &error)],
    };
    match pool.json::<PoolStatus>(&["status"]).await {
        Ok(status) => vec![hardware(&status), disk(&status), model(&status)],
        Err(error) => vec![failed("pool", &error)],
    }
}

fn hardware(status: &PoolStatus) -> Check {
    let hardware = &status.hardware;
    let gpus: Vec<&str> = hardware.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    let gpus = if gpus.is_empty() { "no GPU".to_owned() } else { gpus.join(", ") };
    let notes = hardware.notes.iter().map(|note| format!("; {note}")).collect::<String>();
    let free = human_bytes(hardware.ram_available_bytes);
    Check::ok("hardware", format!("{} cores, {free} memory free, {gpus}{notes}", hardware.cores))
}

fn disk(status: &PoolStatus) -> Check {
    let free = status.hardware.disk_free_bytes;
    let found = format!("{} free for models", human_bytes(free));
    if free >= LITTLE_DISK {
        Check::ok("disk", found)
    } else {
        Check::warn("disk", found, "free some, or put the home elsewhere: --home DIR")
    }
}

fn model(status: &PoolStatus) -> Check {
    let there: Vec<&str> =
        status.models.iter().filter(|model| model.downloaded).map(|model| model.id.as_str()).collect();
    if there.is_empty() {
        Check::warn("models", "none is downloaded", "rbees pool models download smollm2-135m, or rbees up")
    } else {
        Check::ok("models", there.join(", "))
    }
}

fn ssh() -> Check {
    let program = std::env::var_os("RBEES_SSH").unwrap_or_else(|| "ssh".into());
    match std::process::Command::new(&program).arg("-V").output() {
        // ssh prints its version on standard error.
        Ok(output) => Check::ok("ssh", String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Check::warn(
            "ssh",
            format!("cannot be run: {error}"),
            "install the OpenSSH client to use other machines",
        ),
    }
}
