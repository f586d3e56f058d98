//! PostgreSQL on the same disk and the same CPU: what a durable INSERT costs where nothing else is
//! done.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::machine;
use crate::stats::percentile;
use crate::subjects::Running;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// Where its programs lie.
#[derive(Debug, Clone, clap::Args)]
pub struct Programs {
    /// The folder with `initdb`, `postgres`, `psql` and `pgbench`; without it PostgreSQL is left out.
    #[arg(long)]
    pub postgres_bin: Option<PathBuf>,
}

/// What `pgbench` saw.
#[derive(Debug, Clone, Copy)]
pub struct Inserts {
    /// Committed rows per second.
    pub per_second: f64,
    /// Half of them took less, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 took less, in microseconds.
    pub p99_us: f64,
}

/// Starts a server with its defaults in `folder`, inserts for `duration` on `clients` connections,
/// and ends it.
///
/// # Errors
/// When its programs are not there or fail.
pub fn inserts(
    programs: &Programs,
    folder: &Path,
    clients: usize,
    duration: Duration,
) -> anyhow::Result<Inserts> {
    let bin = programs.postgres_bin.as_ref().context("its programs are not given")?;
    let server = Server { bin: bin.clone(), folder: folder.to_owned(), owner: owner(folder)? };
    server.make()?;
    let mut start = server.program("postgres");
    start.arg("-D").arg(server.data()).args(["-k", ".", "-c", "listen_addresses="]);
    let running = Running::start(machine::SUBJECT_CPU, start, folder)?;
    server.wait(&running)?;
    server.insert(clients, duration)
}

/// A server, and on whose behalf its programs run: they refuse to be root.
struct Server {
    bin: PathBuf,
    folder: PathBuf,
    owner: Option<(u32, u32)>,
}

impl Server {
    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.current_dir(&self.folder).stdin(Stdio::null());
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        command
    }

    fn make(&self) -> anyhow::Result<()> {
        let mut initdb = self.program("initdb");
        initdb.args(["--auth=trust", "--username=bench", "--encoding=UTF8", "-D"]).arg(self.data());
        said(initdb).map(drop)
    }

    fn wait(&self, running: &Running) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let error = match self
                .sql("CREATE TABLE job (id bigserial PRIMARY KEY, tenant int, priority int, payload bytea)")
            {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if started.elapsed() > START_TIMEOUT {
                bail!("the server did not start: {error:#}\n{}", running.last_words());
            }
            std::thread::sleep(POLL);
        }
    }

    fn sql(&self, text: &str) -> anyhow::Result<String> {
        let mut psql = self.program("psql");
        psql.arg("-h").arg(self.data()).args(["-U", "bench", "-d", "postgres", "-X", "-c", text]);
        said(psql)
    }

    fn insert(&self, clients: usize, duration: Duration) -> anyhow::Result<Inserts> {
        let script = self.folder.join("insert.sql");
        // As many bytes as a short job's row.
        let payload = "78".repeat(512);
        std::fs::write(
            &script,
            format!("INSERT INTO job (tenant, priority, payload) VALUES (1, 0, '\\x{payload}');\n"),
        )?;
        let mut pgbench = self.program("pgbench");
        pgbench.arg("-h").arg(self.data()).args(["-U", "bench", "-n", "-M", "prepared", "-j", "1"]);
        pgbench.arg("-c").arg(clients.to_string()).arg("-T").arg(duration.as_secs().max(1).to_string());
        pgbench.args(["--log", "--log-prefix=insert", "-f"]).arg(&script).arg("postgres");
        let words = said(pgbench)?;
        let rate = words.lines().find_map(|line| line.strip_prefix("tps = "));
        let rate = rate.and_then(|rest| rest.split(' ').next()?.parse().ok());
        let mut took = self.latencies()?;
        Ok(Inserts {
            per_second: rate.with_context(|| format!("pgbench named no rate:\n{words}"))?,
            p50_us: percentile(&mut took, 0.5) as f64,
            p99_us: percentile(&mut took, 0.99) as f64,
        })
    }

    /// Microseconds of each transaction, from pgbench's logs.
    fn latencies(&self) -> anyhow::Result<Vec<u64>> {
        let mut took = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("insert."))
                && path.extension() != Some("sql".as_ref())
            {
                let text = std::fs::read_to_string(path)?;
                took.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()));
            }
        }
        ensure!(!took.is_empty(), "pgbench kept no log");
        Ok(took)
    }
}

/// What a program wrote, when it succeeded.
fn said(mut command: Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.output().with_context(|| format!("running {name}"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(out.status.success(), "{name}: {}{text}", String::from_utf8_lossy(&out.stderr));
    Ok(text)
}

/// Root hands the folder to the user `postgres`, who owns the installation.
fn owner(folder: &Path) -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let mut fields =
        line.context("there is no user postgres, and PostgreSQL refuses to run as root")?.split(':').skip(2);
    let mut number = || fields.next().and_then(|text| text.parse::<u32>().ok());
    let (Some(user), Some(group)) = (number(), number()) else { bail!("the user postgres has no number") };
    std::os::unix::fs::chown(folder, Some(user), Some(group))?;
    for above in folder.ancestors().skip(1) {
        // Only folders that the bench made itself are closed to others.
        if std::fs::metadata(above).is_ok_and(|meta| meta.permissions().readonly()) {
            break;
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(above)?.permissions());
        if mode & 0o001 == 0 {
            std::fs::set_permissions(above, std::os::unix::fs::PermissionsExt::from_mode(mode | 0o011))?;
        } else {
            break;
        }
    }
    Ok(Some((user, group)))
}
