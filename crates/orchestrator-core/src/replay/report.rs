//! From compared lives to the figures that an operator reads.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use api_types::replay::{WaitOfJob, Waits, WaitsOfGroup};
use api_types::task::{Priority, TaskStatus};

use crate::replay::recorded::Life;
use crate::replay::what_if::Compared;

/// Tenants that a report names; the busiest.
const TENANTS_SHOWED: usize = 20;
/// Jobs that a report names.
const JOBS_SHOWED: usize = 200;

/// Jobs that ran on another worker.
pub fn moved(jobs: &[Compared]) -> u64 {
    let worker = |life: &Option<Life>| life.as_ref().and_then(|life| life.worker.clone());
    let moved = |job: &&Compared| {
        let (before, after) = (worker(&job.before), worker(&job.after));
        before.is_some() && after.is_some() && before != after
    };
    jobs.iter().filter(moved).count() as u64
}

/// Waits of all jobs, of each class, and of the busiest tenants.
pub fn groups(jobs: &[Compared]) -> Vec<WaitsOfGroup> {
    let of_class = |class: Priority| move |life: &Life| life.priority == class;
    let mut groups = vec![
        group("all", jobs, |_| true),
        group("interactive", jobs, of_class(Priority::Interactive)),
        group("batch", jobs, of_class(Priority::Batch)),
    ];
    let mut tenants: BTreeMap<&str, u64> = BTreeMap::new();
    for life in jobs.iter().filter_map(|job| job.before.as_ref()) {
        *tenants.entry(life.tenant.as_str()).or_default() += 1;
    }
    let mut tenants: Vec<_> = tenants.into_iter().collect();
    tenants.sort_by_key(|(name, jobs)| (Reverse(*jobs), *name));
    for (name, _) in tenants.into_iter().take(TENANTS_SHOWED) {
        groups.push(group(&format!("tenant {name}"), jobs, |life| life.tenant.as_str() == name));
    }
    groups.retain(|group| group.before.jobs + group.after.jobs > 0);
    groups
}

fn group(name: &str, jobs: &[Compared], member: impl Fn(&Life) -> bool) -> WaitsOfGroup {
    let is_member = |job: &&Compared| job.before.as_ref().or(job.after.as_ref()).is_some_and(&member);
    let members: Vec<&Compared> = jobs.iter().filter(is_member).collect();
    WaitsOfGroup {
        group: name.to_owned(),
        before: waits(members.iter().map(|job| job.before.as_ref())),
        after: waits(members.iter().map(|job| job.after.as_ref())),
    }
}

fn waits<'a>(lives: impl Iterator<Item = Option<&'a Life>>) -> Waits {
    let mut found = Waits::default();
    let mut waits = Vec::new();
    for life in lives {
        let Some(life) = life else {
            found.refused += 1;
            continue;
        };
        found.jobs += 1;
        found.completed += u64::from(matches!(life.ended, Some((_, TaskStatus::Completed))));
        waits.extend(life.wait_ms());
    }
    waits.sort_unstable();
    let share = |percent: usize| waits.get((waits.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    Waits { p50_ms: share(50), p90_ms: share(90), p99_ms: share(99), max_ms: waits.last().copied(), ..found }
}

/// The jobs whose waits differ most, worst first.
pub fn worst(jobs: &[Compared]) -> Vec<WaitOfJob> {
    let differs = |job: &WaitOfJob| (job.before_ms, job.refused_before) != (job.after_ms, job.refused_after);
    let mut shown: Vec<WaitOfJob> = jobs.iter().map(both).filter(differs).collect();
    shown.sort_by_key(|job| {
        let ms =
            |wait: Option<u64>| wait.map_or(i64::MAX / 2, |ms| i64::try_from(ms).unwrap_or(i64::MAX / 2));
        (Reverse(ms(job.after_ms) - ms(job.before_ms)), job.job_id)
    });
    shown.truncate(JOBS_SHOWED);
    shown
}

fn both(job: &Compared) -> WaitOfJob {
    let wait = |life: &Option<Life>| life.as_ref().and_then(Life::wait_ms);
    let worker = |life: &Option<Life>| life.as_ref().and_then(|life| life.worker.clone());
    WaitOfJob {
        job_id: job.job_id,
        before_ms: wait(&job.before),
        after_ms: wait(&job.after),
        refused_before: job.before.is_none(),
        refused_after: job.after.is_none(),
        worker_before: worker(&job.before),
        worker_after: worker(&job.after),
    }
}
