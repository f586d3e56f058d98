//! The machine: which CPU a process runs on, what it has used, what it holds.

use std::collections::BTreeMap;
use std::process::{Child, Command};

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Where the subject of a measurement runs, alone.
pub const SUBJECT_CPU: usize = 0;
/// Where the load and the mock worker run.
pub const LOAD_CPU: usize = 1;

/// Binds the calling thread, and what it starts, to one CPU.
///
/// # Errors
/// When the machine has no such CPU.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
        .with_context(|| format!("binding to CPU {cpu}: the bench needs two CPUs, one for the subject"))
}

/// Starts `command` bound to `cpu`.
///
/// # Errors
/// When it cannot be started there.
pub fn spawn_on(cpu: usize, mut command: Command) -> anyhow::Result<Child> {
    // A child inherits the binding of the thread that starts it.
    let starter = std::thread::spawn(move || {
        pin(cpu)?;
        let name = command.get_program().to_string_lossy().into_owned();
        command.spawn().with_context(|| format!("starting {name}"))
    });
    match starter.join() {
        Ok(child) => child,
        Err(_) => bail!("the thread that starts processes ended early"),
    }
}

/// Lets this process and its children hold thousands of sockets.
///
/// # Errors
/// When the hard limit is too low.
pub fn allow_many_sockets(wanted: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).with_context(|| {
        format!("raising the limit of open files to {wanted} (`ulimit -Hn` shows the highest)")
    })
}

/// Nanoseconds of a clock that all processes of the machine share.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// CPU time used by the threads that `pid` and its descendants have now, per thread, in nanoseconds.
pub fn cpu_ns(pid: u32) -> BTreeMap<u32, u64> {
    let mut used = BTreeMap::new();
    for process in family(pid) {
        for thread in numbers(&format!("/proc/{process}/task")) {
            let path = format!("/proc/{process}/task/{thread}/schedstat");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if let Some(ns) = text.split(' ').next().and_then(|word| word.parse().ok()) {
                used.insert(thread, ns);
            }
        }
    }
    used
}

/// CPU time between two readings, in nanoseconds; a thread that ended in between counts nothing.
pub fn cpu_between(before: &BTreeMap<u32, u64>, after: &BTreeMap<u32, u64>) -> u64 {
    after.iter().map(|(thread, ns)| ns.saturating_sub(before.get(thread).copied().unwrap_or(0))).sum()
}

/// Memory that `pid` and its descendants hold, in bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    family(pid).into_iter().map(resident_of).sum()
}

fn resident_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|word| word.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        for thread in numbers(&format!("/proc/{parent}/task")) {
            let path = format!("/proc/{parent}/task/{thread}/children");
            let children = std::fs::read_to_string(path).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        }
    }
    found
}

fn numbers(folder: &str) -> Vec<u32> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Processor, cores, memory, kernel and how busy the machine was, in one line.
pub fn describe() -> String {
    let cpuinfo = read("/proc/cpuinfo");
    let field =
        |name: &str| cpuinfo.lines().find(|line| line.starts_with(name)).and_then(|l| l.split(": ").nth(1));
    let model = field("model name").unwrap_or("unknown processor").trim();
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let meminfo = read("/proc/meminfo");
    let total_kib = meminfo.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let release = read("/proc/sys/kernel/osrelease");
    format!("{model}, {cpus} CPUs, {} GiB, Linux {}", total_kib / (1 << 20), release.trim())
}

/// How many processes wanted a CPU during the last minute, on average.
pub fn load_average() -> f64 {
    read("/proc/loadavg").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_in_the_cpu_time_of_this_process() {
        let before = cpu_ns(std::process::id());
        let mut sum = 0u64;
        while cpu_between(&before, &cpu_ns(std::process::id())) < 1_000_000 {
            sum = sum.wrapping_add(std::hint::black_box(monotonic_ns()));
        }
        assert!(resident_bytes(std::process::id()) > 0, "{sum}");
    }
}
