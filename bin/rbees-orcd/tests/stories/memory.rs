//! A machine with little memory.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use futures_util::StreamExt;
use serde_json::json;

use crate::daemon::{answer, until};
use crate::process::{PROGRAM, Process, folders};
use crate::worker::Worker;

const GROUPS: &str = "/sys/fs/cgroup/memory";

/// A group of processes that may take so much memory together.
struct Group(PathBuf);

impl Group {
    /// `None`, with the reason on stderr, where we may not make one.
    fn of(name: &str, bytes: u64) -> Option<Self> {
        let group = Self(Path::new(GROUPS).join(format!("rb-{name}-{}", std::process::id())));
        let limit = |file: &str| std::fs::write(group.0.join(file), bytes.to_string());
        let made = std::fs::create_dir(&group.0).and_then(|()| limit("memory.limit_in_bytes"));
        if made.is_err() {
            eprintln!("SKIPPED: a memory group cannot be made in {GROUPS}; run as root with cgroup v1");
            return None;
        }
        Some(group)
    }

    /// The program, in the group from its first step on.
    fn program(&self) -> Command {
        let mut command = Command::new("sh");
        let join = format!("echo $$ > '{}/cgroup.procs'; exec \"$0\" \"$@\"", self.0.display());
        command.args(["-ec", &join, PROGRAM]);
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// As many jobs as the queue holds by default, and beside those the slots of the worker.
const JOBS: usize = 1_000;
const PROMPT_BYTES: usize = 190 * 1024;

/// Hands in jobs until one is not answered; gives those that were taken in, and how many were refused.
async fn fill(process: &Process) -> (Vec<String>, usize) {
    let prompt = "b".repeat(PROMPT_BYTES);
    let submitted = futures_util::stream::iter(0..JOBS)
        .map(|_| process.submit(&prompt))
        .buffer_unordered(16)
        .filter_map(async |answer| answer.ok())
        .collect::<Vec<_>>()
        .await;
    let (taken, refused): (Vec<_>, Vec<_>) = submitted.into_iter().partition(|answer| answer.status() == 202);
    let id =
        |answer: &reqwest::Response| answer.headers()["x-rbees-job-id"].to_str().expect("an id").to_owned();
    (taken.iter().map(id).collect(), refused.len())
}

#[tokio::test]
async fn b17_a_full_queue_of_long_prompts_fits_into_little_memory() {
    let Some(group) = Group::of("fits", 192 << 20) else { return };
    let (_folder, home, ready) = folders();
    let mut process = Process::start(&mut group.program(), &home, &ready).await;
    let worker = Worker::start(&process.url, &["a"]).await;
    worker.allow(0);
    let (taken, refused) = fill(&process).await;
    assert_eq!((taken.len(), refused), (JOBS, 0));
    assert!(process.child.try_wait().expect("asked").is_none(), "it was killed");
    assert_eq!(process.status("/readyz").await, 200);
    drop(process);
}

#[tokio::test]
async fn b17_what_was_acknowledged_before_memory_ran_out_is_there_after_the_restart() {
    // Less than the prompts that are held in memory.
    let Some(group) = Group::of("killed", 48 << 20) else { return };
    let (_folder, home, ready) = folders();
    let mut process = Process::start(&mut group.program(), &home, &ready).await;
    let worker = Worker::start(&process.url, &["a"]).await;
    worker.allow(0);
    let (taken, _) = fill(&process).await;
    let child = std::cell::RefCell::new(&mut process.child);
    let status = until("it is killed", || {
        let status = child.borrow_mut().try_wait().expect("asked");
        async move { status }
    })
    .await;
    assert_eq!(status.signal(), Some(9));
    assert!(!taken.is_empty() && taken.len() < JOBS, "{}", taken.len());
    drop(process);

    let again = Process::start(&mut Command::new(PROGRAM), &home, &ready).await;
    for job in &taken {
        let (status, view) = answer(again.http.get(format!("{}/v2/tasks/{job}", again.url))).await;
        assert_eq!(status, 200, "{job} is lost");
        assert_ne!(view["status"], json!("failed"), "{view}");
    }
}
