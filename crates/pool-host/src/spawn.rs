//! Carrying out a spawn plan: start, wait for the report, ask for health, or leave nothing behind.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use api_types::pool::{Progress, RecordState, WorkerRecord};
use api_types::worker::{WorkerHealth, WorkerReport, WorkerStatus};
use api_types::{ErrorCode, ErrorDetail};
use pool_core::spawn::SpawnPlan;
use pool_core::worker_record::with_report;
use tokio::time::Instant;

use crate::OnProgress;
use crate::errors::blocking;
use crate::files;
use crate::home::Home;
use crate::processes::{self, LOOK_EVERY, Started, Supervision};
use crate::records;

/// How many of the last lines of a log a failure shows.
const LOG_LINES: usize = 12;

/// Starts a worker and waits until it is ready. Dropping the future, as every failure, kills what
/// was started and removes its record; its log stays.
///
/// # Errors
/// `SPAWN_FAILED` and the worker's own error code, with the last lines of its log; `SPAWN_TIMEOUT`.
pub async fn spawn(
    home: &Home,
    plan: &SpawnPlan,
    predicted_bytes: Option<u64>,
    timeout: Duration,
    progress: &OnProgress,
) -> Result<WorkerRecord, ErrorDetail> {
    let supervision = blocking(|| Ok(Supervision::find())).await?;
    progress(Progress::Note {
        message: format!("{}; {} starts {}", plan.why, plan.worker_id, supervision.describe()),
    });
    files::remove(&home.report(&plan.worker_id))?;
    let cleanup = Cleanup { home, plan, armed: true };
    let mut started =
        processes::start(plan, home, supervision).map_err(|error| with_log(error, home, plan))?;
    let record = first_record(home, plan, &started, predicted_bytes);
    records::write(home, &record)?;
    let report = wait(home, plan, &mut started, timeout, progress).await?;
    check_health(&report, plan).await.map_err(|error| with_log(error, home, plan))?;
    let ready = with_report(record, &report);
    records::write(home, &ready)?;
    started.keep();
    cleanup.disarm();
    Ok(ready)
}

/// Removes a worker's record unless it got ready. Dropped after the process guard, which is made later.
struct Cleanup<'a> {
    home: &'a Home,
    plan: &'a SpawnPlan,
    armed: bool,
}

impl Cleanup<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        if self.armed {
            let _ = records::remove(self.home, &self.plan.worker_id);
        }
    }
}

fn first_record(
    home: &Home,
    plan: &SpawnPlan,
    started: &Started,
    predicted_bytes: Option<u64>,
) -> WorkerRecord {
    WorkerRecord {
        worker_id: plan.worker_id.clone(),
        backend: plan.device.backend.clone(),
        device: Some(plan.device.to_string()),
        model: plan.model.clone(),
        port: None,
        uri: None,
        process: started.identity.clone(),
        state: RecordState::Spawned,
        reported: None,
        log: home.root().join(&plan.log).to_string_lossy().into_owned(),
        spawned_at: jiff::Timestamp::now().to_string(),
        predicted_bytes,
        measured_bytes: None,
    }
}

async fn wait(
    home: &Home,
    plan: &SpawnPlan,
    started: &mut Started,
    timeout: Duration,
    progress: &OnProgress,
) -> Result<WorkerReport, ErrorDetail> {
    let deadline = Instant::now() + timeout;
    let mut shown = None;
    loop {
        let ended = started.ended();
        // Read after the look at the process, so that its last words are not missed.
        let report =
            records::report(home, &plan.worker_id)?.filter(|report| report.pid == started.identity.pid);
        match report.as_ref().map(|report| report.health.status) {
            Some(WorkerStatus::Failed) => return Err(reported_failure(report.as_ref(), home, plan)),
            Some(WorkerStatus::Ready) if ended.is_none() => {
                return report.ok_or_else(|| ended_early(None, home, plan));
            }
            Some(_) | None => {}
        }
        if let Some(status) = ended {
            return Err(ended_early(Some(status), home, plan));
        }
        if Instant::now() >= deadline {
            let message = format!("{} was not ready within {} s", plan.worker_id, timeout.as_secs());
            return Err(with_log(ErrorDetail::new(ErrorCode::SpawnTimeout, message), home, plan));
        }
        let share = report.and_then(|report| report.health.load_progress);
        if let Some(share) = share.filter(|share| shown != Some(*share)) {
            shown = Some(share);
            progress(Progress::Load { worker_id: plan.worker_id.clone(), progress: share });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The worker's own word for what went wrong.
fn reported_failure(report: Option<&WorkerReport>, home: &Home, plan: &SpawnPlan) -> ErrorDetail {
    let own = report.and_then(|report| report.health.error.clone());
    let error = own.unwrap_or_else(|| {
        ErrorDetail::new(ErrorCode::SpawnFailed, format!("{} failed and did not say why", plan.worker_id))
    });
    with_log(error, home, plan)
}

fn ended_early(status: Option<ExitStatus>, home: &Home, plan: &SpawnPlan) -> ErrorDetail {
    let how = status.map_or_else(String::new, |status| format!(" ({status})"));
    let message = format!("{} ended before it was ready{how}", plan.worker_id);
    with_log(ErrorDetail::new(ErrorCode::SpawnFailed, message), home, plan)
}

/// Adds the last lines of the log: to the message for people, to the details for programs.
fn with_log(mut error: ErrorDetail, home: &Home, plan: &SpawnPlan) -> ErrorDetail {
    let path = home.root().join(&plan.log);
    let lines = tail(&path, LOG_LINES).unwrap_or_default();
    if !lines.is_empty() {
        error.message = format!("{}\nlast lines of {}:\n{}", error.message, path.display(), lines.join("\n"));
    }
    let mut details = error.details.take().unwrap_or_else(|| serde_json::json!({}));
    if let Some(map) = details.as_object_mut() {
        map.insert("log".to_owned(), serde_json::json!(path.to_string_lossy()));
        map.insert("log_lines".to_owned(), serde_json::json!(lines));
    }
    error.details = Some(details);
    error
}

/// The last lines of a log file, without control characters.
///
/// # Errors
/// The file cannot be read.
pub fn tail(path: &Path, lines: usize) -> std::io::Result<Vec<String>> {
    use std::io::{Read, Seek, SeekFrom};
    const MOST: u64 = 1 << 20;
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let skip = all.len().saturating_sub(lines);
    Ok(all
        .into_iter()
        .skip(skip)
        .map(|line| line.chars().filter(|c| !c.is_control() || *c == '\t').collect())
        .collect())
}

/// Asks the worker itself: the port that was reported is served by the worker that was started.
async fn check_health(report: &WorkerReport, plan: &SpawnPlan) -> Result<(), ErrorDetail> {
    let uri = report.health.facts.uri.trim_end_matches('/');
    let failed = |reason: String| {
        ErrorDetail::new(
            ErrorCode::SpawnFailed,
            format!("{} does not answer at {uri}/health: {reason}", plan.worker_id),
        )
    };
    let client = crate::http::client().no_proxy().timeout(Duration::from_secs(10)).build();
    let client = client.map_err(|error| failed(error.to_string()))?;
    let answer =
        client.get(format!("{uri}/health")).send().await.map_err(|error| failed(error.to_string()))?;
    let health: WorkerHealth = answer.json().await.map_err(|error| failed(error.to_string()))?;
    if health.facts.worker_id != plan.worker_id || health.facts.instance != report.health.facts.instance {
        return Err(failed(format!("{} answers there", health.facts.worker_id)));
    }
    Ok(())
}
