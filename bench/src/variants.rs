//! rbees beside itself: a fleet, a scripted policy and people who watch must not make it slower.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use http_body_util::BodyExt;

use crate::load::{ClosedLoop, Connection};
use crate::relay::{CONNECTIONS, fresh};
use crate::subjects::{Kind, Programs, Setup, Subject};

/// Workers of the large fleet.
pub const FLEET: u16 = 256;
/// Workers among which a policy chooses.
pub const SCORED: u16 = 32;
/// Connections that watch `/v2/events`.
pub const WATCHERS: usize = 10;
/// The built-in policy, written as a script.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/default.rhai");

/// Answers per second with something more to do, as a share of those without it; one for each round.
#[derive(Debug, Default)]
pub struct Shares {
    /// 256 workers instead of one.
    pub fleet: Vec<f64>,
    /// A scripted policy that scores 32 workers, instead of the built-in one.
    pub script: Vec<f64>,
    /// Ten watchers instead of none.
    pub watched: Vec<f64>,
}

/// Measures each in turns with what it is compared to, on fresh orchestrators.
///
/// # Errors
/// When one of them does not start, or any request fails.
pub async fn measure(
    programs: &Programs,
    folder: &Path,
    rounds: usize,
    closed: &ClosedLoop,
) -> anyhow::Result<Shares> {
    let start = |name: &'static str, workers: u16, scripted: bool| {
        let policy = scripted.then(|| format!("policy_file = \"{SCRIPT}\"\n"));
        let setup = Setup { mock: vec!["--workers".to_owned(), workers.to_string()], configuration: policy };
        async move {
            let folder = fresh(folder, name)?;
            Subject::with(Kind::RbeesMemory, programs, &folder, &setup).await.context(name)
        }
    };
    let (one, fleet) = (start("one worker", 1, false).await?, start("a fleet", FLEET, false).await?);
    let (built_in, script) =
        (start("the built-in policy", SCORED, false).await?, start("a script", SCORED, true).await?);
    let watched = start("watched", 1, false).await?;
    for _ in 0..WATCHERS {
        watch(&watched).await.context("watching")?;
    }
    let mut shares = Shares::default();
    for _ in 0..rounds {
        let alone = rate(closed, &one).await?;
        shares.fleet.push(rate(closed, &fleet).await? / alone);
        shares.watched.push(rate(closed, &watched).await? / alone);
        let built_in = rate(closed, &built_in).await?;
        shares.script.push(rate(closed, &script).await? / built_in);
    }
    Ok(shares)
}

async fn rate(closed: &ClosedLoop, subject: &Subject) -> anyhow::Result<f64> {
    Ok(closed.run(&subject.chat(1, 0, false), subject.pid()).await?.per_second)
}

/// Reads everything that an operator may watch, as long as the subject lives.
async fn watch(subject: &Subject) -> anyhow::Result<()> {
    let mut connection = Connection::open(subject.address()).await?;
    let mut news = connection.get("/v2/events").await?.into_body();
    tokio::spawn(async move {
        let _open = connection;
        while let Some(Ok(_)) = news.frame().await {}
    });
    Ok(())
}

/// The load under which they are compared.
pub const fn load(warm_up: Duration, duration: Duration) -> ClosedLoop {
    ClosedLoop { connections: CONNECTIONS, warm_up, duration }
}
