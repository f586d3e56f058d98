//! `rbees pool add HOST`: looks at a machine, then remembers it.

use api_types::pool::{AddPool, PoolStatus};
use api_types::{ErrorCode, ErrorDetail, PROTOCOL, PoolId};
use clap::Args;
use cli_kit::{ExitStatus, Table, human_bytes};
use clients::pool::Pool;

use crate::commands::Outcome;
use crate::config::{Config, PoolConfig, Transport, with_pool};
use crate::context::Context;
use crate::detail;

/// Looks at another machine over SSH and remembers it as a pool
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  rbees pool add mac.home.arpa --name mac")]
pub struct AddArgs {
    /// `[user@]host`, or an alias of the SSH configuration
    #[arg(allow_hyphen_values = true)]
    host: String,
    /// Its name from now on [default: the first part of the host name]
    #[arg(long)]
    name: Option<PoolId>,
    /// A checkout on that machine whose build is preferred
    #[arg(long, value_name = "DIR")]
    repo_dir: Option<String>,
}

/// Runs it.
pub async fn run(context: &Context, args: &AddArgs) -> Outcome {
    let pool = Pool::ssh(&args.host, args.repo_dir.as_deref())?;
    let id = args.name.clone().map_or_else(|| name_of(&args.host), Ok)?;
    let status: PoolStatus = pool.json(&["status"]).await?;
    if status.protocol != PROTOCOL {
        let message =
            format!("{} speaks protocol {}, this program speaks {PROTOCOL}", args.host, status.protocol);
        return Err(
            ErrorDetail::new(ErrorCode::VersionSkew, message).with_hint("install the same version on both")
        );
    }
    let config =
        PoolConfig { address: args.host.clone(), repo_dir: args.repo_dir.clone(), transport: Transport::Ssh };
    remember(context, &id, &config)?;
    context.printer.show(&status, |status| table(&id, status));
    tell_orchestrator(context, &id, &config).await;
    Ok(ExitStatus::Ok)
}

/// `mac` for `me@mac.home.arpa`; an address without letters stays whole.
fn name_of(host: &str) -> Result<PoolId, ErrorDetail> {
    let bare = host.rsplit_once('@').map_or(host, |(_, bare)| bare);
    let named = bare.chars().any(|c| c.is_ascii_alphabetic()) && !bare.contains(':');
    let name = if named { bare.split('.').next().unwrap_or(bare) } else { bare };
    name.parse().map_err(|error| detail::usage(format!("`{name}`: {error}"), "name it with --name NAME"))
}

/// Writes the pool into the configuration; the same pool again changes nothing.
fn remember(context: &Context, id: &PoolId, pool: &PoolConfig) -> Result<(), ErrorDetail> {
    match context.config.pools.get(id) {
        Some(known) if known == pool => return Ok(()),
        Some(known) => {
            let message = format!("a pool `{id}` exists already, at {}", known.address);
            return Err(detail::usage(message, format!("rbees pool remove {id}, or give another --name")));
        }
        None => {}
    }
    let path = &context.config_path;
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(detail::file("read", path, &error)),
    };
    let text = with_pool(&text, id, pool)?;
    Config::parse(&text, path)?;
    super::list::write_config(path, &text)
}

async fn tell_orchestrator(context: &Context, id: &PoolId, pool: &PoolConfig) {
    let add =
        AddPool { pool_id: id.clone(), address: Some(pool.address.clone()), repo_dir: pool.repo_dir.clone() };
    let told = match context.client() {
        Ok(client) => client.add_pool(&add).await.map_err(llama_orch_sdk::Error::into_detail),
        Err(error) => Err(error),
    };
    match told {
        Ok(()) => context.printer.note(format!("the orchestrator at {} knows it too", context.endpoint())),
        Err(error) => context.printer.warn(format!("the orchestrator does not know it yet: {error}")),
    }
}

fn table(id: &PoolId, status: &PoolStatus) -> Table {
    let hardware = &status.hardware;
    let gpus: Vec<String> = hardware
        .gpus
        .iter()
        .map(|gpu| format!("{} {}", gpu.name, human_bytes(gpu.memory_total_bytes)))
        .collect();
    let mut table = Table::new(["Check", "Result", "Found"]).with_title(format!("Pool {id}"));
    for (check, found) in [
        ("reachable, host key known", status.host.clone()),
        ("rbees-pool", format!("{} {}", status.binary, status.version)),
        ("architecture", format!("{} {}", hardware.os, hardware.arch)),
        ("processor", format!("{}, {} cores", hardware.cpu, hardware.cores)),
        ("GPU", if gpus.is_empty() { "none".into() } else { gpus.join(", ") }),
        (
            "memory",
            format!(
                "{} of {} free",
                human_bytes(hardware.ram_available_bytes),
                human_bytes(hardware.ram_total_bytes)
            ),
        ),
        ("disk", format!("{} free", human_bytes(hardware.disk_free_bytes))),
    ] {
        table.row([check, "ok", &found]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_named_after_its_host() {
        for (host, name) in [("mac.home.arpa", "mac"), ("me@box", "box"), ("192.0.2.7", "192.0.2.7")] {
            assert_eq!(name_of(host).expect(host).as_str(), name);
        }
        assert!(name_of("::1").is_err());
    }
}
