//! One made-up disk: the real recovery runs on it, then its jobs are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::Context;
use api_types::JobId;
use api_types::worker::ExecuteRequest;
use e2e::binaries::binary;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use super::disk::Files;
use super::recording::Prompts;

/// Exit code of a check that found the database unsound.
const UNSOUND: i32 = 65;

/// Starts the orchestrator's own check on images, one after the other.
pub struct Checker {
    folder: TempDir,
    said: Mutex<String>,
}

/// What an image held after its recovery.
#[derive(Debug)]
pub struct Held {
    /// Every job, and whether it had ended.
    jobs: BTreeMap<String, bool>,
    /// What those ask for that had not.
    prompts: Prompts,
}

impl Held {
    /// Whether this job is there, and has ended if its end was shown.
    pub fn keeps(&self, job: &str, ended: bool) -> bool {
        self.jobs.get(job).is_some_and(|has_ended| *has_ended || !ended)
    }

    /// A job that was promised and is not there, ended and does not say so, or asks for something
    /// else than what was handed in.
    pub fn lacks(
        &self,
        acknowledged: &BTreeSet<&str>,
        ended: &BTreeSet<&str>,
        handed_in: &Prompts,
    ) -> Option<String> {
        let changed = self
            .prompts
            .iter()
            .find(|(job, prompt)| handed_in.get(*job).is_some_and(|handed_in| handed_in != *prompt));
        let missing = acknowledged.iter().find(|job| !self.jobs.contains_key(**job));
        let open = ended.iter().find(|job| self.jobs.get(**job) != Some(&true));
        missing
            .map(|job| format!("the acknowledged job {job}"))
            .or_else(|| open.map(|job| format!("the end of {job}")))
            .or_else(|| changed.map(|(job, _)| format!("the prompt of {job}")))
    }
}

impl Checker {
    /// A checker with a folder of its own, in memory where the machine has such a place: what is
    /// tested is what was recorded, not this disk.
    pub fn new() -> anyhow::Result<Self> {
        let memory = PathBuf::from("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
            .context("a folder")?;
        Ok(Self { folder, said: Mutex::default() })
    }

    /// What the last failing check said.
    pub fn said(&self) -> String {
        self.said.lock().map(|said| said.clone()).unwrap_or_default()
    }

    /// Recovers from the image. `None`: it is corrupt.
    ///
    /// # Errors
    /// When the check could not be made.
    pub fn check(&self, files: &Files) -> anyhow::Result<Option<Held>> {
        let home = self.folder.path().join("home");
        let _ = std::fs::remove_dir_all(&home);
        std::fs::create_dir_all(home.join("prompts"))?;
        for (name, bytes) in files {
            std::fs::write(home.join(name), bytes)?;
        }
        let recovered = recover(&home, self.folder.path())?;
        if let (Err(said), Ok(mut kept)) = (&recovered, self.said.lock()) {
            kept.clone_from(said);
        }
        Ok(recovered.ok())
    }
}

/// Recovers from the state root `home`, with no configuration but what lies in `config`. The inner
/// error is what the check said of a database that is not sound.
///
/// # Errors
/// When the check could not be made.
pub fn recover(home: &Path, config: &Path) -> anyhow::Result<Result<Held, String>> {
    let output = Command::new(binary("rbees-orcd"))
        .args(["db", "check", "--home"])
        .arg(home)
        .env("XDG_CONFIG_HOME", config)
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.code() != Some(UNSOUND) {
            anyhow::bail!("`rbees-orcd db check` ended with {}: {said}", output.status);
        }
        return Ok(Err(said));
    }
    let path = home.join("orchestrator.db");
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut statement = connection.prepare("SELECT job_id, ended_at IS NOT NULL FROM jobs")?;
    let jobs = statement
        .query_map([], |row| {
            let id = JobId::from_uuid(uuid::Uuid::from_bytes(row.get(0)?));
            Ok((id.to_string(), row.get(1)?))
        })?
        .collect::<Result<_, _>>()?;
    Ok(Ok(Held { jobs, prompts: prompts(&connection, home)? }))
}

/// What every job asks for that has not ended, from its row or its file.
fn prompts(connection: &Connection, home: &Path) -> anyhow::Result<Prompts> {
    let mut statement = connection.prepare("SELECT job_id, request FROM live JOIN jobs USING (number)")?;
    let mut found = statement.query([])?;
    let mut prompts = Prompts::new();
    while let Some(row) = found.next()? {
        let job = JobId::from_uuid(uuid::Uuid::from_bytes(row.get(0)?)).to_string();
        let json = match row.get::<_, Option<Vec<u8>>>(1)? {
            Some(json) => json,
            None => std::fs::read(home.join("prompts").join(format!("{job}.json")))?,
        };
        let request: ExecuteRequest = serde_json::from_slice(&json)?;
        prompts.insert(job, request.prompt.unwrap_or_default());
    }
    Ok(prompts)
}
