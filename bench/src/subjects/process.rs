//! Processes of the bench: bound to a CPU, their words in a file, ended with the bench.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::load::{Connection, Target};
use crate::machine;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A started process; dropping it ends it.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command` on `cpu`, with its output in `folder`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(cpu: usize, command: Command, folder: &Path) -> anyhow::Result<Self> {
        Self::launch(command, folder, |command| machine::spawn_on(cpu, command))
    }

    /// Starts `command` on every CPU there is, with its output in `folder`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_unbound(command: Command, folder: &Path) -> anyhow::Result<Self> {
        Self::launch(command, folder, |mut command| {
            command.spawn().with_context(|| format!("starting {}", command.get_program().to_string_lossy()))
        })
    }

    fn launch(
        mut command: Command,
        folder: &Path,
        spawn: impl FnOnce(Command) -> anyhow::Result<Child>,
    ) -> anyhow::Result<Self> {
        let name =
            Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = folder.join(format!("{name}.log"));
        let out = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Ok(Self { child: spawn(command)?, log })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `target` is answered.
    ///
    /// # Errors
    /// When it is not within a minute; with the last refusal and what the process said.
    pub async fn until_answers(&mut self, target: &Target) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended at once ({status}): {}", self.last_words());
            }
            let error = match once(target).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if started.elapsed() > START_TIMEOUT {
                bail!(
                    "no answer in {} s: {error:#}\nit said:\n{}",
                    START_TIMEOUT.as_secs(),
                    self.last_words()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The end of what it wrote.
    pub fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn once(target: &Target) -> anyhow::Result<()> {
    let mut connection = Connection::open(target.address).await?;
    connection.call(&target.path, target.body.clone()).await.map(drop)
}

/// The mock worker as a process of its own.
///
/// # Errors
/// When it does not tell its address.
pub async fn mock(
    cpu: usize,
    folder: &Path,
    orchestrator: Option<SocketAddr>,
    fleet: &[String],
) -> anyhow::Result<(Running, SocketAddr)> {
    let address_file = folder.join("mock.address");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["mock", "--cpu", &cpu.to_string(), "--address-file"]).arg(&address_file);
    if let Some(orchestrator) = orchestrator {
        command.args(["--orchestrator", &orchestrator.to_string()]);
    }
    command.args(fleet);
    let running = Running::start(cpu, command, folder)?;
    let started = Instant::now();
    while started.elapsed() < START_TIMEOUT {
        if let Ok(text) = std::fs::read_to_string(&address_file) {
            return Ok((running, text.parse().context("reading the mock's address")?));
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("the mock worker did not start:\n{}", running.last_words())
}

/// An address on loopback that nobody listens on now.
///
/// # Errors
/// When there is none.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}
